"""Intervals that hold what they promise, against hand-made cases, an independent computation and simulated studies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.statistics import compute_holm_alphas, compute_miou, draw, estimate

DIFFERENCE = np.array([1.0, -1.0])


def make_counts(ious_SN, num_pixels=1000):
    """counts_SNK3 of one class: photos of as many pixels each, and of these IoUs."""
    hit_SN = np.round(np.asarray(ious_SN) * num_pixels).astype(np.int64)
    return np.stack([hit_SN, (num_pixels - hit_SN) // 2, num_pixels - hit_SN - (num_pixels - hit_SN) // 2], -1)[
        :, :, None
    ]


def simulate(generator, num_settings, num_seeds, num_photos, seed_sd=0.05, photo_sd=0.2, gains=None):
    """Settings that are equal but for `gains`: photos are hard for all, for each setting and for each seed."""
    hard_N = 0.8 + generator.normal(0, 1, num_photos)
    pixels_N = np.exp(generator.normal(8, 0.7, num_photos))
    settings = []
    for gain in gains or [0.0] * num_settings:
        logit_SN = hard_N + gain + generator.normal(0, photo_sd, num_photos)
        logit_SN = logit_SN + generator.normal(0, seed_sd, (num_seeds, 1))
        logit_SN = logit_SN + generator.normal(0, 0.2, (num_seeds, num_photos))
        hit_SN = np.round(pixels_N / (1 + np.exp(-logit_SN))).astype(np.int64)
        error_SN = np.maximum(np.round(pixels_N).astype(np.int64) - hit_SN, 0)
        settings.append(np.stack([hit_SN, error_SN // 2, error_SN - error_SN // 2], -1)[:, :, None])
    return settings


def test_a_score_is_pooled_over_the_photos_per_class_and_meant_over_the_classes_that_occur():
    """Two photos, classes of 3 of 4 and 1 of 2 pixels, and a third class that nobody drew or found."""
    counts_NK3 = np.array([[[2, 1, 0], [1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 1], [0, 0, 0]]])
    assert compute_miou(counts_NK3.sum(0).astype(float)) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert compute_miou(np.zeros((1, 3))) == 0


def test_the_estimate_of_a_setting_is_the_mean_over_its_seeds():
    draws = draw([make_counts([[0.5, 0.7], [0.7, 0.9]])], 100)
    assert draws.scores[0] == pytest.approx([0.6, 0.8])
    found = estimate(draws, np.array([1.0]))
    assert found.value == pytest.approx(0.7)
    assert found.low < 0.7 < found.high


def test_settings_that_answer_alike_on_every_photo_differ_by_nothing_for_certain():
    counts = make_counts([[0.5, 0.7], [0.5, 0.7]])
    found = estimate(draw([counts, counts], 200), DIFFERENCE)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_what_makes_photos_hard_for_everybody_cancels_out():
    """One setting is better by 0.02 on every photo, of which some are far harder than others."""
    hard_N = np.linspace(0.2, 0.9, 40)
    better, worse = make_counts([hard_N + 0.02] * 3), make_counts([hard_N] * 3)
    draws = draw([better, worse], 1000)
    difference, alone = estimate(draws, DIFFERENCE), estimate(draws, np.array([1.0, 0.0]))
    assert difference.low == pytest.approx(0.02, abs=0.001)
    assert not difference.holds_zero
    assert alone.high - alone.low > 0.1


def test_without_differences_between_photos_the_interval_is_students_own():
    """The t-test of equal spreads, as scipy computes it, where the photos add nothing."""
    first, second = np.array([0.61, 0.64, 0.60]), np.array([0.54, 0.57, 0.53])
    counts = [make_counts(np.repeat(scores[:, None], 30, axis=1)) for scores in (first, second)]
    found = estimate(draw(counts, 10_000), DIFFERENCE)
    expected = stats.ttest_ind(first, second, equal_var=True)
    low, high = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_what_three_seeds_do_not_know_of_their_spread_those_of_other_settings_tell():
    """The same two settings, alone and among six more of the same spread: 4 degrees of freedom, and 16."""
    scores_AS = np.array([0.61, 0.64, 0.60]) - 0.01 * np.arange(8)[:, None]
    counts = [make_counts(np.repeat(scores[:, None], 30, axis=1)) for scores in scores_AS]
    alone = estimate(draw(counts[:2], 2000), DIFFERENCE)
    among = estimate(draw(counts, 2000), np.array([1.0, -1.0, *[0.0] * 6]))
    assert (alone.high - alone.low) / (among.high - among.low) == pytest.approx(
        stats.t.ppf(0.975, 4) / stats.t.ppf(0.975, 16), rel=0.05
    )


def test_a_setting_that_spreads_wider_than_the_others_keeps_its_own_spread():
    steady, unsteady = np.array([0.60, 0.61, 0.62]), np.array([0.3, 0.6, 0.9])
    counts = [make_counts(np.repeat(scores[:, None], 30, axis=1)) for scores in (steady, steady, steady, unsteady)]
    draws = draw(counts, 2000)
    assert draws.seed_variances[3] == pytest.approx(unsteady.var(ddof=1), rel=0.01)
    assert draws.seed_variances[0] == pytest.approx(unsteady.var(ddof=1) / 4, rel=0.01)
    assert draws.draws_AD[3].std() == pytest.approx(np.sqrt(unsteady.var(ddof=1) / 3), rel=0.05)


def test_with_one_seed_the_interval_is_that_of_scipys_bootstrap_of_the_photos():
    generator = np.random.default_rng(3)
    counts = make_counts(generator.uniform(0.3, 0.9, (1, 60)))
    found = estimate(draw([counts], 10_000), np.array([1.0]))

    def pool(indices):
        return float(compute_miou(counts[0, indices.astype(int)].sum(0).astype(float)))

    expected = stats.bootstrap((np.arange(60),), pool, vectorized=False, n_resamples=4000, method="percentile", rng=1)
    interval = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.006)


def test_the_same_counts_give_the_same_interval_every_time():
    counts = simulate(np.random.default_rng(0), 2, 3, 20)
    assert estimate(draw(counts, 300), DIFFERENCE) == estimate(draw(counts, 300), DIFFERENCE)


def test_more_draws_than_are_made_at_a_time_are_all_made():
    draws = draw(simulate(np.random.default_rng(0), 2, 2, 10), 1234)
    assert draws.draws_AD.shape == (2, 1234)
    assert (draws.draws_AD > 0).all()


def test_holms_shares_are_those_of_his_paper():
    """Of three: the smallest must stand a third of 5 %, the next half of it, the last all of it."""
    assert compute_holm_alphas([0.04, 0.001, 0.02]) == pytest.approx([0.05, 0.05 / 3, 0.025])


def test_after_the_first_that_is_not_significant_none_is():
    """0.03 would stand 5 %, but 0.029 does not stand half of it."""
    alphas = compute_holm_alphas([0.001, 0.03, 0.029])
    assert alphas == pytest.approx([0.05 / 3, 0.025, 0.025])
    assert compute_holm_alphas([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_verdicts_are_those_of_the_adjusted_p_values(p):
    """The textbook's other form: running maxima of (n - place) p, in order, against 5 %."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate([(len(p) - place) * p[index] for place, index in enumerate(order)])
    expected = {int(index): bool(value <= 0.05) for index, value in zip(order, adjusted, strict=True)}
    alphas = compute_holm_alphas(p)
    found = {index: p[index] <= alphas[index] for index in range(len(p))}
    assert all(found[i] == expected[i] or abs(p[i] - alphas[i]) < 1e-12 for i in found)


def count_verdicts(num_studies, gains, num_seeds=3, num_photos=60):
    """Of so many studies the shares in which nothing is told from the best, and the first from the second setting."""
    generator, num_tied, num_told = np.random.default_rng(1), 0, 0
    for number in range(num_studies):
        draws = draw(simulate(generator, len(gains), num_seeds, num_photos, gains=gains), 400, seed=number)
        best, weights_AA = int(draws.means_A.argmax()), np.eye(len(gains))
        others = [index for index in range(len(gains)) if index != best]
        p = [estimate(draws, weights_AA[best] - weights_AA[index]).p for index in others]
        num_tied += all(value > alpha for value, alpha in zip(p, compute_holm_alphas(p), strict=True))
        num_told += not estimate(draws, weights_AA[0] - weights_AA[1]).holds_zero
    return num_tied / num_studies, num_told / num_studies


@pytest.mark.slow
@pytest.mark.parametrize(("num_settings", "num_seeds"), [(2, 2), (2, 3), (4, 3), (4, 5), (8, 2), (12, 3)])
def test_equal_settings_are_tied_in_nearly_all_of_a_thousand_studies(num_settings, num_seeds):
    assert count_verdicts(1000, [0.0] * num_settings, num_seeds)[0] >= 0.93


@pytest.mark.slow
def test_a_difference_is_found_the_more_often_the_more_standard_errors_it_is():
    """Of two settings with three seeds; the standard error is what such studies' differences vary by."""
    generator = np.random.default_rng(2)
    studies = [draw(simulate(generator, 2, 3, 60), 1).means_A for _ in range(300)]
    error = float(np.std([first - second for first, second in studies]))
    slope = 0.186  # of the score, by the logit, where scores are about 0.7
    rates = [count_verdicts(300, [number * error / slope, 0.0])[1] for number in (0, 2, 4)]
    assert rates[0] <= 0.07
    assert rates[1] >= 0.3  # 0.42: with a normal interval it would be half, with three seeds it cannot be
    assert rates[2] >= 0.9  # 0.95
