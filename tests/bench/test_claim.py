"""Who holds a trial may write in its folder; what is written there is whole or absent, whatever stops the writer."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import journal
from bench.claim import make_experiment_folder, remove_old_checkpoints, start_over, take
from bench.journal import list_folders, read_history, read_result, read_settings
from bench.trial import (
    LATER_SETTINGS,
    Checkpoint,
    EpochDone,
    Failed,
    Finished,
    Overlays,
    Started,
    Trial,
    TrialResult,
    Weights,
)
from catseg.settings import TrainConfig, UNetConfig

TRIAL = Trial(UNetConfig(2), TrainConfig(image_size=32, epochs=2), ("lr", "loss"))
KEY = TRIAL.make_key("data")
FACTS = {"data": {"fingerprint": "data"}, "grid": "grid.yaml", "number": 0}
RESULT = TrialResult(
    key=KEY,
    name=TRIAL.name,
    settings=TRIAL.settings,
    status="finished",
    metrics={"val/miou": 0.5, "cost/train_seconds": 1.5},
    best_epoch=2,
    failure=None,
    reason="",
    environment={"torch": "2"},
)
STARTED = Started("cpu", "float32", {"code": "abc", "torch": "2"})


@pytest.fixture
def experiment_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_experiment_folder("tiny")


@pytest.fixture
def hold_trial(experiment_folder):
    """hold_trial(trial, key): what `take` gives, let go of at the end of the test."""
    held = []

    def hold(trial=TRIAL, key=KEY):
        claim = take(experiment_folder, trial, key)
        if claim is not None:
            held.append(claim)
        return claim

    yield hold
    for claim in held:
        claim.release()


@pytest.fixture
def begin(hold_trial):
    """The trial's folder, held and made ready, as a fresh `bench run` does it after the end of another."""
    held = []

    def make(trial=TRIAL):
        for claim in held:
            claim.release()
        claim = hold_trial(trial)
        held.append(claim)
        claim.begin(trial, KEY, FACTS)
        return claim

    return make


def test_a_result_comes_back_as_it_was_committed(begin):
    claim = begin()
    claim.write_event(Weights("best", 2, b"weights"))
    result = dataclasses.replace(RESULT, files=claim.describe_files())
    claim.commit(result)
    assert result.files["best.safetensors"]["num_bytes"] == 7
    assert read_result(claim.folder) == result


def test_a_result_from_before_a_setting_came_is_one_of_as_before(begin):
    """Its key was made without the setting, and so is the key that it is looked for by now."""
    claim = begin()
    settings = {name: value for name, value in TRIAL.settings.items() if name not in LATER_SETTINGS}
    assert settings != TRIAL.settings
    claim.commit(dataclasses.replace(RESULT, settings=settings))
    assert read_result(claim.folder) == RESULT
    lighter = dataclasses.replace(RESULT, settings=TRIAL.settings | {"augment": "light"})
    claim.commit(lighter)
    assert read_result(claim.folder) == lighter


def test_a_trial_that_was_never_run_or_not_committed_has_no_result(begin, experiment_folder):
    assert read_result(None) is None
    assert read_result(experiment_folder / "no such folder") is None
    claim = begin()
    claim.write_event(Weights("best", 1, b"weights"))
    assert read_result(claim.folder) is None


def test_a_folder_is_named_so_that_a_person_and_a_program_find_it(begin, experiment_folder):
    folder = begin().folder
    assert folder.name == f"lr=0.002,loss=bce_dice-{KEY}"
    assert list_folders(experiment_folder) == {KEY: folder}


def test_a_result_is_found_under_the_name_that_another_grid_gave_it(begin, experiment_folder):
    begin(dataclasses.replace(TRIAL, varying=("seed",))).commit(RESULT)
    claim = begin()
    assert claim.folder.name == f"seed=0-{KEY}"
    assert [path for path in experiment_folder.iterdir() if path.is_dir()] == [claim.folder]


def test_settings_and_data_of_a_trial_stand_beside_it_before_it_starts_and_stay(begin):
    settings = read_settings(begin().folder)
    assert settings["settings"] == TRIAL.settings
    assert settings["data"] == {"fingerprint": "data"}
    assert read_settings(begin().folder) == settings


def test_every_event_is_a_line_and_its_files_stand_beside_it(begin):
    claim = begin()
    for event in (
        STARTED,
        EpochDone(1, {"val/miou": 0.25, "train/loss": 0.5}, 1.0, 0.5),
        Checkpoint(1, 0, 0.1, b"all"),
        Weights("last", 2, b"last weights"),
        Weights("best", 2, b"weights"),
        Overlays("best", 2, (b"one", b"two")),
        Finished(2, {"val/miou": 0.5}, ("tom", "kitty"), (((1, 2, 3),), ((4, 5, 6),)), (90, 80)),
        Failed("crash", "it fell", "log"),
    ):
        claim.write_event(event)
    folder = claim.folder
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        *("Started", "EpochDone", "Checkpoint", "Weights", "Weights", "Overlays", "Finished", "Failed")
    ]
    assert lines[1]["metrics"] == {"val/miou": 0.25, "train/loss": 0.5}
    assert (folder / "checkpoint-0001-000000.safetensors").read_bytes() == b"all"
    assert (folder / "best.safetensors").read_bytes() == b"weights"
    assert (folder / "last.safetensors").read_bytes() == b"last weights"
    assert [path.read_bytes() for path in sorted((folder / "overlays").iterdir())] == [b"one", b"two"]
    per_photo = json.loads((folder / "per_photo.json").read_text())
    assert per_photo["counts_per_class"] == {"tom": [[1, 2, 3]], "kitty": [[4, 5, 6]]}
    assert per_photo["valid_pixels"] == {"tom": 90, "kitty": 80}


# --- checkpoints ---------------------------------------------------------------------------------------------------


def list_checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_the_last_two_checkpoints_are_kept_and_none_once_the_trial_has_finished(begin):
    claim = begin()
    for epoch in (1, 2, 3):
        claim.write_event(Checkpoint(epoch, 0, 0.1, b"state %d" % epoch))
    assert list_checkpoints(claim.folder) == [
        "checkpoint-0002-000000.safetensors",
        "checkpoint-0003-000000.safetensors",
    ]
    assert claim.load_checkpoint() == b"state 3"
    claim.commit(RESULT)
    assert list_checkpoints(claim.folder) == []


def test_a_failed_trial_keeps_its_checkpoints_and_its_result_stands_aside_when_it_is_tried_again(begin):
    claim = begin()
    claim.write_event(Checkpoint(1, 0, 0.1, b"state"))
    claim.commit(dataclasses.replace(RESULT, status="failed", failure="killed"))
    again = begin()
    assert again.load_checkpoint() == b"state"
    assert read_result(again.folder) is None
    assert json.loads((again.folder / "result-1.json").read_text())["failure"] == "killed"


def test_a_checkpoint_that_is_not_what_it_was_is_passed_over_for_the_one_before(begin):
    claim = begin()
    for epoch in (1, 2):
        claim.write_event(Checkpoint(epoch, 0, 0.1, b"state %d" % epoch))
    (claim.folder / "checkpoint-0002-000000.safetensors").write_bytes(b"state 3")
    assert claim.load_checkpoint() == b"state 1"
    (claim.folder / "checkpoint-0001-000000.safetensors").unlink()
    assert claim.load_checkpoint() is None


def test_a_checkpoint_file_whose_line_was_never_written_counts_for_nothing(begin):
    claim = begin()
    claim.write_event(Checkpoint(1, 0, 0.1, b"state 1"))
    (claim.folder / "checkpoint-0002-000000.safetensors").write_bytes(b"state 2")
    assert claim.load_checkpoint() == b"state 1"


def test_what_a_kill_between_commit_and_removal_left_is_removed_later(begin):
    claim = begin()
    folder = claim.folder
    (folder / "checkpoint-0002-000000.safetensors").write_bytes(b"state")
    remove_old_checkpoints(folder)
    assert list_checkpoints(folder)  # it has not finished: another session may be at it
    claim.commit(RESULT)
    (folder / "checkpoint-0002-000000.safetensors").write_bytes(b"state")
    remove_old_checkpoints(folder)
    assert list_checkpoints(folder) == []
    remove_old_checkpoints(folder / "nowhere")


# --- who holds what ------------------------------------------------------------------------------------------------


def test_a_trial_is_held_by_one_and_then_by_another(hold_trial):
    first = hold_trial()
    assert journal.is_running(first.folder)
    assert hold_trial() is None
    assert hold_trial(dataclasses.replace(TRIAL, unet=UNetConfig(4)), "other") is not None
    first.release()
    assert not journal.is_running(first.folder)
    assert hold_trial() is not None


def test_what_is_done_over_is_put_aside_whole_and_its_folder_stays_held(begin, hold_trial, experiment_folder):
    claim = begin()
    claim.write_event(Weights("best", 2, b"old weights"))
    claim.commit(RESULT)
    fresh, old = start_over(experiment_folder, claim)
    assert fresh.folder == claim.folder
    assert [path.name for path in fresh.folder.iterdir()] == ["lock"]
    assert hold_trial() is None
    assert journal.list_superseded(experiment_folder) == [old]
    assert (old / "best.safetensors").read_bytes() == b"old weights"
    assert list_folders(experiment_folder) == {KEY: fresh.folder}
    fresh.begin(TRIAL, KEY, FACTS)
    assert read_settings(fresh.folder)["execution"] != read_settings(old)["execution"]
    fresh.release()


def test_a_working_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").write_text("a file where a folder should be")
    assert "cannot be written" in refusal(make_experiment_folder, "tiny")


# --- kills and cuts ------------------------------------------------------------------------------------------------


def test_a_commit_cut_short_leaves_no_result_and_no_rubbish(begin, monkeypatch):
    claim = begin()
    before = sorted(claim.folder.iterdir())

    def cut(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut)
        with pytest.raises(KeyboardInterrupt):
            claim.commit(RESULT)
    assert read_result(claim.folder) is None
    assert sorted(claim.folder.iterdir()) == before


COMMIT_FOR_EVER = """
import dataclasses
from tests.bench.test_claim import FACTS, KEY, RESULT, TRIAL
from bench.claim import make_experiment_folder, take

claim = take(make_experiment_folder("tiny"), TRIAL, KEY)
claim.begin(TRIAL, KEY, FACTS)
number = 0
while True:
    number += 1
    claim.commit(dataclasses.replace(RESULT, best_epoch=number, reason=str(number % 10) * 2_000_000))
"""


def test_a_writer_killed_in_the_middle_leaves_a_whole_result_and_its_place(experiment_folder, hold_trial, wait_until):
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    writer = subprocess.Popen([sys.executable, "-c", COMMIT_FOR_EVER], env=paths)
    wait_until(lambda: list(experiment_folder.glob("*/result.json")))
    time.sleep(0.15)
    assert hold_trial() is None
    writer.kill()
    writer.wait()
    claim = hold_trial()
    result = read_result(claim.folder)
    assert result.reason == str(result.best_epoch % 10) * 2_000_000
    claim.begin(TRIAL, KEY, FACTS)
    assert not list(claim.folder.glob(".*"))


def fill(claim):
    """A trial with two checkpoints, best weights, overlays and a committed result."""
    claim.write_event(STARTED)
    for epoch in (1, 2):
        claim.write_event(EpochDone(epoch, {"val/miou": 0.25 * epoch}, 1.0, 0.5))
        claim.write_event(Checkpoint(epoch, 0, 0.1, b"state %d" % epoch))
    claim.write_event(Weights("best", 2, b"best weights"))
    claim.write_event(Finished(2, {"val/miou": 0.5}, ("tom",), (((1, 2, 3),),), (90,)))
    claim.commit(dataclasses.replace(RESULT, status="failed", failure="killed", files=claim.describe_files()))


CHECKPOINTS = ("checkpoint-0001-000000.safetensors", "checkpoint-0002-000000.safetensors")
CUT_FILES = ("events.jsonl", "settings.json", "result.json", "best.safetensors", "per_photo.json", *CHECKPOINTS)


@pytest.mark.parametrize("name", CUT_FILES)
def test_a_file_cut_at_any_byte_yields_the_last_good_state_and_is_mended_by_the_next_start(begin, name):
    claim = begin()
    fill(claim)
    path = claim.folder / name
    whole, events = path.read_bytes(), (claim.folder / "events.jsonl").read_bytes()
    result, history = read_result(claim.folder), read_history(claim.folder)
    for num_bytes in range(len(whole)):
        path.write_bytes(whole[:num_bytes])
        cut = read_history(claim.folder)
        if name == "events.jsonl":
            num_lines = whole[:num_bytes].count(b"\n")
            kinds = [json.loads(line)["event"] for line in whole.splitlines()[:num_lines]]
            assert (len(cut.epochs), len(cut.checkpoints)) == (kinds.count("EpochDone"), kinds.count("Checkpoint"))
            assert cut.epochs == history.epochs[: len(cut.epochs)]
            assert claim.load_checkpoint() == (b"state %d" % len(cut.checkpoints) if cut.checkpoints else None)
        else:
            assert cut == history
        # a result stands for the files beside it: of one that is no longer whole it says nothing
        is_vouched_for = name in ("result.json", "best.safetensors", "per_photo.json")
        almost = name == "result.json" and num_bytes == len(whole) - 1  # but for the last line's end
        assert read_result(claim.folder) == (None if is_vouched_for and not almost else result)
        if name.startswith("checkpoint-0002"):
            assert claim.load_checkpoint() == b"state 1"
        if num_bytes % 40 == 0 or num_bytes == len(whole) - 1:
            again = begin()
            assert read_settings(again.folder) is not None
            again.write_event(EpochDone(9, {}, 1.0, 1.0))
            assert read_history(again.folder).epochs[-1]["epoch"] == 9
            (again.folder / "result.json").unlink(missing_ok=True)
            again.commit(result)
            (claim.folder / "events.jsonl").write_bytes(events)


def test_bytes_that_are_not_what_was_written_end_a_history(begin):
    claim = begin()
    fill(claim)
    path = claim.folder / "events.jsonl"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        lines, num_bytes = journal.read_lines(path)
        assert num_bytes == whole.rfind(b"\n", 0, place) + 1
        assert len(lines) == whole[:place].count(b"\n")


def test_a_state_that_was_given_up_is_nowhere_gone_on_from(begin):
    """Stopped in the middle of epoch 2; then that checkpoint was lost and the trial went on from the one before."""
    claim = begin()
    claim.write_event(STARTED)
    claim.write_event(Checkpoint(1, 0, 0.1, b"state 1"))
    claim.write_event(Checkpoint(1, 5, 0.1, b"state 1 and 5 steps"))
    claim.write_event(dataclasses.replace(STARTED, epoch=1))
    assert claim.load_checkpoint() == b"state 1"
