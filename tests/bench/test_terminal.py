"""What a person sees while trials run: in a terminal, and in a pipe."""

import dataclasses
import io

import pytest
from rich.console import Console

from bench.terminal import ProgressView, format_bytes, format_seconds
from bench.trial import (
    Elsewhere,
    EpochDone,
    Failed,
    Queued,
    Retried,
    Skipped,
    Started,
    Stopped,
    Stopping,
    Trial,
    TrialResult,
)
from catseg.settings import TrainConfig, UNetConfig

ENVIRONMENT = {"cpu": "Example CPU", "gpu": "none", "threads": "2", "torch": "2.13.0"}
VARYING = ("init_features", "lr", "image_size", "loss")
STARTED = Started("cpu", "float32", ENVIRONMENT)


def make_trial(lr=0.001, seed=0, epochs=2):
    return Trial(UNetConfig(8), TrainConfig(lr=lr, seed=seed, epochs=epochs), VARYING)


def finish(trial, miou=0.5, seconds=10.0):
    costs = {"cost/train_seconds": seconds, "cost/photos_per_second": 123.4, "cost/peak_mib": 456.7}
    metrics = {"val/miou": miou, "val/miou_per_photo": miou - 0.1} | costs
    return TrialResult("key", trial.name, trial.settings, "finished", metrics, 2, None, "", ENVIRONMENT)


def fail(trial, reason="train/loss is nan at step 2"):
    return TrialResult("key", trial.name, trial.settings, "failed", {}, None, "nonfinite", reason, {})


def make_epoch(epoch, miou):
    return EpochDone(epoch, {"val/miou": miou, "val/loss": 0.5, "train/loss": 0.25}, 1.0, 1.0)


def show(events, trials, best=None, terminal=False):
    """What a view of these trials prints, fed with (trial, event) pairs."""
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=terminal, soft_wrap=True, highlight=False)
    with ProgressView(console, dict.fromkeys(trials, 1.0), best) as view:
        for trial, event in events:
            view.show(trial, event)
    return text.getvalue()


def test_a_pipe_gets_a_line_for_each_trial_and_no_control_characters():
    first, second = make_trial(0.1), make_trial(0.2)
    events = [(first, STARTED), (first, make_epoch(1, 0.5)), (first, finish(first, 0.5)), (second, STARTED)]
    lines = show([*events, (second, fail(second))], [first, second]).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("1/2  val/miou 0.500  best 0.500")
    assert "lr=0.1" in lines[0]
    assert lines[1].startswith("2/2  FAILED (nonfinite: train/loss is nan at step 2)")
    assert all(line.isprintable() for line in lines)


def test_a_trial_that_fails_before_it_starts_is_counted_too():
    first, second = make_trial(0.1), make_trial(0.2)
    lines = show([(first, fail(first)), (second, fail(second))], [first, second]).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["1/2", "2/2"]


def test_what_is_tried_again_gone_on_with_left_out_waited_for_or_stopped_is_said_in_a_line_each():
    trial, larger, other = make_trial(0.1), make_trial(0.2), make_trial(0.3)
    events = [
        (trial, dataclasses.replace(STARTED, epoch=1)),
        (trial, Retried(Failed("killed", "from outside"), 1, 2)),
        (larger, Skipped(larger.name, trial.name)),
        (other, Elsewhere()),
        (other, Queued("every place is taken")),
        (trial, Stopping()),
        (other, Stopping()),
        (trial, Stopped(1)),
        (other, Stopped(0)),
    ]
    lines = show(events, [trial, larger, other]).splitlines()
    assert [line.partition("  ")[0] for line in lines] == [
        "goes on after epoch 1 of 2",
        "killed: from outside; trying again (1 of 2)",
        "SKIPPED",
        "at work in another session, waited for",
        "waits: every place is taken",
        "stopping after this step, with a checkpoint; once more to stop at once",
        "stopped after epoch 1 of 2, kept",
        "not begun",
    ]
    assert all("lr=0." in line for number, line in enumerate(lines) if number != 5)


def test_of_a_trial_that_goes_on_the_time_left_counts_what_is_left_of_it(monkeypatch):
    """Half of it was done before; half of the rest took 30 s here, so 30 s are left."""
    clock = iter([0.0, 0.0, *[30.0] * 20])
    monkeypatch.setattr("bench.terminal.time.monotonic", lambda: next(clock))
    trial = make_trial(epochs=4)
    text = show([(trial, dataclasses.replace(STARTED, epoch=2)), (trial, make_epoch(3, 0.5))], [trial])
    assert "left 30 s" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 MiB"), (12 * 2**20, "12 MiB"), (1500 * 2**20, "1.5 GiB"), (2**40, "1024.0 GiB")]
)
def test_bytes_are_written_as_people_say_them(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_the_best_so_far_counts_earlier_sessions_and_earlier_epochs():
    trial = make_trial()
    after_better_sessions = show([(trial, STARTED), (trial, make_epoch(1, 0.5)), (trial, finish(trial))], [trial], 0.75)
    assert "best 0.750" in after_better_sessions
    epochs = [(trial, make_epoch(1, 0.625)), (trial, make_epoch(2, 0.5))]
    assert "best 0.625" in show([(trial, STARTED), *epochs, (trial, finish(trial, 0.625))], [trial])


def test_the_time_left_is_that_of_the_work_left(monkeypatch):
    clock = iter([0.0, *[30.0] * 20])
    monkeypatch.setattr("bench.terminal.time.monotonic", lambda: next(clock))
    first, second = make_trial(0.1), make_trial(0.2)
    events = [(first, STARTED), (first, make_epoch(1, 0.5)), (first, make_epoch(2, 0.5)), (first, finish(first))]
    text = show(events, [first, second])
    assert "left 30 s" in text.splitlines()[-1]


def test_a_terminal_is_shown_trial_epoch_losses_best_and_time_left():
    trial = make_trial()
    text = show([(trial, STARTED), (trial, make_epoch(1, 0.5)), (trial, finish(trial))], [trial], terminal=True)
    assert "grid" in text
    assert "trial 1/1  epoch 1/2  train/loss 0.250  val/loss 0.500  val/miou 0.500  best 0.500  left " in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (12.4, "12 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_seconds_are_written_as_people_say_them(seconds, text):
    assert format_seconds(seconds) == text


def test_of_an_epoch_that_was_not_validated_the_training_loss_is_said(monkeypatch):
    monkeypatch.setattr("bench.terminal.PLAIN_EVERY_SECONDS", -1.0)
    trial, training_alone = make_trial(), EpochDone(1, {"train/loss": 0.25, "train/lr": 0.1}, 1.0, 0.0)
    first, second = show([(trial, training_alone), (trial, make_epoch(2, 0.5))], [trial]).splitlines()
    assert "train/loss 0.250  best 0.000  left" in first
    assert "val/miou 0.500  best 0.500" in second
