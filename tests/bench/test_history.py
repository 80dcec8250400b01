"""What the lines of a trial's events come to: its epochs, its machines, its seconds."""

import dataclasses
import time

import pytest

from bench.claim import make_experiment_folder, take
from bench.journal import read_history
from bench.trial import Checkpoint, EpochDone, Failed, Queued, Started
from tests.bench.test_claim import FACTS, KEY, STARTED, TRIAL


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """The folder of a trial, held and made ready."""
    monkeypatch.chdir(tmp_path)
    claim = take(make_experiment_folder("tiny"), TRIAL, KEY)
    claim.begin(TRIAL, KEY, FACTS)
    yield lambda: claim
    claim.release()


def test_a_trial_knows_the_machines_that_its_epochs_were_trained_on(begin):
    claim = begin()
    for epoch, machine in ((0, "lost"), (0, "a"), (1, "a"), (2, "b")):
        claim.write_event(Started("cpu", "float32", {"machine_fingerprint": machine}, epoch))
    assert read_history(claim.folder).machines == {"a", "b"}


def test_seconds_in_a_worker_are_those_from_a_start_not_those_of_waiting_for_one(begin, monkeypatch):
    claim = begin()
    events = [(0, STARTED), (10, Failed("killed", "its host was lost")), (70, Queued("no place")), (90, STARTED)]
    for second, event in [*events, (95, EpochDone(1, {}, 1.0, 0.5))]:
        monkeypatch.setattr(time, "time_ns", lambda second=second: (1 + second) * 10**9)
        claim.write_event(event)
    assert read_history(claim.folder).seconds == 10 + 5


def test_an_epoch_that_a_resume_did_over_counts_once(begin):
    claim = begin()
    claim.write_event(STARTED)
    for epoch in (1, 2, 3):
        claim.write_event(EpochDone(epoch, {"val/miou": 0.1}, 1.0, 0.5))
        if epoch == 1:
            claim.write_event(Checkpoint(1, 0, 0.1, b"state"))
    claim.write_event(dataclasses.replace(STARTED, epoch=1))
    claim.write_event(EpochDone(2, {"val/miou": 0.2}, 1.0, 0.5))
    history = read_history(claim.folder)
    assert [(line["epoch"], line["metrics"]["val/miou"]) for line in history.epochs] == [(1, 0.1), (2, 0.2)]
    assert history.num_durable == 1
