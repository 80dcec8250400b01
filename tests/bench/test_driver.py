"""The driver decides and writes: what is tried again or left out, who does what beside others."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from bench import claim as claims
from bench.claim import take
from bench.environment import CODE_HASH
from bench.journal import list_folders, list_superseded, read_history, read_result
from bench.stops import Stop
from bench.trial import (
    Checkpoint,
    EpochDone,
    Failed,
    Retried,
    Skipped,
    Started,
    Stopped,
    Stopping,
    TrialResult,
)

TWO = {"grid": "loss: [dice, bce_dice]"}
LONG = {
    "grid": "loss: [dice]",
    "base": "{init_features: 2, image_size: 32, epochs: 40, batch_size: 4}",
    "name": "tiny\ncheckpoint_every_seconds: 0",
}


FOLDER = Path("mlruns/journal/tiny")


def list_results(pairs):
    return [event for _, event in pairs if isinstance(event, TrialResult)]


def find_worker():
    (worker,) = multiprocessing.active_children()
    return worker


def test_an_event_is_on_disk_before_anyone_sees_it_and_mlflow_hears_of_every_trial(drive, silent_mirror):
    mirror = silent_mirror()
    for _, event in drive(mirror, **TWO):
        if isinstance(event, EpochDone):
            assert any(
                history.epochs and history.epochs[-1]["metrics"] == event.metrics
                for history in map(read_history, list_folders(FOLDER).values())
            )
        if isinstance(event, TrialResult):
            assert read_result(list_folders(FOLDER)[event.key]) == event
    assert mirror.told == set(list_folders(FOLDER).values())


def test_a_result_says_how_long_a_worker_was_at_it_and_what_stands_beside_it(drive):
    (result, _) = list_results(drive(**TWO))
    assert result.seconds >= result.metrics["cost/train_seconds"]
    folder = list_folders(FOLDER)[result.key]
    assert result.files.keys() == {"best.safetensors", "last.safetensors", "per_photo.json"}
    for name, file in result.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file["sha256"]


# --- lost workers --------------------------------------------------------------------------------------------------


def test_a_lost_worker_costs_what_came_after_the_last_checkpoint_and_not_a_bit_of_the_result(drive, hash_weights):
    list(drive(**LONG))
    undisturbed = hash_weights()
    (folder,) = list_folders(FOLDER).values()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    pairs = []
    for trial, event in drive(**LONG):
        pairs.append((trial, event))
        if isinstance(event, Checkpoint) and event.epoch in (3, 8):
            os.kill(find_worker().pid, signal.SIGKILL)
    events = [event for _, event in pairs]
    assert [event.failure.kind for event in events if isinstance(event, Retried)] == ["killed", "killed"]
    assert [event.attempt for event in events if isinstance(event, Retried)] == [1, 1]
    assert next(event.epoch for event in events if isinstance(event, Started)) == 0
    assert all(event.epoch >= 3 for event in events if isinstance(event, Started) and event is not events[0])
    assert hash_weights() == undisturbed
    history = read_history(folder)
    assert [line["epoch"] for line in history.epochs] == list(range(1, 41))
    assert len(history.failures) == 2


def test_a_trial_that_loses_every_worker_fails_after_two_more_tries_and_the_next_one_runs(drive):
    """Killed before it can make a checkpoint."""
    events = []
    for trial, event in drive(grid="epochs: [10000, 1]", base="{init_features: 2, image_size: 32, batch_size: 4}"):
        events.append(event)
        if isinstance(event, Started) and trial.train.epochs == 10_000:
            os.kill(find_worker().pid, signal.SIGKILL)
    assert [event.attempt for event in events if isinstance(event, Retried)] == [1, 2]
    results = [event for event in events if isinstance(event, TrialResult)]
    assert [(result.status, result.failure) for result in results] == [("failed", "killed"), ("finished", None)]


class ScriptedEngine:
    """Says what the test wrote down: failures that no machine has at will. One trial at a time."""

    device_type = "cpu"
    torch_version = torch.__version__
    script = None  # trial -> what comes of each attempt

    def __init__(self, sets, device_name, jobs):
        self.trial, self.attempts = None, {}

    @property
    def num_free(self):
        return self.trial is None

    def start(self, task):
        self.trial = task.trial

    def wait(self, seconds):
        trial, number = self.trial, self.attempts.get(self.trial, 0)
        self.attempts[trial] = number + 1
        yield trial, Started("cpu", "float32", {"code": CODE_HASH, "torch": torch.__version__})
        self.trial = None
        yield trial, type(self).script(trial, number)

    def stop(self):
        pass

    def close(self):
        pass


def make_engine(script):
    return type("Engine", (ScriptedEngine,), {"script": staticmethod(script)})


@pytest.mark.parametrize(
    ("kind", "num_retries"),
    [("killed", 2), ("timeout", 2), ("oom", 1), ("nonfinite", 0), ("crash", 0), ("data", 0)],
)
def test_what_may_pay_is_tried_again_and_nothing_else(drive, kind, num_retries):
    engine_class = make_engine(lambda trial, number: Failed(kind, "so it was"))
    events = [event for _, event in drive(engine_class=engine_class, grid="loss: [dice]")]
    assert sum(isinstance(event, Retried) for event in events) == num_retries
    assert [event.failure for event in events if isinstance(event, TrialResult)] == [kind]
    assert len(read_history(next(iter(list_folders(FOLDER).values()))).failures) == num_retries + 1


def test_after_a_trial_ran_out_of_memory_those_that_need_strictly_more_are_left_out_then_and_later(drive):
    grid = {"grid": "init_features: [4, 2], batch_size: [2, 4], loss: [dice, bce_dice]"}
    grid["base"] = "{image_size: 32, epochs: 1}"
    oom = {(4, 2, "dice")}

    def fall(trial, number):
        settings = trial.settings
        name = settings["init_features"], settings["batch_size"], settings["loss"]
        return Failed("oom" if name in oom else "crash", "so it was")

    events = [event for _, event in drive(engine_class=make_engine(fall), **grid)]
    (skipped,) = [event for event in events if isinstance(event, Skipped)]
    assert skipped.name == "init_features=4 batch_size=4 loss=dice"
    assert skipped.culprit == "init_features=4 batch_size=2 loss=dice"
    assert sum(isinstance(event, TrialResult) for event in events) == 7
    assert list(drive(engine_class=make_engine(fall), **grid)) == []
    again = [event for _, event in drive(engine_class=make_engine(fall), retry=["oom"], **grid)]
    assert sum(isinstance(event, TrialResult) for event in again) == 1  # and what it needs more than is left out again


# --- stops ---------------------------------------------------------------------------------------------------------


def test_a_stop_keeps_what_was_done_of_a_trial_and_the_next_session_goes_on_to_the_same_bit(drive, hash_weights):
    list(drive(**LONG))
    undisturbed = hash_weights()
    (folder,) = list_folders(FOLDER).values()
    folder.rename(Path("mlruns/undisturbed"))
    num_sessions = 0
    while not list_results(_stop_after(drive, 2)):
        num_sessions += 1
        (folder,) = list_folders(FOLDER).values()
        assert read_result(folder) is None
        assert claims.take(FOLDER, None, folder.name.rpartition("-")[2]).release() is None  # nobody holds it
        assert num_sessions < 40
    assert num_sessions > 2
    assert hash_weights() == undisturbed
    history = read_history(folder)
    assert [line["epoch"] for line in history.epochs] == list(range(1, 41))


def _stop_after(drive, num_epochs):
    """A session that is asked to stop after so many epochs; its events."""
    stop, events, seen = Stop(), [], 0
    for trial, event in drive(stop=stop, **LONG):
        events.append((trial, event))
        seen += isinstance(event, EpochDone)
        if seen == num_epochs:
            stop.asked = True
    kinds = [type(event) for _, event in events]
    assert TrialResult in kinds or kinds[-2:] == [Checkpoint, Stopped]
    assert kinds.count(Stopping) <= 1
    return events


def test_a_session_that_ends_in_between_leaves_nothing_held(drive):
    running = drive(**LONG)
    next(running)
    running.close()
    (folder,) = list_folders(FOLDER).values()
    held = take(FOLDER, None, folder.name.rpartition("-")[2])
    assert held is not None
    held.release()
    assert not multiprocessing.active_children()


# --- other sessions, other code ------------------------------------------------------------------------------------


def test_what_another_session_holds_is_left_to_it_and_its_result_taken_over(drive):
    """The first of two trials is at work elsewhere, and ends there while the second one runs here."""
    (first, second) = list_results(drive(**TWO))
    folder = list_folders(FOLDER)[first.key]
    (folder / "result.json").rename("result.json")
    (list_folders(FOLDER)[second.key] / "result.json").unlink()
    elsewhere = take(FOLDER, None, first.key)
    order = []
    for _, event in drive(**TWO):
        order.append(event)
        if isinstance(event, TrialResult) and event.key == second.key:
            Path("result.json").rename(folder / "result.json")
            elsewhere.release()
    results = [event for event in order if isinstance(event, TrialResult)]
    assert [result.key for result in results] == [second.key, first.key]
    assert results[1] == first
    assert sum(isinstance(event, Started) for event in order) == 1


def test_what_another_session_let_go_of_unfinished_is_done_here(drive):
    (first, second) = list_results(drive(**TWO))
    folder = list_folders(FOLDER)[first.key]
    for key in (first.key, second.key):
        (list_folders(FOLDER)[key] / "result.json").unlink()
    elsewhere = take(FOLDER, None, first.key)
    results = []
    for _, event in drive(**TWO):
        if isinstance(event, TrialResult):
            results.append(event)
            elsewhere.release()
    assert [result.key for result in results] == [second.key, first.key]
    assert read_result(folder).status == "finished"


def test_results_of_other_code_stand_until_a_rerun_which_keeps_the_old_and_is_done_once(drive, monkeypatch):
    before = {result.key: result for result in list_results(drive(**TWO))}
    assert list(drive(rerun=True, **TWO)) == []  # it is this code's own
    for folder in list_folders(FOLDER).values():
        path = folder / "result.json"
        content = json.loads(path.read_text())
        content["environment"]["code"] = "another"
        path.write_text(json.dumps(content))
    assert list(drive(**TWO)) == []
    after = list_results(drive(rerun=True, **TWO))
    assert {result.key for result in after} == before.keys()
    old = [json.loads((folder / "result.json").read_text()) for folder in list_superseded(FOLDER)]
    assert [content["environment"]["code"] for content in old] == ["another", "another"]
    assert list(drive(rerun=True, **TWO)) == []


def test_a_checkpoint_of_other_code_is_not_gone_on_from_and_what_it_had_is_kept_aside(drive):
    _stop_after(drive, 2)
    (folder,) = list_folders(FOLDER).values()
    path = folder / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["crc32"]
        if "environment" in line:
            line["environment"]["code"] = "another"
    path.write_bytes(b"".join(claims._format_line(line) for line in lines))
    events = _stop_after(drive, 1)
    assert next(event for _, event in events if isinstance(event, Started)).epoch == 0
    (old,) = list_superseded(FOLDER)
    assert read_history(old).num_durable >= 2
