"""Trials run in workers, and whatever becomes of a worker is said."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing
from multiprocessing.forkserver import _forkserver
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from bench.engine import LocalEngine, _choose_place
from bench.run import StopRequest, Task, execute
from bench.trial import Checkpoint, EpochDone, Failed, Finished, Overlays, Started, StepDone, Stopped, Trial, Weights
from catseg.dataset import DataConfig, load_data
from catseg.settings import TrainConfig, UNetConfig

ROOT = Path(__file__).parents[2]
CLASSES = ("cat",)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_photos):
    """Four photos to train on and two to validate on, at 32 px."""
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos")
    return load_data(DataConfig(train=str(folder), val_fraction=0.33), [32]).sets[32]


def make_trial(epochs=2, lr=0.01, **settings):
    return Trial(UNetConfig(2), TrainConfig(image_size=32, batch_size=2, epochs=epochs, lr=lr, **settings), ())


def run(trial, sets, **task):
    """The events of one trial in a worker of its own."""
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(trial, CLASSES, **task))
        yield from follow(engine)


def follow(engine):
    """The events of the one trial that is at work, to the last."""
    while True:
        for _, event in engine.wait(60):
            yield event
            if isinstance(event, Finished | Failed | Stopped):
                return


@pytest.fixture(scope="module")
def events(sets):
    """All events of a trial of three epochs."""
    return list(run(make_trial(3), sets))


def test_a_trial_starts_goes_through_its_epochs_and_finishes(events):
    assert isinstance(events[0], Started)
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [1, 2, 3]
    assert isinstance(events[-1], Finished)
    assert not multiprocessing.active_children()


def test_a_start_says_on_what_the_trial_runs_and_the_end_what_it_cost(events):
    started = events[0]
    assert started.device == "cpu"
    assert events[-1].metrics["cost/parameters"] == 30751  # summed by hand for two features
    assert {"cpu", "threads", "torch", "machine_fingerprint", "git_commit", "git_dirty"} <= started.environment.keys()


def test_every_epoch_has_its_losses_and_scores_and_the_one_that_selects_leads(events):
    for event in events:
        if isinstance(event, EpochDone):
            assert {"train/loss", "val/loss", "val/miou", "val/miou_per_photo", "val/dice"} <= event.metrics.keys()
            assert next(iter(event.metrics)) == "val/miou"
            assert all(isinstance(value, float) for value in event.metrics.values())


def test_every_epoch_says_what_the_worker_used_of_its_machine(events):
    for event in events:
        if isinstance(event, EpochDone):
            assert 0 < event.system["system/cpu_percentage"] <= 100 * (os.cpu_count() or 1) * 1.1
            assert 50 < event.system["system/rss_mib"] < 10_000


def test_the_best_epoch_is_the_first_with_the_highest_miou(events):
    mious = {event.epoch: event.metrics["val/miou"] for event in events if isinstance(event, EpochDone)}
    finished = events[-1]
    assert finished.best_epoch == max(mious, key=mious.get)
    assert finished.metrics["val/miou"] == max(mious.values())


def test_the_best_model_is_scored_once_more_with_mirrored_photos(events):
    assert 0 <= events[-1].metrics["val/miou_flip"] <= 1
    assert all("val/miou_flip" not in event.metrics for event in events if isinstance(event, EpochDone))


def test_scoring_with_mirrored_photos_gives_a_sign_of_life_after_each_batch(sets):
    trial = dataclasses.replace(make_trial(), train=TrainConfig(image_size=32, batch_size=1, epochs=1))
    events = list(execute(Task(trial, CLASSES), *sets, "cpu", StopRequest()))
    after_best = events[[isinstance(e, Overlays) and e.which == "best" for e in events].index(True) + 1 :]
    assert [type(event) for event in after_best] == [StepDone] * len(sets[1].names) + [Finished]


def test_epochs_that_are_not_validated_say_so_by_leaving_it_out(sets):
    *_, last = events = list(run(make_trial(3, val_every=2), sets))
    scored = ["val/miou" in event.metrics for event in events if isinstance(event, EpochDone)]
    assert scored == [False, True, True]
    assert isinstance(last, Finished) and last.best_epoch in (2, 3)


def test_the_best_weights_are_the_best_epochs_and_the_last_ones_the_last_epochs(events, tmp_path):
    by_name = {event.which: event for event in events if isinstance(event, Weights)}
    assert by_name["best"].epoch == events[-1].best_epoch
    assert by_name["last"].epoch == 3
    for which, event in by_name.items():
        path = tmp_path / which
        path.write_bytes(event.data)
        with safe_open(path, "pt") as file:
            assert f'"epoch": {event.epoch}' in file.metadata()["card"]


def test_overlays_show_each_shown_photo_with_two_more_of_its_size(events, sets, tmp_path):
    overlays = [event for event in events if isinstance(event, Overlays)]
    shown = sets[1].shown
    assert [(event.which, event.epoch) for event in overlays] == [
        ("first", 1),
        ("last", 3),
        ("best", events[-1].best_epoch),
    ]
    for event in overlays:
        assert len(event.png) == len(shown) == 2
        for png, photo in zip(event.png, shown, strict=True):
            (tmp_path / "panel.png").write_bytes(png)
            with Image.open(tmp_path / "panel.png") as image:
                panel = np.asarray(image)
            height, width = photo.mask_HW.shape
            assert panel.shape[0] * panel.shape[1] > 3 * height * width
            assert (panel[:height, :width] == photo.photo_HW3).all()


def test_counts_are_of_every_validation_photo_and_its_own_pixels(events, sets):
    finished = events[-1]
    assert finished.photos == sets[1].names
    for counts, mask_HW in zip(finished.counts, sets[1].native_masks, strict=True):
        ((true_positives, _, false_negatives),) = counts
        assert true_positives + false_negatives == (mask_HW == 1).sum()


def list_losses(some_events):
    epochs = [event for event in some_events if isinstance(event, EpochDone)]
    return [(event.metrics["train/loss"], event.metrics["val/loss"]) for event in epochs]


def test_the_same_seed_gives_the_same_losses_bit_for_bit_and_another_seed_others(events, sets):
    assert list_losses(run(make_trial(3), sets)) == list_losses(events)
    assert list_losses(run(make_trial(3, seed=1), sets)) != list_losses(events)


def test_a_worker_killed_from_outside_is_a_trial_that_was_killed(sets):
    events = []
    for event in run(make_trial(10_000), sets):
        events.append(event)
        if isinstance(event, EpochDone) and event.epoch == 1:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == "killed"
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_of_a_signal_is_a_crash_that_names_it(sets):
    for event in run(make_trial(10_000), sets):
        last = event
        if isinstance(event, Started):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGSEGV)
    assert (last.kind, "SIGSEGV" in last.reason) == ("crash", True)


def test_a_worker_that_raises_is_a_crash_with_its_last_line_and_its_log(sets):
    broken = dataclasses.replace(sets[0], mask_NSS=sets[0].mask_NSS[:, :16])
    *_, last = run(make_trial(), (broken, sets[1]))
    assert isinstance(last, Failed)
    assert last.kind == "crash"
    assert "bench/run.py" in last.log
    assert "RuntimeError: " in last.reason
    assert last.reason.endswith(last.log.splitlines()[-1])
    assert "\n" not in last.reason


def test_a_learning_rate_that_overflows_is_named_with_its_step(sets):
    *_, last = run(make_trial(20, lr=1e30), sets)
    assert isinstance(last, Failed)
    assert last.kind == "nonfinite"
    assert "loss is " in last.reason
    assert "\n" not in last.reason


def test_closing_the_engine_ends_the_process(sets):
    running = run(make_trial(10_000), sets)
    next(running)
    (worker,) = multiprocessing.active_children()
    running.close()
    assert not multiprocessing.active_children()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


# --- from trial to trial -------------------------------------------------------------------------------------------


def test_on_a_cpu_every_trial_has_a_fresh_worker_for_memory_of_others_would_count_in_its_peak(sets):
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(make_trial(1), CLASSES))
        list(follow(engine))
        assert not multiprocessing.active_children()


@pytest.fixture
def kept_workers(monkeypatch):
    """Workers are kept from trial to trial, as on a GPU."""
    monkeypatch.setattr(LocalEngine, "device_type", "cuda")


@pytest.mark.usefixtures("kept_workers")
def test_on_a_gpu_a_worker_is_kept_for_the_next_trial_and_computes_the_same_in_it(sets, events):
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(make_trial(1, seed=7), CLASSES))
        list(follow(engine))
        (worker,) = multiprocessing.active_children()
        engine.start(Task(make_trial(3), CLASSES))
        assert list_losses(follow(engine)) == list_losses(events)
        assert multiprocessing.active_children() == [worker]


@pytest.mark.usefixtures("kept_workers")
def test_a_task_that_comes_the_moment_the_one_before_has_ended_is_not_taken_for_a_stop(sets):
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        for seed in range(8):
            engine.start(Task(make_trial(1, seed=seed), CLASSES))
            assert isinstance(list(follow(engine))[-1], Finished)


def test_a_worker_in_which_a_trial_failed_is_replaced(sets):
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(make_trial(1, lr=1e30), CLASSES))
        running = follow(engine)
        next(running)
        (worker,) = multiprocessing.active_children()
        assert isinstance(list(running)[-1], Failed)
        engine.start(Task(make_trial(1), CLASSES))
        assert isinstance(list(follow(engine))[-1], Finished)
        assert multiprocessing.active_children() != [worker]


@pytest.mark.usefixtures("kept_workers")
def test_a_worker_killed_between_two_trials_costs_the_next_one_nothing(sets):
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(make_trial(1), CLASSES))
        list(follow(engine))
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        engine.start(Task(make_trial(1), CLASSES))
        assert isinstance(list(follow(engine))[-1], Finished)


def test_jobs_are_at_work_at_the_same_time_and_share_the_threads(sets, events):
    trials = [make_trial(3), make_trial(3, seed=1)]
    happened = []
    with closing(LocalEngine({32: sets}, "cpu", jobs=2)) as engine:
        assert engine.num_free == 2
        for trial in trials:
            engine.start(Task(trial, CLASSES))
        assert engine.num_free == 0
        while engine.num_free < 2:
            happened += engine.wait(60)
    by_trial = {trial: [event for other, event in happened if other == trial] for trial in trials}
    assert list_losses(by_trial[trials[0]]) == list_losses(events)
    for some_events in by_trial.values():
        assert some_events[0].environment["threads"] == "1"
        assert isinstance(some_events[-1], Finished)


# --- stops, checkpoints, silence -----------------------------------------------------------------------------------


def test_asked_to_stop_a_worker_ends_with_a_checkpoint_from_which_the_trial_goes_on_to_the_same_bit(sets):
    """Asked in the middle of the second epoch of many; where it stops is the worker's own affair."""
    trial = make_trial(40)
    whole = list(run(trial, sets))
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(trial, CLASSES))
        before = []
        for event in follow(engine):
            before.append(event)
            if isinstance(event, EpochDone) and event.epoch == 2:
                engine.stop()
        *_, checkpoint, stopped = before
        assert isinstance(checkpoint, Checkpoint)
        assert (checkpoint.epoch, stopped) == (stopped.epoch, Stopped(stopped.epoch))
        assert 2 <= stopped.epoch < 40, "over before it could be stopped"
        engine.start(Task(trial, CLASSES, checkpoint.data))
        after = list(follow(engine))
    assert (after[0].epoch, after[0].step) == (checkpoint.epoch, checkpoint.step)
    assert list_losses([*before, *after]) == list_losses(whole)
    assert [event for event in after if isinstance(event, Weights)] == [e for e in whole if isinstance(e, Weights)]


def test_a_checkpoint_is_made_after_every_epoch_or_at_the_interval_whichever_is_rarer(sets):
    def list_checkpoints(seconds):
        some_events = run(make_trial(4), sets, checkpoint_every_seconds=seconds)
        return [event.epoch for event in some_events if isinstance(event, Checkpoint)]

    assert list_checkpoints(0) == [1, 2, 3]
    assert list_checkpoints(1000) == []


def test_a_worker_that_says_nothing_for_too_long_is_ended_and_the_trial_timed_out(sets):
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(make_trial(10_000), CLASSES))
        engine._silence_seconds = 600  # until it works
        worker = None
        while True:
            for _, event in engine.wait(0.1):
                if isinstance(event, EpochDone) and event.epoch == 1:
                    (worker,) = multiprocessing.active_children()
                    os.kill(worker.pid, signal.SIGSTOP)
                    engine._silence_seconds = 0.5
                if isinstance(event, Failed):
                    assert worker is not None
                    assert event.kind == "timeout"
                    assert not multiprocessing.active_children()
                    return


def test_a_worker_leaves_signals_to_the_driver(sets):
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    for event in run(make_trial(3), sets):
        if isinstance(event, Started):
            for signum in stops:
                os.kill(multiprocessing.active_children()[0].pid, signum)
    assert isinstance(event, Finished)


def test_a_worker_whose_forking_server_was_killed_with_it_was_killed_and_the_next_one_works(sets):
    """Nobody is left who could tell its exit code."""
    with closing(LocalEngine({32: sets}, "cpu")) as engine:
        engine.start(Task(make_trial(10_000), CLASSES))
        for event in follow(engine):
            if isinstance(event, EpochDone) and event.epoch == 1:
                (worker,) = multiprocessing.active_children()
                os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
                os.kill(worker.pid, signal.SIGKILL)
        assert event.kind == "killed"
        engine.start(Task(make_trial(1), CLASSES))
        assert isinstance(list(follow(engine))[-1], Finished)


def test_several_gpus_are_given_out_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [_choose_place("auto", place) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert _choose_place("cuda:1", 0) == "cuda:1"
    assert _choose_place("cpu", 1) == "cpu"


ALL_CORES = """
import sys
from bench.trial import Trial
from catseg.dataset import DataConfig, load_data
from catseg.settings import TrainConfig, UNetConfig
from tests.bench.test_engine import list_losses, run

if __name__ == "__main__":
    trial = Trial(UNetConfig(8), TrainConfig(image_size=32, batch_size=4, epochs=2), ())
    sets = load_data(DataConfig(train=sys.argv[1]), [32]).sets[32]
    for _ in range(2):
        print(list_losses(run(trial, sets)))
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_bit_for_bit_on_all_cores(tmp_path, write_photos):
    command = [sys.executable, "-c", ALL_CORES, write_photos(tmp_path / "photos")]
    all_cores = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.run(command, cwd=ROOT, env=all_cores, capture_output=True, text=True, check=False)
    first, second = process.stdout.splitlines()
    assert first == second
    assert first.count("(") == 2
