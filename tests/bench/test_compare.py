"""Which setting is best, what is tied with it, and what each axis does, on results made by hand."""

import pytest

from bench.compare import find_machine, list_failed, make_leaderboard, rank, sort_values
from tests.leaderboards import HERE, THERE, fail, finish, make_board, make_counts


def test_the_best_miou_ranks_first_and_equals_by_what_they_cost():
    dear, cheap, best, poor = (
        finish(miou, seconds=seconds) for miou, seconds in ((0.5, 20.0), (0.5, 10.0), (0.75, 90.0), (0.25, 1.0))
    )
    assert rank([dear, poor, cheap, best]) == [best, cheap, dear, poor]


def test_what_failed_is_in_no_ranking_and_is_listed_in_its_order():
    good, bad, worse = finish(), fail(lr=0.1), fail(lr=0.2)
    assert rank([bad, good, worse]) == [good]
    assert list_failed([bad, good, worse]) == [bad, worse]
    assert rank([]) == []
    board = make_board([bad, good, worse])
    assert [row.results for row in board.rows] == [(good,)]
    assert board.failed == (bad, worse)
    assert board.varying == ("lr",)


def test_seeds_are_folded_into_a_row_per_setting_by_their_mean():
    results = [
        finish(miou, seed, lr=lr)
        for lr, mious in ((0.1, (0.5, 0.6)), (0.2, (0.7, 0.3)))
        for seed, miou in enumerate(mious)
    ]
    board = make_board(results[::-1])
    assert [(row.settings["lr"], row.seeds, row.mious) for row in board.rows] == [
        (0.1, (0, 1), (0.5, 0.6)),
        (0.2, (0, 1), (0.7, 0.3)),
    ]
    assert [row.score.value for row in board.rows] == pytest.approx([0.55, 0.5])
    assert board.rows[0].sd == pytest.approx(0.0707, abs=1e-4)
    assert board.rows[1].best_result.settings["seed"] == 0
    assert "seed" not in board.rows[0].settings


def test_what_cannot_be_told_from_the_best_shares_its_rank():
    """The second is within the seeds of the first, the third far below."""
    mious = {0.1: (0.60, 0.64, 0.62), 0.2: (0.63, 0.59, 0.61), 0.3: (0.30, 0.33, 0.31)}
    board = make_board([finish(miou, seed, lr=lr) for lr, row in mious.items() for seed, miou in enumerate(row)])
    assert [(row.settings["lr"], row.rank, row.is_tied) for row in board.rows] == [
        (0.1, 1, True),
        (0.2, 1, True),
        (0.3, 3, False),
    ]
    assert board.rows[0].to_best is None
    assert board.rows[2].to_best.value == pytest.approx(-0.307, abs=0.001)
    assert board.rows[2].to_best.high < 0


def test_one_seed_is_no_comparison_whatever_the_difference():
    board = make_board([finish(0.9, lr=0.1), finish(0.1, lr=0.2)])
    assert [(row.rank, row.is_tied, row.sd) for row in board.rows] == [(1, None, None), (2, None, None)]
    assert not board.has_spread


def test_a_setting_with_one_seed_among_others_with_more_gets_no_verdict_and_a_place():
    results = [finish(0.6, 0, lr=0.1), finish(0.61, 1, lr=0.1), finish(0.2, 0, lr=0.2)]
    board = make_board(results)
    assert board.has_spread
    assert [(row.rank, row.is_tied) for row in board.rows] == [(1, True), (2, None)]


def test_an_effect_is_the_mean_over_all_pairs_that_differ_in_that_alone():
    """Doubling the width adds 0.1 and 0.2; a rate without its partner takes no part."""
    mious = {(8, 0.1): 0.4, (16, 0.1): 0.5, (8, 0.2): 0.3, (16, 0.2): 0.5, (8, 0.3): 0.1}
    results = [
        finish(miou + 0.001 * seed, seed, init_features=width, lr=lr)
        for (width, lr), miou in mious.items()
        for seed in (0, 1)
    ]
    board = make_board(results)
    found = {(effect.setting, effect.before, effect.after): effect for effect in board.effects}
    assert found.keys() == {("init_features", 8, 16), ("lr", 0.1, 0.2), ("lr", 0.2, 0.3)}
    width = found["init_features", 8, 16]
    assert (width.change.value, width.num_pairs, width.num_seeds) == (pytest.approx(0.15), 2, 2)
    assert found["lr", 0.1, 0.2].change.value == pytest.approx(-0.05)
    assert found["lr", 0.2, 0.3].num_pairs == 1


def test_the_steps_of_an_axis_go_from_the_smaller_number_to_the_larger():
    board = make_board([finish(0.5, init_features=width) for width in (16, 8, 128)])
    assert [(effect.before, effect.after) for effect in board.effects] == [(8, 16), (16, 128)]


def test_timings_of_unlike_machines_have_no_common_median():
    results = [finish(0.5, 0, 10.0), finish(0.5, 1, 90.0, THERE), finish(0.5, 2, 12.0)]
    board = make_board(results)
    (row,) = board.rows
    assert list(board.machines) == ["here", "there"]
    assert board.machines["there"].startswith("Other CPU")
    assert row.find_median("cost/train_seconds", "here") == 11
    assert row.find_median("cost/train_seconds", "there") == 90
    assert row.find_median("cost/train_seconds", "nowhere") is None


def test_a_trial_that_ran_on_several_machines_is_no_machines_timing():
    mixed = finish(environment=HERE | {"machine_fingerprint": "mixed"})
    assert find_machine(mixed) == "mixed"
    assert make_board([mixed]).machines == {}


def test_a_result_without_counts_is_left_out():
    kept, lost = finish(0.5, lr=0.1), finish(0.6, lr=0.2)
    board = make_leaderboard([kept, lost], make_counts([kept]))
    assert [row.results for row in board.rows] == [(kept,)]


def test_nothing_finished_is_an_empty_board():
    board = make_board([fail()])
    assert (board.rows, board.effects, board.machines) == ((), (), {})
    assert len(board.failed) == 1


def test_values_of_a_setting_stand_in_order_the_one_that_is_off_first():
    assert sort_values([96, None, 64, 96]) == [None, 64, 96]
    assert sort_values(["b", "a"]) == ["a", "b"]
    assert sort_values([True, False]) == [False, True]
