"""Words on MLflow's pages: short, true, and never in the way of what somebody else wrote."""

import numpy as np
import pytest

from bench.compare import make_leaderboard
from bench.description import (
    BOARD_HEADING,
    MAX_NOTE_CHARACTERS,
    NUM_RANKED,
    describe_data,
    format_board_note,
    format_run_note,
    join_note,
    list_places,
    name_setting,
)
from bench.trial import TrialResult

COSTS = {"cost/train_seconds": 2.0, "cost/peak_mib": 100.0, "cost/parameters": 30751.0}


def make_result(lr, seed, miou, status="finished"):
    settings = {"lr": lr, "loss": "dice", "seed": seed, "epochs": 3}
    metrics = {"val/miou": miou} | COSTS if status == "finished" else {}
    failure = None if status == "finished" else "oom"
    name = f"lr={lr} seed={seed}"
    return TrialResult(f"{lr}-{seed}", name, settings, status, metrics, 2, failure, "no memory", {}, "data")


def make_board(*settings):
    """A leaderboard of (lr, seed, percent of all pixels that are hits)."""
    results = [make_result(lr, seed, percent / 100) for lr, seed, percent in settings]
    spread = np.array([[[1, 0, -1]], [[-1, 0, 1]], [[2, 0, -2]], [[-2, 0, 2]]])
    counts = {
        result.key: np.array([[[percent, 0, 100 - percent]]] * 4) + spread
        for result, (_, _, percent) in zip(results, settings, strict=True)
    }
    return make_leaderboard(results, counts)


SEEDS = [(0.1, 0, 80), (0.1, 1, 81), (0.1, 2, 82), (0.2, 0, 30), (0.2, 1, 31), (0.2, 2, 32)]


def test_a_setting_is_named_without_its_seed():
    assert name_setting("loss=dice lr=0.1 seed=3") == "dice 0.1"
    assert name_setting("seed=3") == "one setting"


def test_the_first_line_says_what_leads_for_it_is_all_that_a_folded_description_shows():
    first = format_board_note(make_board(*SEEDS)).splitlines()[0]
    assert first == f"{BOARD_HEADING} **lr = 0.1** leads with val/miou **0.810**; tied with it: 0 of 1 others"


def test_one_seed_is_called_an_order_and_no_comparison():
    note = format_board_note(make_board((0.1, 0, 80), (0.2, 0, 30)))
    assert "nobody knows" in note.splitlines()[0]
    assert "an order, not a comparison" in note


def test_a_leaderboard_too_long_for_mlflow_loses_its_last_rows_and_says_so():
    board = make_board(*((number / 1000, 0, 5 + number % 90) for number in range(1, 400)))
    note = format_board_note(board)
    num_rows = sum(line.startswith("|") for line in note.splitlines()) - 2
    assert len(note) < MAX_NOTE_CHARACTERS + 200
    assert f"{399 - num_rows} settings further down are left out" in note
    assert len(list_places(board)) == NUM_RANKED


def test_what_somebody_wrote_above_ours_stays_and_ours_is_written_anew():
    first, second = format_board_note(make_board(*SEEDS)), format_board_note(make_board((0.1, 0, 80), (0.2, 0, 30)))
    assert join_note("", first) == first
    assert join_note("Street cats, see the wiki.\n\n" + first, second) == "Street cats, see the wiki.\n\n" + second
    note = format_run_note({"name": "lr=0.1", "settings": {"epochs": 3}, "grid": "g.yaml"}, None)
    assert join_note("Settings that vary: lr=0.1", note) == note


def test_a_run_says_what_it_is_what_came_of_it_and_how_its_setting_stands():
    settings = {"name": "lr=0.1 seed=0", "settings": {"epochs": 3}, "grid": "g.yaml"}
    places = list_places(make_board(*SEEDS))
    note = format_run_note(settings, make_result(0.1, 0, 0.8), places["0.1-0"])
    assert note.splitlines() == [
        "Settings that vary: **lr = 0.1, seed = 0**",
        "",
        "- val/miou **0.800**, after epoch 2 of 3",
        "- rank 1 of 2 settings, the mean of 3 seeds 0.810: best",
        "- a trial of `g.yaml`",
    ]
    assert "- failed: oom: no memory" in format_run_note(settings, make_result(0.1, 0, 0.0, "failed"))


DATA = {"fingerprint": "0123456789abcdef", "train_photos": 9, "val_photos": 3, "classes": ["cat"]}


@pytest.mark.parametrize(
    ("train", "val", "is_same", "names"),
    [
        ("photos/street", "photos/yard", False, ["street", "yard"]),
        ("sample", None, False, ["sample", "sample, held out"]),
        ("a/cats", "b/cats", False, ["cats", "cats, for validation"]),
        ("cats", "train", True, ["cats", "cats, the same photos"]),
    ],
)
def test_training_and_validation_photos_have_two_names_and_one_digest(train, val, is_same, names):
    described = describe_data(DATA | {"train": train, "val": val, "val_is_train": is_same})
    assert [photos.name for photos in described] == names
    assert [photos.context for photos in described] == ["training", "validation"]
    assert {photos.digest for photos in described} == {"0123456789abcdef"}
