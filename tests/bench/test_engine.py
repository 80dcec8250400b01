"""A trial runs in a process of its own, and whatever becomes of that process is said."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from bench.engine import run_local
from bench.trial import Checkpoint, EpochDone, Failed, Finished, Overlays, Started, Trial
from catseg.dataset import DataConfig, load_data
from catseg.train import TrainConfig
from catseg.unet import UNetConfig

ROOT = Path(__file__).parents[2]
CLASSES = ("cat",)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_photos):
    """Four photos to train on and two to validate on, at 32 px."""
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos")
    return load_data(DataConfig(train=str(folder), val_fraction=0.33), [32]).sets[32]


def make_trial(epochs=2, lr=0.01, **settings):
    return Trial(UNetConfig(2), TrainConfig(image_size=32, batch_size=2, epochs=epochs, lr=lr, **settings), ())


@pytest.fixture(scope="module")
def events(sets):
    """All events of a trial of three epochs."""
    return list(run_local(make_trial(3), *sets, CLASSES, "cpu"))


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


def test_the_best_epoch_is_the_first_with_the_highest_miou(events):
    mious = {event.epoch: event.metrics["val/miou"] for event in events if isinstance(event, EpochDone)}
    finished = events[-1]
    assert finished.best_epoch == max(mious, key=mious.get)
    assert finished.metrics["val/miou"] == max(mious.values())


def test_the_last_best_checkpoint_is_the_best_epochs_and_the_last_one_the_last_epochs(events, tmp_path):
    by_name = {event.which: event for event in events if isinstance(event, Checkpoint)}
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
    assert overlays
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


def test_the_same_seed_gives_the_same_losses_bit_for_bit_and_another_seed_others(events, sets):
    def list_losses(some_events):
        epochs = [event for event in some_events if isinstance(event, EpochDone)]
        return [(event.metrics["train/loss"], event.metrics["val/loss"]) for event in epochs]

    assert list_losses(run_local(make_trial(3), *sets, CLASSES, "cpu")) == list_losses(events)
    assert list_losses(run_local(make_trial(3, seed=1), *sets, CLASSES, "cpu")) != list_losses(events)


def test_a_worker_killed_from_outside_is_a_trial_that_was_killed(sets):
    events = []
    for event in run_local(make_trial(10_000), *sets, CLASSES, "cpu"):
        events.append(event)
        if isinstance(event, EpochDone) and event.epoch == 1:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == "killed"
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_of_a_signal_is_a_crash_that_names_it(sets):
    for event in run_local(make_trial(10_000), *sets, CLASSES, "cpu"):
        last = event
        if isinstance(event, Started):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGSEGV)
    assert (last.kind, "SIGSEGV" in last.reason) == ("crash", True)


def test_a_worker_that_raises_is_a_crash_with_its_last_line_and_its_log(sets):
    broken = dataclasses.replace(sets[0], mask_NSS=sets[0].mask_NSS[:, :16])
    *_, last = run_local(make_trial(), broken, sets[1], CLASSES, "cpu")
    assert isinstance(last, Failed)
    assert last.kind == "crash"
    assert "bench/run.py" in last.log
    assert "RuntimeError: " in last.reason
    assert last.reason.endswith(last.log.splitlines()[-1])
    assert "\n" not in last.reason


def test_a_learning_rate_that_overflows_is_named_with_its_step(sets):
    *_, last = run_local(make_trial(20, lr=1e30), *sets, CLASSES, "cpu")
    assert isinstance(last, Failed)
    assert last.kind == "nonfinite"
    assert "loss is " in last.reason
    assert "\n" not in last.reason


def test_closing_the_iterator_ends_the_process(sets):
    running = run_local(make_trial(10_000), *sets, CLASSES, "cpu")
    next(running)
    (worker,) = multiprocessing.active_children()
    running.close()
    assert not multiprocessing.active_children()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


OUT_OF_MEMORY = """
import resource
import numpy as np
from bench.run import execute
from bench.trial import Trial
from catseg.dataset import PhotoSet
from catseg.train import TrainConfig
from catseg.unet import UNetConfig

import torch._dynamo  # which the first optimizer loads: not under the limit

mask_NSS = np.ones((4, 512, 512), np.uint8)
photos = PhotoSet(tuple("abcd"), np.zeros((4, 512, 512, 3), np.uint8), mask_NSS, tuple(mask_NSS), ())
used_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 100 * 2**20,) * 2)
trial = Trial(UNetConfig(16), TrainConfig(image_size=512, epochs=1, batch_size=4), ())
*_, last = execute(trial, photos, photos, ("cat",), "cpu")
print(last.kind, len(last.reason.splitlines()))
"""


def test_a_trial_that_asks_for_more_memory_than_there_is_runs_out_of_memory():
    process = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (0, "oom 1\n"), process.stderr


ALL_CORES = """
import os, sys
from bench.engine import run_local
from bench.trial import EpochDone, Trial
from catseg.dataset import DataConfig, load_data
from catseg.train import TrainConfig
from catseg.unet import UNetConfig

if __name__ == "__main__":
    trial = Trial(UNetConfig(8), TrainConfig(image_size=64, batch_size=4, epochs=2), ())
    sets = load_data(DataConfig(train=sys.argv[1]), [64]).sets[64]
    for _ in range(2):
        epochs = [event for event in run_local(trial, *sets, ("cat",), "cpu") if isinstance(event, EpochDone)]
        print([(epoch.metrics["train/loss"], epoch.metrics["val/loss"]) for epoch in epochs])
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_bit_for_bit_on_all_cores(tmp_path, write_photos):
    command = [sys.executable, "-c", ALL_CORES, write_photos(tmp_path / "photos")]
    all_cores = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.run(command, cwd=ROOT, env=all_cores, capture_output=True, text=True, check=False)
    first, second = process.stdout.splitlines()
    assert first == second
    assert first.count("(") == 2
