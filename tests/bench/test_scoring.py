"""The winner on the test photos: all its seeds, once; who was looked at before; what is recorded is not done again."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bench import run, scoring
from bench.claim import hold, make_experiment_folder, start_over, take
from bench.compare import make_leaderboard
from bench.counts import parse_counts
from bench.journal import gather_counts, list_folders, read_json, read_result, read_tests
from bench.scoring import format_busy, format_winner, score_winner
from bench.trial import Finished, Trial, TrialResult, Weights
from catseg.checkpoint import ModelCard, dump_model
from catseg.dataset import load_test_set
from catseg.inference import evaluate
from catseg.metrics import compute_metrics
from catseg.settings import TrainConfig, UNetConfig
from catseg.unet import make_unet

CPU = torch.device("cpu")
FACTS = {"data": {"fingerprint": "data", "classes": ["cat"]}, "grid": "grid.yaml", "number": 0}


@pytest.fixture
def folder(tmp_path, monkeypatch, write_photos):
    """The folder of an experiment without trials, in a working folder with three test photos in `test`."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "test", 3)
    return make_experiment_folder("tiny")


def make_trial(lr, seed):
    return Trial(UNetConfig(2), TrainConfig(lr=lr, seed=seed, image_size=32, batch_size=2), ("lr", "seed"))


def finish(folder, lr, seed, hits, weights_seed=None):
    """A trial whose best model hit `hits` of 10 pixels in each of four validation photos; its weights are made up."""
    trial = make_trial(lr, seed)
    key = trial.make_key("data")
    claim = take(folder, trial, key)
    if claim.has_ended:
        claim, _ = start_over(folder, claim)
    claim.begin(trial, key, FACTS)
    model = make_unet(trial.unet, weights_seed if weights_seed is not None else round(seed + 1000 * lr))
    claim.write_event(Weights("best", 1, dump_model(model, ModelCard(trial.unet, ("cat",), 32, 1))))
    counts = tuple(((hits, 0, 10 - hits),) for _ in range(4))
    metrics = {"val/miou": hits / 10, "cost/train_seconds": 1.0}
    claim.write_event(Finished(1, metrics, ("a", "b", "c", "d"), counts, (1600,) * 4))
    files = claim.describe_files()
    result = TrialResult(key, trial.name, trial.settings, "finished", metrics, 1, None, "", {}, "data", 1.0, files)
    claim.commit(result)
    claim.release()
    return claim.folder


def finish_two_settings(folder):
    """Two seeds of each: lr=0.001 is the best by its mean, lr=0.002 has the best single seed."""
    best = [finish(folder, 0.001, 0, hits=7), finish(folder, 0.001, 1, hits=7)]
    other = [finish(folder, 0.002, 0, hits=8), finish(folder, 0.002, 1, hits=4)]
    return best, other


def make_board(folder, choose=lambda settings: True):
    results = [result for path in list_folders(folder).values() if (result := read_result(path))]
    results = [result for result in results if choose(result.settings)]
    return make_leaderboard(results, gather_counts(folder, results))


def score(folder, lr=None):
    """Score the best setting, or the best one with this learning rate."""
    return score_winner(folder, make_board(folder, lambda settings: lr in (None, settings["lr"])), "test", "cpu")


@pytest.fixture
def forbid_scoring(monkeypatch):
    def forbid():
        def refuse(*arguments):
            raise AssertionError("scored again")

        monkeypatch.setattr(run, "score_test", refuse)

    return forbid


@pytest.fixture
def clock(monkeypatch):
    """clock(day): it is noon of that day in 2026."""

    def turn(day):
        monkeypatch.setattr(scoring.time, "time_ns", lambda: (1_767_268_800 + 86_400 * (day - 1)) * 1_000_000_000)

    return turn


# --- what is scored ------------------------------------------------------------------------------------------------


def test_all_seeds_of_the_setting_with_the_best_mean_are_scored_and_nobody_else(folder):
    best, other = finish_two_settings(folder)
    found = score(folder)
    assert (found.name, found.seeds, found.folders) == ("lr=0.001", (0, 1), tuple(best))
    photos, fingerprint = load_test_set("test", ("cat",), 32)
    for seed, path in enumerate(best):
        _, counts_NK3 = evaluate(make_unet(UNetConfig(2), seed + 1), photos, "dice", 3, "auto", CPU)
        expected = compute_metrics(counts_NK3)
        assert found.metrics[seed] == pytest.approx({f"test/{name}": value for name, value in expected.items()})
        kept = read_json(path / "test.json")
        assert (kept["test"], kept["fingerprint"], kept["metrics"]) == ("test", fingerprint, found.metrics[seed])
        assert parse_counts(kept).counts_NK3.tolist() == counts_NK3.tolist()
        assert kept["valid_pixels"] == {"cat0": 1600, "cat1": 1600, "cat2": 1600}
    assert not [path for path in other if (path / "test.json").exists()]


def test_the_score_is_the_mean_over_the_seeds_with_an_interval_around_it(folder):
    finish_two_settings(folder)
    found = score(folder)
    assert found.score.value == pytest.approx(np.mean([metrics["test/miou"] for metrics in found.metrics]))
    assert found.score.low < found.score.value < found.score.high
    assert found.num_photos == 3


def test_the_settings_tried_are_counted_by_setting_failed_ones_too(folder):
    finish_two_settings(folder)
    assert score(folder).num_settings == 2
    board = make_board(folder)
    result = board.rows[0].results[0]
    settings = [result.settings | {"lr": lr, "seed": seed} for lr in (0.002, 0.5) for seed in (0, 1)]
    failed = tuple(dataclasses.replace(result, settings=each, status="failed") for each in settings)
    assert score_winner(folder, dataclasses.replace(board, failed=failed), "test", "cpu").num_settings == 3


def test_test_photos_that_are_not_there_are_refused_in_one_line(folder, refusal):
    finish_two_settings(folder)
    assert refusal(score_winner, folder, make_board(folder), "absent", "cpu").startswith("absent: no such folder")


# --- what is recorded ----------------------------------------------------------------------------------------------


def test_the_same_weights_are_not_scored_on_the_same_photos_again_whatever_the_folder_is_called(folder, forbid_scoring):
    finish_two_settings(folder)
    first = score(folder)
    assert not first.is_recorded
    forbid_scoring()
    shutil.move("test", "renamed")
    again = score_winner(folder, make_board(folder), "renamed", "cpu")
    assert again == dataclasses.replace(first, source="renamed", is_recorded=True)


def test_other_photos_under_the_same_name_are_other_photos(folder):
    best, _ = finish_two_settings(folder)
    first = score(folder)
    with Image.open("test/cat0.png") as image:
        photo_HW3 = np.array(image)
    photo_HW3[0, 0] ^= 1
    Image.fromarray(photo_HW3).save("test/cat0.png")
    second = score(folder)
    assert (second.is_recorded, second.others) == (False, ())
    kept = read_tests(best[0])
    assert len({scoring["fingerprint"] for scoring in kept}) == len(kept) == 2
    assert kept[0]["metrics"] == first.metrics[0]
    assert read_json(best[0] / "test.json")["metrics"] == second.metrics[0]  # what MLflow is sent


def test_half_a_look_is_none(folder, monkeypatch):
    best, _ = finish_two_settings(folder)
    score_test, calls = run.score_test, []

    def fall_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score_test(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "score_test", fall_at_the_second)
        score(folder)
    assert not [path for path in best if (path / "test.json").exists()]
    assert score(folder).others == ()


# --- who was looked at before --------------------------------------------------------------------------------------


def test_another_setting_that_was_scored_on_these_photos_is_named_with_its_day(folder, clock):
    finish_two_settings(folder)
    clock(3)
    score(folder, lr=0.002)
    clock(5)
    lines = format_winner(score(folder))
    assert lines[1] == "These test photos were looked at before by lr=0.002 on 2026-01-03; this is look 2."
    assert "as scored on" not in lines[0]
    clock(9)
    lines = format_winner(score(folder, lr=0.002))
    assert lines[0].endswith(", as scored on 2026-01-03")
    assert lines[1] == "These test photos were looked at since by lr=0.001 on 2026-01-05; this is look 1 of 2."


def test_a_setting_done_anew_is_a_second_look_at_the_photos(folder, clock):
    finish(folder, 0.001, 0, hits=7)
    clock(3)
    score(folder)
    finish(folder, 0.001, 0, hits=7, weights_seed=77)
    clock(4)
    second = score(folder)
    assert not second.is_recorded
    assert "looked at before by" in format_winner(second)[1]
    assert "2026-01-03; this is look 2." in format_winner(second)[1]


def test_a_seed_that_came_later_is_scored_alone_and_is_a_second_look(folder, clock):
    finish_two_settings(folder)
    clock(3)
    first = score(folder)
    finish(folder, 0.001, 2, hits=8)
    clock(4)
    second = score(folder)
    assert second.metrics[:2] == first.metrics
    assert (second.seeds, [look.name for look in second.others]) == ((0, 1, 2), ["lr=0.001"])


def test_a_score_from_before_photos_had_fingerprints_is_a_look_and_is_kept(folder):
    best, other = finish_two_settings(folder)
    for path, metrics in ((best[0], {"test/miou": 0.5}), (other[1], {"test/miou": 0.25})):
        (path / "test.json").write_text(json.dumps({"test": "test", "metrics": metrics}))
        os.utime(path / "test.json", (1_767_268_800, 1_767_268_800))
    found = score(folder)
    assert not found.is_recorded
    assert [look.name for look in found.others] == ["lr=0.001", "lr=0.002"]
    assert [(kept["test"], kept["metrics"], kept["time_ms"]) for kept in read_tests(best[0])[:1]] == [
        ("test", {"test/miou": 0.5}, 1_767_268_800_000)
    ]
    assert [kept["time_ms"] for kept in read_tests(best[0])][1] == found.time_ms


def test_only_the_last_of_many_looks_are_named(folder, clock):
    for number in range(1, 6):
        finish(folder, number / 1000, 0, hits=number)
        clock(number)
        found = score(folder)
    assert format_winner(found)[1] == (
        "These test photos were looked at before by lr=0.002 on 2026-01-02, lr=0.003 on 2026-01-03, "
        "lr=0.004 on 2026-01-04 and 1 more; this is look 5."
    )


# --- other sessions ------------------------------------------------------------------------------------------------


def test_a_winner_that_another_session_is_at_work_on_is_not_scored(folder, forbid_scoring):
    best, _ = finish_two_settings(folder)
    board = make_board(folder)
    forbid_scoring()
    with hold(best[1] / "lock"):
        assert score_winner(folder, board, "test", "cpu") is None
    assert "at work on lr=0.001;" in format_busy(board)


def test_a_winner_that_was_done_anew_since_the_choice_is_not_scored(folder, forbid_scoring):
    finish_two_settings(folder)
    board = make_board(folder)
    finish(folder, 0.001, 1, hits=2, weights_seed=77)
    forbid_scoring()
    assert score_winner(folder, board, "test", "cpu") is None


# --- lines ---------------------------------------------------------------------------------------------------------


def test_the_line_says_setting_number_tried_score_interval_photos_and_seeds(folder):
    finish_two_settings(folder)
    found = score(folder)
    (line,) = format_winner(found)
    first, second = (f"{metrics['test/miou']:.3f}" for metrics in found.metrics)
    assert line.startswith("Test: val/miou chose lr=0.001, of 2 settings tried; test/miou ")
    assert f"test/miou {found.score.value:.3f} on test (95 %: " in line
    assert line.endswith(f"; 3 photos, mean of 2 seeds: {first}, {second})")
    (alone,) = format_winner(dataclasses.replace(found, seeds=(0,), metrics=found.metrics[:1], num_settings=1))
    assert "the only setting tried" in alone
    assert alone.endswith("; 3 photos, 1 seed: of the photos alone)")


def test_the_interval_is_shown_within_what_a_score_can_be(folder):
    finish_two_settings(folder)
    found = score(folder)
    wide = dataclasses.replace(found, score=dataclasses.replace(found.score, low=-0.2, high=1.3))
    assert "(95 %: 0.000 .. 1.000;" in format_winner(wide)[0]
