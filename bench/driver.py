"""The one process that decides and writes: hands out what is missing, keeps what comes back, tries again what may pay.

In:  an Experiment, its photos, a Plan, an engine.   Out: (trial, event) pairs, already on disk, for whoever shows them.
Knows nothing of terminals, of MLflow, or of how a trial is computed.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.claim import Claim, remove_old_checkpoints, start_over, take
from bench.environment import MIXED
from bench.journal import History, list_folders, read_history, read_result
from bench.mirror import Mirror
from bench.plan import Plan, is_like_now
from bench.run import Task
from bench.stops import Stop
from bench.trial import (
    Checkpoint,
    Elsewhere,
    Event,
    Experiment,
    Failed,
    Finished,
    Overlays,
    Retried,
    Skipped,
    Started,
    Stopped,
    Stopping,
    Trial,
    TrialResult,
    WorkerEvent,
)
from catseg.dataset import Data

# How often a failure is tried again, each time from the last checkpoint; a checkpoint in between starts the count anew.
# What a wrong setting, bad data or our own code did once it would do again.
RETRIES = {"killed": 2, "timeout": 2, "oom": 1}
FLAWED = ("nonfinite", "data", "crash")  # to be tried again from the beginning: the last checkpoint may be part of it

WAIT_SECONDS = 0.25  # for an event, before looking at signals and at other processes
POLL_SECONDS = 0.5  # while other processes have all that is left

Pairs = Generator[tuple[Trial, Event | TrialResult], None, None]


class Engine(Protocol):
    """What is asked of whatever trials run in: bench/engine.py, bench/ray_engine.py."""

    @property
    def device_type(self) -> str: ...

    @property
    def torch_version(self) -> str: ...

    @property
    def num_free(self) -> int: ...

    def start(self, task: Task) -> None: ...

    def wait(self, seconds: float) -> Iterator[tuple[Trial, WorkerEvent]]: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


def run_pending(
    experiment: Experiment, data: Data, plan: Plan, folder: Path, engine: Engine, mirror: Mirror, stop: Stop
) -> Pairs:
    """Run what is pending; a trial that fails does not stop the others.

    Each event is yielded after it was written to the journal. A trial's last word is its
    TrialResult, committed here or by another process that shares the work. Ends early when `stop`
    says so, after the steps under way, each trial with a checkpoint. OSError: the journal cannot
    be written; what is in it stands.
    """
    folders = list_folders(folder)
    for result in plan.results.values():
        if result.status == "finished" and result.key in folders:
            remove_old_checkpoints(folders[result.key])
    waiting = dict.fromkeys(plan.pending)
    driver = _Driver(experiment, data, plan, folder, engine, mirror, stop, waiting, dict(plan.redo))
    try:
        while driver.running or (driver.waiting and not stop.asked):
            if not stop.asked:
                yield from driver.hand_out()
            elif not driver.has_asked:
                yield from driver.ask_to_stop()
            if driver.running:
                for trial, event in engine.wait(WAIT_SECONDS):
                    yield from driver.keep(trial, event)
            elif driver.waiting:
                yield from driver.name_elsewhere()
                time.sleep(POLL_SECONDS)
            mirror.pump()
    finally:
        engine.close()
        for trial in list(driver.running):
            driver.release(trial)


@dataclass
class _Driver:
    """What is at work and what waits, in one `bench run`."""

    experiment: Experiment
    data: Data
    plan: Plan
    folder: Path
    engine: Engine
    mirror: Mirror
    stop: Stop
    waiting: dict[Trial, None]  # in order
    redo: dict[Trial, TrialResult]  # those of them that have a result which does not count
    running: dict[Trial, Claim] = field(default_factory=dict)
    num_failures: Counter[Trial] = field(default_factory=Counter)  # since the last checkpoint
    elsewhere: set[Trial] = field(default_factory=set)  # it was said of them
    has_asked: bool = False  # the workers to stop

    def name_elsewhere(self) -> Pairs:
        """Say once of every trial that is left why nothing happens here."""
        for trial in self.waiting:
            if trial not in self.elsewhere:
                self.elsewhere.add(trial)
                yield trial, Elsewhere()

    def ask_to_stop(self) -> Pairs:
        self.has_asked = True
        self.engine.stop()
        yield from ((trial, Stopping()) for trial in list(self.running))

    def hand_out(self) -> Pairs:
        """Give free workers what nobody has, in the grid's order; take over what others have done meanwhile."""
        for trial in list(self.waiting):
            if not self.engine.num_free:
                return
            if trial not in self.waiting:
                continue  # left out meanwhile
            claim = take(self.folder, trial, self.plan.keys[trial])
            if claim is None:
                continue  # another process has it
            self.running[trial] = claim
            result = read_result(claim.folder)
            if result is not None and result != self.redo.get(trial):
                self.release(trial)
                del self.waiting[trial]
                yield trial, result
                yield from self._skip_larger(trial, result)
            else:
                self._start(trial)
                del self.waiting[trial]

    def _start(self, trial: Trial) -> None:
        claim = self.running[trial]
        history = read_history(claim.folder)
        before = self.redo.pop(trial, None)
        is_like = is_like_now(history, self.engine.device_type, self.engine.torch_version)
        is_sound = is_like and not (before and before.failure in FLAWED)
        checkpoint = claim.load_checkpoint() if is_sound else None
        if checkpoint is None and (history.num_durable or claim.has_ended or not is_sound):
            claim, old = start_over(self.folder, claim)  # what MLflow was told of it is another execution's
            self.running[trial] = claim
            self.mirror.notify(old)
        train_photos, val_photos = self.data.num_photos
        facts = {
            "data": {
                "fingerprint": self.data.fingerprint,
                "train": self.experiment.data.train,
                "val": self.experiment.data.val,
                "train_photos": train_photos,
                "val_photos": val_photos,
                "classes": list(self.experiment.data.classes),
                "val_is_train": self.data.val_is_train,
            },
            "grid": self.experiment.file,
            "number": self.experiment.trials.index(trial),
        }
        claim.begin(trial, self.plan.keys[trial], facts)
        classes = self.experiment.data.classes
        self.engine.start(Task(trial, classes, checkpoint, self.experiment.checkpoint_every_seconds))

    def keep(self, trial: Trial, event: WorkerEvent) -> Pairs:
        """Write an event down, then say so; what ends a trial is followed by what comes of it."""
        claim = self.running[trial]
        claim.write_event(event)
        yield trial, event
        match event:
            case Checkpoint():
                self.num_failures[trial] = 0
            case Stopped():
                self.release(trial)
            case Failed() if self.stop.asked and event.kind != "nonfinite":
                self.release(trial)  # whatever it was may be the stop's own doing: the next session tells
            case Failed() if self.num_failures[trial] < RETRIES.get(event.kind, 0):
                self.num_failures[trial] += 1
                yield trial, Retried(event, self.num_failures[trial], RETRIES[event.kind])
                self._start(trial)
            case Finished() | Failed():
                yield from self._end(trial, event)
        if isinstance(event, Started | Checkpoint | Overlays):
            self.mirror.notify(claim.folder)

    def _end(self, trial: Trial, event: Finished | Failed) -> Pairs:
        claim = self.running[trial]
        result = self._make_result(trial, event)
        claim.commit(result)
        self.release(trial)
        yield trial, result
        yield from self._skip_larger(trial, result)

    def _skip_larger(self, culprit: Trial, result: TrialResult) -> Iterator[tuple[Trial, Event]]:
        """Where a trial ran out of memory, those that need more of it are left out."""
        if result.failure == "oom":
            for trial in [waiting for waiting in self.waiting if waiting.needs_more_than(culprit)]:
                del self.waiting[trial]
                yield trial, Skipped(trial.name, culprit.name)

    def release(self, trial: Trial) -> None:
        """Let go of a trial; MLflow is told what it is now."""
        claim = self.running.pop(trial)
        claim.release()
        self.mirror.notify(claim.folder)

    def _make_result(self, trial: Trial, event: Finished | Failed) -> TrialResult:
        claim = self.running[trial]
        history = read_history(claim.folder)
        return TrialResult(
            key=self.plan.keys[trial],
            name=trial.name,
            settings=trial.settings,
            status="finished" if isinstance(event, Finished) else "failed",
            metrics=event.metrics if isinstance(event, Finished) else {},
            best_epoch=event.best_epoch if isinstance(event, Finished) else None,
            failure=event.kind if isinstance(event, Failed) else None,
            reason=event.reason if isinstance(event, Failed) else "",
            environment=_describe_machines(history),
            data_fingerprint=self.data.fingerprint,
            seconds=history.seconds,
            files=claim.describe_files() if isinstance(event, Finished) else {},
            is_rung=trial.is_rung,
        )


def _describe_machines(history: History) -> dict[str, str]:
    """Where a trial ran. Gone on with on another machine or with other threads, its seconds compare with nobody's."""
    environment: dict[str, str] = history.started["environment"] if history.started else {}
    return environment if len(history.machines) < 2 else environment | {"machine_fingerprint": MIXED}
