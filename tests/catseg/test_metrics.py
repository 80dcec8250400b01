"""Counts by hand on 4 x 4 pixels, and what must hold whatever the counts are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from catseg.metrics import choose_labels, compute_metrics, count_pixels
from catseg.photo import VOID

TRUTH = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, VOID]], dtype=torch.uint8)
PREDICTION = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.uint8)
EMPTY = torch.zeros(4, 4, dtype=torch.uint8)


def score(*pairs: tuple[torch.Tensor, torch.Tensor], num_classes: int = 1) -> dict[str, float]:
    """Metrics of (prediction, truth) pairs."""
    return compute_metrics(torch.stack([count_pixels(*pair, num_classes) for pair in pairs]).numpy())


def test_hits_false_alarms_and_misses_are_counted_and_void_is_not():
    counts = count_pixels(PREDICTION, TRUTH, 1)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[2, 1, 2]]


def test_metrics_are_the_ratios_of_the_counts():
    assert score((PREDICTION, TRUTH)) == pytest.approx(
        {
            "miou": 2 / 5,
            "miou_per_photo": 2 / 5,
            "dice": 4 / 7,
            "precision": 2 / 3,
            "recall": 2 / 4,
            "undefined_classes": 0,
        }
    )


def test_perfect_prediction_scores_one():
    metrics = score((TRUTH, TRUTH))
    assert [metrics[name] for name in ("miou", "miou_per_photo", "dice", "precision", "recall")] == [1] * 5


def test_missed_cat_scores_zero_and_has_no_precision():
    metrics = score((EMPTY, TRUTH))
    assert metrics["miou"] == metrics["dice"] == metrics["recall"] == 0
    assert "precision" not in metrics


def test_empty_mask_predicted_empty_is_left_out():
    assert score((EMPTY, EMPTY)) == {"false_alarm_photos": 0, "undefined_classes": 1}
    with_cat = score((PREDICTION, TRUTH))
    assert score((PREDICTION, TRUTH), (EMPTY, EMPTY)) == with_cat | {"false_alarm_photos": 0}


def test_all_void_mask_is_left_out_whatever_is_predicted():
    void = torch.full((4, 4), VOID, dtype=torch.uint8)
    assert count_pixels(PREDICTION, void, 1).tolist() == [[0, 0, 0]]
    assert score((PREDICTION, TRUTH), (PREDICTION, void))["miou"] == 2 / 5


def test_false_alarm_lowers_the_pooled_iou_and_not_the_one_per_photo():
    metrics = score((PREDICTION, TRUTH), (PREDICTION, EMPTY))
    assert metrics["miou"] == 2 / (5 + 4)
    assert metrics["miou_per_photo"] == 2 / 5
    assert metrics["false_alarm_photos"] == 1


def test_false_alarm_photos_is_a_share_of_the_photos_without_a_cat():
    pairs = [(PREDICTION, TRUTH), (PREDICTION, EMPTY), (EMPTY, EMPTY), (EMPTY, EMPTY), (EMPTY, EMPTY)]
    assert score(*pairs)["false_alarm_photos"] == 1 / 4


def test_without_photos_without_a_cat_there_is_no_share_of_them():
    assert "false_alarm_photos" not in score((PREDICTION, TRUTH))


def test_pooled_iou_weighs_pixels_and_the_one_per_photo_weighs_photos():
    large, small = torch.ones(4, 4, dtype=torch.uint8), EMPTY.clone()
    small[0, 0] = 1
    metrics = score((large, large), (EMPTY, small))  # a large cat found, a small one missed
    assert metrics["miou"] == 16 / 17
    assert metrics["miou_per_photo"] == 1 / 2


def test_wrong_class_is_a_miss_of_one_and_a_false_alarm_of_the_other():
    truth = torch.tensor([[1, 1, 2, 2]], dtype=torch.uint8)
    prediction = torch.tensor([[1, 2, 2, 0]], dtype=torch.uint8)
    assert count_pixels(prediction, truth, 2).tolist() == [[1, 0, 1], [1, 1, 1]]
    assert score((prediction, truth), num_classes=2)["miou"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_class_that_occurs_nowhere_is_left_out_of_the_mean_and_counted():
    metrics = score((PREDICTION, TRUTH), num_classes=3)
    assert metrics["miou"] == 2 / 5
    assert metrics["undefined_classes"] == 2


def test_class_predicted_where_it_never_is_scores_zero():
    metrics = score((torch.where(PREDICTION == 1, 2, 0).to(torch.uint8), TRUTH), num_classes=2)
    assert metrics["miou"] == 0
    assert metrics["undefined_classes"] == 0


def test_counts_beyond_32_bits_are_added_up():
    counts = np.full((4, 1, 3), 2**40, np.int64)
    assert compute_metrics(counts)["miou"] == pytest.approx(1 / 3)


def test_label_is_the_highest_logit_above_zero_and_zero_itself_is_background():
    logits = torch.tensor([[[2.0, -1.0, 0.0, 1.0, -5.0]], [[1.0, 3.0, -1.0, 2.0, -4.0]]]).unsqueeze(0)
    labels = choose_labels(logits)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[[1, 2, 0, 2, 0]]]


def test_254_classes_fit_into_a_label():
    logits = torch.full((1, 254, 1, 1), -1.0)
    logits[0, 253] = 1
    assert choose_labels(logits).item() == 254


NUM_CLASSES = 3
label_maps = arrays(np.uint8, (4, 4), elements=st.integers(0, NUM_CLASSES))
truths = arrays(np.uint8, (4, 4), elements=st.sampled_from([*range(NUM_CLASSES + 1), VOID]))
photos = st.lists(st.tuples(label_maps, truths), min_size=1, max_size=5)
counts_of_photos = st.integers(1, 6).flatmap(
    lambda num: arrays(np.int64, (num, NUM_CLASSES, 3), elements=st.integers(0, 20))
)


@given(photos)
def test_counts_and_metrics_equal_those_of_sets_of_pixels(pairs):
    counts = np.zeros((len(pairs), NUM_CLASSES, 3), np.int64)
    for number, (prediction, truth) in enumerate(pairs):
        for label in range(1, NUM_CLASSES + 1):
            pixels = [(y, x) for y in range(4) for x in range(4) if truth[y, x] != VOID]
            predicted, true = ({p for p in pixels if labels[p] == label} for labels in (prediction, truth))
            counts[number, label - 1] = len(predicted & true), len(predicted - true), len(true - predicted)
    ours = torch.stack([count_pixels(torch.tensor(p), torch.tensor(t), NUM_CLASSES) for p, t in pairs])
    np.testing.assert_array_equal(ours, counts)
    hits, false, missed = counts.sum(0).T
    union = hits + false + missed
    ious = [h / u for h, u in zip(hits, union, strict=True) if u]
    metrics = compute_metrics(ours.numpy())
    assert metrics.get("miou") == pytest.approx(np.mean(ious) if ious else None)
    assert metrics["undefined_classes"] == np.count_nonzero(union == 0)
    per_photo = [h / (h + f + m) for h, f, m in counts.reshape(-1, 3).tolist() if h + m]
    assert metrics.get("miou_per_photo") == pytest.approx(np.mean(per_photo) if per_photo else None)


@given(counts_of_photos, st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order_of_photos(counts, shuffler):
    order = list(range(len(counts)))
    shuffler.shuffle(order)
    assert compute_metrics(counts[order]) == pytest.approx(compute_metrics(counts))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_metrics_do_not_depend_on_the_batch_size(num, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, NUM_CLASSES, 4, 4, generator=generator)
    truth = torch.randint(0, NUM_CLASSES + 1, (num, 4, 4), generator=generator).to(torch.uint8)
    labels = torch.cat([choose_labels(batch) for batch in torch.split(logits, batch_size)])
    assert torch.equal(labels, choose_labels(logits))
    counts = [count_pixels(*pair, NUM_CLASSES).numpy() for pair in zip(labels, truth, strict=True)]
    batches = [np.stack(counts[start : start + batch_size]) for start in range(0, num, batch_size)]
    assert compute_metrics(np.concatenate(batches)) == compute_metrics(np.stack(counts))


@given(counts_of_photos)
def test_pooled_dice_follows_from_pooled_iou(counts):
    metrics = compute_metrics(counts[:, :1])
    if "miou" in metrics:
        assert metrics["dice"] == pytest.approx(2 * metrics["miou"] / (1 + metrics["miou"]))
    else:
        assert "dice" not in metrics


@given(counts_of_photos)
def test_no_metric_is_undefined_or_outside_of_its_range(counts):
    metrics = compute_metrics(counts)
    assert 0 <= metrics.pop("undefined_classes") <= NUM_CLASSES
    assert all(0 <= value <= 1 for value in metrics.values())  # false for NaN
    assert metrics.get("miou", 0) <= metrics.get("dice", 0)
