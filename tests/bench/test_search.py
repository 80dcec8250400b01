"""Which settings a search keeps, what it saved and lost, and that a rung is never ranked: rules, without training."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import make_leaderboard, rank
from bench.page import list_stopped as list_stopped_html
from bench.search import (
    add_rung,
    choose_kept,
    compute_cost,
    forecast_cost,
    format_choice,
    format_cost,
    format_forecast,
    format_regret,
    format_search,
    make_rung,
    match_rung,
)
from bench.table import format_csv, format_json, format_markdown, print_leaderboard
from bench.terminal import make_console
from bench.trial import Experiment, Halving, Trial, TrialResult
from catseg.dataset import DataConfig
from catseg.settings import TrainConfig, UNetConfig
from tests.leaderboards import fail, finish, make_counts

LRS = (0.001, 0.002, 0.004, 0.008)
EPOCHS = 10


def make_experiment(lrs=LRS, seeds=(3, 4), first_epochs=2, keep=2):
    trials = tuple(
        Trial(UNetConfig(8), TrainConfig(lr=lr, seed=seed, epochs=EPOCHS), ("lr", "seed"))
        for lr in lrs
        for seed in seeds
    )
    return Experiment("grid.yaml", "tiny", DataConfig("photos"), trials, 60.0, Halving(first_epochs, keep))


def end(trial, miou=None, seconds=1.0):
    """A trial's result: finished with that score, or failed."""
    status = "failed" if miou is None else "finished"
    metrics = {} if miou is None else {"val/miou": miou, "cost/train_seconds": seconds}
    failure = "nonfinite" if miou is None else None
    return TrialResult(
        trial.make_key("data"),
        trial.name,
        trial.settings,
        status,
        metrics,
        1,
        failure,
        "",
        {},
        seconds=seconds,
        is_rung=trial.is_rung,
    )


def score_rung(experiment, mious):
    return {trial: end(trial, miou) for trial, miou in zip(make_rung(experiment), mious, strict=True)}


def list_lrs(trials):
    return [trial.train.lr for trial in trials]


# --- the rung ------------------------------------------------------------------------------------------------------


def test_a_rung_is_a_short_training_of_each_setting_with_its_first_seed_and_its_own_schedule():
    rung = make_rung(make_experiment())
    assert list_lrs(rung) == list(LRS)
    assert {(t.train.epochs, t.train.seed, t.train.schedule, t.is_rung) for t in rung} == {(2, 3, "one_cycle", True)}
    assert rung[0].name == "lr=0.001 seed=3 epochs=2"


def test_a_rung_and_a_training_in_full_that_is_as_short_are_two_trials():
    (short, *_) = make_rung(make_experiment())
    assert short.make_key("data") != dataclasses.replace(short, is_rung=False).make_key("data")


def test_a_trial_without_a_search_keeps_the_key_that_it_had():
    assert Trial(UNetConfig(8), TrainConfig(), ()).make_key("data") == "667f46bac1"


def test_a_rung_does_not_depend_on_how_long_the_training_in_full_is():
    longer = [dataclasses.replace(t, train=dataclasses.replace(t.train, epochs=50)) for t in make_experiment().trials]
    keys = [trial.make_key("data") for trial in make_rung(make_experiment())]
    assert [t.make_key("d") for t in longer] != [t.make_key("d") for t in make_experiment().trials]
    assert [
        trial.make_key("data") for trial in make_rung(dataclasses.replace(make_experiment(), trials=tuple(longer)))
    ] == keys


def test_every_trial_has_a_number_of_its_own_the_grids_first():
    experiment = make_experiment()
    assert add_rung(experiment).trials == (*experiment.trials, *make_rung(experiment))
    assert {short.train.lr == trial.train.lr for trial, short in match_rung(experiment).items()} == {True}


# --- the choice ----------------------------------------------------------------------------------------------------

SCORES = st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=8)


@given(SCORES, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_choice_is_a_function_of_the_scores_alone_and_keeps_the_best(mious, keep, random):
    experiment = make_experiment([0.001 * (n + 1) for n in range(len(mious))], keep=keep)
    results = score_rung(experiment, mious)
    shuffled = list(results.items())
    random.shuffle(shuffled)
    kept = choose_kept(experiment, results)
    assert choose_kept(experiment, dict(shuffled)) == kept
    assert kept == tuple(trial for trial in experiment.trials if trial in kept)  # in the grid's order
    places = {index for index, lr in enumerate(dict.fromkeys(list_lrs(experiment.trials))) if lr in list_lrs(kept)}
    assert len(kept) == 2 * len(places)  # with all their seeds
    assert len(places) == min(keep, sum(miou is not None for miou in mious))
    for place, miou in enumerate(mious):
        if miou is not None and place not in places:  # nobody kept is worse, and equals come earlier
            assert all(mious[other] > miou or (mious[other] == miou and other < place) for other in places)
        assert miou is not None or place not in places


def test_results_of_trainings_in_full_change_no_choice():
    experiment = make_experiment()
    results = score_rung(experiment, [0.1, 0.4, 0.3, 0.2])
    kept = choose_kept(experiment, results)
    assert list_lrs(kept) == [0.002, 0.002, 0.004, 0.004]
    assert choose_kept(experiment, results | {trial: end(trial, 0.9) for trial in experiment.trials[:2]}) == kept


def test_what_was_chosen_is_said_with_its_short_scores():
    experiment = make_experiment()
    assert format_search(experiment) == (
        "Search: 4 settings for 2 epochs with seed 3, then the best 2 for all 10, with all seeds"
    )
    assert format_choice(experiment, score_rung(experiment, [0.1, 0.4, 0.3, 0.2])) == (
        "Kept: 2 of 4 settings: lr=0.002 (0.400); lr=0.004 (0.300)"
    )
    alike = format_choice(experiment, score_rung(experiment, [0.2, 0.4, 0.2003, 0.2]))
    assert alike.endswith(
        "lr=0.002 (0.400); lr=0.004 (0.200); "
        "2 that were stopped had the same score as the last of these: more first_epochs would tell"
    )
    nothing = format_choice(experiment, score_rung(experiment, [None] * 4))
    assert nothing == "Kept: no setting, for every short training failed"


# --- the cost ------------------------------------------------------------------------------------------------------


def test_the_cost_of_the_full_grid_is_reckoned_from_each_settings_own_rung():
    experiment = make_experiment(first_epochs=2, keep=1)
    rung = make_rung(experiment)
    results = {t: end(t, miou, 3.0) for t, miou in zip(rung, [0.1, 0.4, 0.3, None], strict=True)}
    results |= {trial: end(trial, 0.5, 12.0) for trial in choose_kept(experiment, results)}
    cost = compute_cost(experiment, results, {trial: [1.5, 1.0, 1.0] for trial in rung})
    assert cost.rung_seconds == 4 * 3.0
    assert cost.kept_seconds == 2 * 12.0
    # two settings that were stopped: 3 s and 8 epochs of 1 s more, two seeds; the one that failed after 3 s, twice
    assert cost.full_seconds == 2 * 12.0 + 2 * 2 * (3.0 + 8 * 1.0) + 2 * 3.0
    assert cost.num_estimated == 6
    assert format_cost(cost) == (
        "Search: 12 s for the rung and 24 s for what was kept, 36 s in all; "
        "the full grid: 1 min 14 s (6 of its trials by the rates of their rung); 48.6% of its cost, 51% saved"
    )


def test_what_was_trained_in_full_is_measured_and_a_search_that_saves_nothing_says_so():
    experiment = make_experiment(keep=2)
    results = score_rung(experiment, [0.1, 0.2, 0.3, 0.4])
    results |= {trial: end(trial, 0.5, 0.5) for trial in experiment.trials}
    cost = compute_cost(experiment, results, {})
    assert (cost.full_seconds, cost.num_estimated) == (4.0, 0)
    assert cost.share == 1.5
    assert "(measured); 150.0% of its cost, nothing saved: fewer epochs first, or keep fewer" in format_cost(cost)


def test_a_forecast_counts_mean_settings_the_dearest_ones_and_what_is_decided():
    experiment = make_experiment(keep=1)
    seconds = {trial: trial.train.lr * 1000 * trial.train.epochs for trial in add_rung(experiment).trials}
    likely, dearest = forecast_cost(experiment, (), seconds)
    assert likely.full_seconds == dearest.full_seconds == 2 * 10 * 15
    assert likely.rung_seconds == dearest.rung_seconds == 2 * 15
    assert (likely.kept_seconds, dearest.kept_seconds) == (300 / 4, 160)
    assert format_forecast(likely, dearest) == (
        "Search: about 30 s for the rung and 1 min 15 s for what is kept; the full grid: about 5 min 00 s; "
        "35% of its cost, 63% if the dearest are kept"
    )
    kept = [trial for trial in experiment.trials if trial.train.lr == 0.002]
    assert [cost.kept_seconds for cost in forecast_cost(experiment, kept, seconds)] == [40, 40]


# --- the regret ----------------------------------------------------------------------------------------------------


def make_full_board(mious, num_seeds=2):
    experiment = make_experiment(seeds=range(num_seeds))
    results = [
        finish(miou + 0.01 * seed, seed, lr=lr, epochs=EPOCHS)
        for lr, miou in zip(LRS, mious, strict=True)
        for seed in range(num_seeds)
    ]
    return experiment, make_leaderboard(results, make_counts(results, 0.1))


def pick(experiment, *lrs):
    return [trial for trial in experiment.trials if trial.train.lr in lrs]


def test_a_search_that_keeps_the_winner_has_no_regret():
    experiment, board = make_full_board([0.5, 0.6, 0.4, 0.3])
    assert format_regret(board, pick(experiment, 0.002, 0.001)) == (
        "Regret: none: the search chose the full grid's winner, lr=0.002, val/miou 0.605"
    )


def test_a_search_that_loses_the_winner_says_by_how_much_and_whether_that_is_told_apart():
    experiment, board = make_full_board([0.597, 0.6, 0.4, 0.3])
    line = format_regret(board, pick(experiment, 0.001, 0.004))
    assert line.startswith(
        "Regret: the full grid is won by lr=0.002, val/miou 0.605; the search chose lr=0.001, 0.602: -0.003 (95 %: -0."
    )
    assert line.endswith("), tied")
    assert format_regret(board, pick(experiment, 0.004, 0.008)).endswith("), worse")


def test_with_one_seed_nobody_knows_what_was_lost():
    experiment, board = make_full_board([0.5, 0.6, 0.4, 0.3], num_seeds=1)
    assert format_regret(board, pick(experiment, 0.001)).endswith("), one seed, so nobody knows")


def test_a_search_whose_kept_settings_all_failed_has_nothing_to_compare():
    experiment, board = make_full_board([0.5, 0.6, 0.4, 0.3])
    assert "nothing that was kept has finished" in format_regret(board, pick(make_experiment(lrs=[0.5]), 0.5))
    assert experiment.search.keep == 2


# --- never ranked --------------------------------------------------------------------------------------------------


def shorten(result):
    return dataclasses.replace(result, is_rung=True)


@pytest.fixture
def halved():
    """Two settings in full, four that were stopped or failed; the best of all scores is a short one's."""
    full = [finish(0.5 + 0.01 * seed, seed, lr=lr, epochs=EPOCHS) for lr in (0.002, 0.004) for seed in (0, 1)]
    short = [finish(0.9 - lr, 0, lr=lr, epochs=2) for lr in (0.001, 0.002, 0.004, 0.008)]
    failed = fail(lr=0.5, epochs=2)
    results = [*full, *map(shorten, [*short, failed])]
    return results, make_leaderboard(results, make_counts(results, 0.1))


def test_rungs_have_no_row_and_no_part_in_effects_and_axes(halved):
    results, board = halved
    assert [row.settings["lr"] for row in board.rows] == [0.002, 0.004]
    assert {row.settings["epochs"] for row in board.rows} == {EPOCHS}
    assert board.varying == ("lr",)
    assert [(effect.before, effect.after) for effect in board.effects] == [(0.002, 0.004)]
    assert {result.is_rung for result in rank(results)} == {False}
    assert [result.settings["lr"] for result in board.failed] == [0.5]
    alone = [result for result in results if not result.is_rung]
    assert board.rows == make_leaderboard(alone, make_counts(alone, 0.1)).rows


def test_a_setting_with_nothing_but_a_rung_was_stopped_unless_it_is_being_trained(halved):
    results, board = halved
    assert [(each.settings["lr"], each.state) for each in board.stopped] == [
        (0.001, "stopped after 2 epochs"),
        (0.008, "stopped after 2 epochs"),
    ]
    begun = [finish(lr=0.008, epochs=EPOCHS).settings]
    board = make_leaderboard(results, make_counts(results), begun)
    assert [each.settings["lr"] for each in board.stopped] == [0.001]
    longer = [*results, shorten(finish(0.7, lr=0.001, epochs=5))]
    board = make_leaderboard(longer, make_counts(longer))
    assert [(each.settings["lr"], each.settings["epochs"]) for each in board.stopped] == [(0.008, 2), (0.001, 5)]


def test_where_nothing_was_trained_in_full_there_is_no_leaderboard_but_what_stopped():
    results = [shorten(finish(0.5, lr=lr, epochs=1)) for lr in LRS]
    board = make_leaderboard(results, make_counts(results))
    assert (board.rows, board.varying) == ((), ("lr",))
    assert [each.state for each in board.stopped] == ["stopped after 1 epoch"] * 4
    assert "epochs" not in format_markdown(board)


def test_every_form_of_the_leaderboard_shows_the_stopped_apart(halved, capsys):
    _, board = halved
    lines = [f"stopped after 2 epochs, not ranked: lr={lr}, val/miou then {0.9 - lr:.3f}" for lr in (0.001, 0.008)]
    print_leaderboard(make_console(), board)
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if line.startswith("stopped")] == lines
    assert [line[2:] for line in format_markdown(board).splitlines() if line.startswith("- stopped")] == lines
    rows = [line.split(",") for line in format_csv(board).splitlines()]
    place, verdict = rows[0].index("rank"), rows[0].index("verdict")
    assert [(row[place], row[verdict]) for row in rows[1:]] == [
        ("1", "best"),
        ("1", "tied"),
        ("", "stopped after 2 epochs"),
        ("", "stopped after 2 epochs"),
    ]
    assert [row[rows[0].index("val/miou")] for row in rows[3:]] == ["", ""]
    content = json.loads(format_json(board))
    assert [each["lr"] for each in content["stopped"]] == [0.001, 0.008]
    assert "rank" not in content["stopped"][0]
    assert "lr=0.001: stopped after 2 epochs, val/miou then 0.899" in list_stopped_html(board)
