"""What the journal holds is whole or absent, whatever stops the writer."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import journal
from bench.trial import Checkpoint, EpochDone, Failed, Finished, Overlays, Trial, TrialResult
from catseg.errors import InputError
from catseg.train import TrainConfig
from catseg.unet import UNetConfig

TRIAL = Trial(UNetConfig(2), TrainConfig(image_size=32, epochs=2), ("lr", "loss"))
KEY = TRIAL.make_key("data")
RESULT = TrialResult(
    key=KEY,
    name=TRIAL.name,
    settings=TRIAL.settings,
    status="finished",
    metrics={"val/miou": 0.5, "cost/train_seconds": 1.5},
    best_epoch=2,
    failure=None,
    reason="",
    run_id=None,
    environment={"torch": "2"},
)


def test_a_result_comes_back_as_it_was_committed(tmp_path):
    journal.commit(journal.begin(tmp_path, TRIAL, KEY, {}), RESULT)
    assert journal.read_result(tmp_path, KEY) == RESULT


def test_a_trial_that_was_never_run_or_not_committed_has_no_result(tmp_path):
    assert journal.read_result(tmp_path, KEY) is None
    assert journal.read_result(tmp_path / "no such folder", KEY) is None
    folder = journal.begin(tmp_path, TRIAL, KEY, {})
    journal.write_event(folder, Checkpoint("best", 1, b"weights"))
    assert journal.read_result(tmp_path, KEY) is None


def test_a_folder_is_named_so_that_a_person_and_a_program_find_it(tmp_path):
    folder = journal.begin(tmp_path, TRIAL, KEY, {})
    assert folder.name == f"lr=0.002,loss=bce_dice-{KEY}"
    assert journal.find_folder(tmp_path, KEY) == folder


def test_a_result_is_found_under_the_name_that_another_grid_gave_it(tmp_path):
    other_grid = dataclasses.replace(TRIAL, varying=("seed",))
    journal.commit(journal.begin(tmp_path, other_grid, KEY, {}), RESULT)
    assert journal.read_result(tmp_path, TRIAL.make_key("data")) == RESULT


def test_what_an_interrupted_execution_left_is_replaced(tmp_path):
    left = journal.begin(tmp_path, dataclasses.replace(TRIAL, varying=("seed",)), KEY, {})
    journal.write_event(left, Checkpoint("best", 1, b"old weights"))
    journal.write_event(left, EpochDone(1, {"val/miou": 0.1}, 1.0, 1.0))
    fresh = journal.begin(tmp_path, TRIAL, KEY, {"fingerprint": "data"})
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [fresh]
    assert not list(fresh.glob("*.safetensors"))
    assert not (fresh / "events.jsonl").exists()


def test_settings_and_data_of_a_trial_stand_beside_it_before_it_starts(tmp_path):
    folder = journal.begin(tmp_path, TRIAL, KEY, {"fingerprint": "data"})
    settings = json.loads((folder / "settings.json").read_text())
    assert settings == {"key": KEY, "settings": TRIAL.settings, "data": {"fingerprint": "data"}}


def test_every_event_is_a_line_and_its_files_stand_beside_it(tmp_path):
    folder = journal.begin(tmp_path, TRIAL, KEY, {})
    for event in (
        EpochDone(1, {"val/miou": 0.25, "train/loss": 0.5}, 1.0, 0.5),
        Checkpoint("best", 1, b"weights"),
        Checkpoint("best", 2, b"better weights"),
        Checkpoint("last", 2, b"last weights"),
        Overlays("best", 2, (b"one", b"two")),
        Finished(2, {"val/miou": 0.5}, ("tom", "kitty"), (((1, 2, 3),), ((4, 5, 6),))),
        Failed("crash", "it fell", "log"),
    ):
        journal.write_event(folder, event)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kinds = ["EpochDone", "Checkpoint", "Checkpoint", "Checkpoint", "Overlays", "Finished", "Failed"]
    assert [line["event"] for line in lines] == kinds
    assert lines[0]["metrics"] == {"val/miou": 0.25, "train/loss": 0.5}
    assert (folder / "best.safetensors").read_bytes() == b"better weights"
    assert (folder / "last.safetensors").read_bytes() == b"last weights"
    assert [path.read_bytes() for path in sorted((folder / "overlays").iterdir())] == [b"one", b"two"]
    counts = json.loads((folder / "per_photo.json").read_text())["counts_per_class"]
    assert counts == {"tom": [[1, 2, 3]], "kitty": [[4, 5, 6]]}


def test_a_commit_cut_short_leaves_no_result_and_no_rubbish(tmp_path, monkeypatch):
    folder = journal.begin(tmp_path, TRIAL, KEY, {})
    before = sorted(folder.iterdir())

    def cut(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut)
        with pytest.raises(KeyboardInterrupt):
            journal.commit(folder, RESULT)
    assert journal.read_result(tmp_path, KEY) is None
    assert sorted(folder.iterdir()) == before


COMMIT_FOR_EVER = """
import dataclasses, sys
from pathlib import Path
from tests.bench.test_journal import KEY, RESULT, TRIAL
from bench import journal

folder = journal.begin(Path(sys.argv[1]), TRIAL, KEY, {})
number = 0
while True:
    number += 1
    journal.commit(folder, dataclasses.replace(RESULT, best_epoch=number, reason=str(number % 10) * 2_000_000))
"""


def test_a_writer_killed_in_the_middle_leaves_a_whole_result(tmp_path, wait_until):
    writer = subprocess.Popen([sys.executable, "-c", COMMIT_FOR_EVER, tmp_path], cwd=Path(__file__).parents[2])
    wait_until(lambda: list(tmp_path.glob("*/result.json")))
    time.sleep(0.15)
    writer.kill()
    writer.wait()
    result = journal.read_result(tmp_path, KEY)
    assert result is not None
    assert result.reason == str(result.best_epoch % 10) * 2_000_000


def test_a_second_session_on_the_same_experiment_is_refused_and_another_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with journal.lock_experiment("tiny") as folder:
        assert folder.is_dir()
        with pytest.raises(InputError, match="another `bench run` works on it"), journal.lock_experiment("tiny"):
            pass
        with journal.lock_experiment("other"):
            pass
    with journal.lock_experiment("tiny"):
        pass


def test_a_working_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot be written"), journal.lock_experiment("tiny"):
        pass
