"""A disk that fails: whatever call it is, what is committed stands and the same command does the rest."""

import errno
import gc
import os
from pathlib import Path

import pytest
import torch

from bench.journal import list_folders, read_history, read_result
from bench.run import StopRequest, execute
from bench.trial import Failed, Finished, StepDone

FOLDER = Path("mlruns/journal/tiny")
GRID = {"grid": "loss: [dice, bce_dice]", "name": "tiny\ncheckpoint_every_seconds: 0"}

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "ftruncate")


class FailingDisk:
    """The n-th call that changes anything below the journal fails."""

    def __init__(self, monkeypatch, number, code):
        self.number, self.code, self.count = number, code, 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name, original):
        def call(target, *arguments, **options):
            flags = arguments[0] if name == "open" and arguments else 0
            is_ours = not (name == "open" and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0)
            if is_ours and self._is_in_journal(target):
                self.count += 1
                if self.count == self.number:
                    raise OSError(self.code, os.strerror(self.code), str(target))
            return original(target, *arguments, **options)

        return call

    @staticmethod
    def _is_in_journal(target):
        if isinstance(target, int):
            try:
                target = Path(f"/proc/self/fd/{target}").readlink()
            except OSError:
                return False
        return "mlruns/journal" in str(target)


class InlineEngine:
    """Trains in this process: what fails is the driver's disk, and a worker writes nothing."""

    device_type = "cpu"
    torch_version = torch.__version__

    def __init__(self, sets, device_name, jobs):
        self.sets, self.trial, self.events = sets, None, None

    @property
    def num_free(self):
        return self.trial is None

    def start(self, task):
        self.trial = task.trial
        self.events = execute(task, *self.sets[task.trial.train.image_size], "cpu", StopRequest())

    def wait(self, seconds):
        event = next(self.events)
        trial = self.trial
        if isinstance(event, Finished | Failed):
            self.trial = None
        if not isinstance(event, StepDone):
            yield trial, event

    def close(self):
        pass


@pytest.fixture
def frozen_garbage():
    """Every trial has the garbage collected, which with all of pytest loaded takes longer than the trial."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("frozen_garbage")
def test_the_nth_open_write_fsync_or_rename_fails_and_the_same_command_does_the_rest(drive, hash_weights, monkeypatch):
    """n = 1, 2, 3, ... until a grid passes untouched. After each failure: whole results only, then the same ones."""
    grid = GRID | {"engine_class": InlineEngine}
    list(drive(**grid))
    undisturbed = hash_weights()
    FOLDER.rename("mlruns/undisturbed")
    number, num_failures = 0, 0
    while True:
        number += 1
        code = (errno.ENOSPC, errno.EIO)[number % 2]
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, number, code)
            try:
                list(drive(**grid))
            except OSError as error:
                assert error.errno == code
                num_failures += 1
            except Exception as error:
                assert getattr(error, "problems", None), f"call {number}: {error!r}"
                num_failures += 1
        if disk.count < number:
            break
        for key, folder in list_folders(FOLDER).items():
            result = read_result(folder)
            assert result is None or (result.key, result.status) == (key, "finished"), number
        list(drive(**grid))
        assert hash_weights() == undisturbed, f"call {number}"
        for folder in list_folders(FOLDER).values():
            assert read_result(folder).status == "finished"
            assert [line["epoch"] for line in read_history(folder).epochs] == [1, 2]
            assert not list(folder.glob(".*")), f"call {number}"
            assert not list(folder.glob("checkpoint-*")), f"call {number}"
        FOLDER.rename(f"mlruns/{number}")
    assert num_failures > 40
