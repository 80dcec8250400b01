"""The one process that decides and writes: runs what is missing, keeps it, mirrors it.

In:  an Experiment and its photos.   Out: (trial, event) pairs, already on disk, for whoever shows them.
Knows nothing of terminals or of what an event means.
"""

import statistics
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path

from bench import journal
from bench.engine import run_local
from bench.run import measure_step_seconds
from bench.tracking import Mirror
from bench.trial import Event, Experiment, Failed, Finished, Started, Trial, TrialResult
from catseg.dataset import Data
from catseg.unet import compute_forward_gflop


@dataclass(frozen=True)
class Plan:
    """An experiment's trials with their keys, and what is known of each."""

    keys: dict[Trial, str]
    results: dict[Trial, TrialResult]  # finished, or failed and not to be tried again
    pending: tuple[Trial, ...]


def make_plan(experiment: Experiment, data: Data, folder: Path, retry: Collection[str]) -> Plan:
    """What is done and what is left. Failures count as done unless their kind is in `retry`."""
    keys = {trial: trial.make_key(data.fingerprint) for trial in experiment.trials}
    found = {trial: journal.read_result(folder, key) for trial, key in keys.items()}
    results = {trial: r for trial, r in found.items() if r and not (r.status == "failed" and r.failure in retry)}
    return Plan(keys, results, tuple(trial for trial in experiment.trials if trial not in results))


def run_pending(
    experiment: Experiment, data: Data, plan: Plan, folder: Path, mirror: Mirror, device_name: str
) -> Generator[tuple[Trial, Event | TrialResult], None, None]:
    """Run what is pending, one trial after another; a trial that fails does not stop the next.

    Each event is yielded after it was written to the journal and then to MLflow. A trial's last
    word is its TrialResult, committed. Closing the iterator leaves no run that says RUNNING.
    """
    train_photos, val_photos = data.num_photos
    facts: dict[str, object] = {
        "fingerprint": data.fingerprint,
        "train": experiment.data.train,
        "val": experiment.data.val,
        "train_photos": train_photos,
        "val_photos": val_photos,
        "classes": list(experiment.data.classes),
        "val_is_train": data.val_is_train,
    }
    for trial in plan.pending:
        key = plan.keys[trial]
        trial_folder = journal.begin(folder, trial, key, facts)
        train_set, val_set = data.sets[trial.train.image_size]
        environment: dict[str, str] = {}
        result = None
        try:
            run_id = mirror.begin(trial, key, facts, color_index=experiment.trials.index(trial))
            for event in run_local(trial, train_set, val_set, experiment.data.classes, device_name):
                journal.write_event(trial_folder, event)
                if isinstance(event, Started):
                    environment = event.environment
                mirror.record(event)
                yield trial, event
                if isinstance(event, Finished | Failed):
                    result = _make_result(trial, key, event, run_id, environment)
            assert result is not None, "the engine ended without a last word"
            journal.commit(trial_folder, result)
            mirror.end(trial_folder, result)
        finally:
            mirror.kill()  # does nothing once `end` has closed the run
        yield trial, result


def _make_result(
    trial: Trial, key: str, event: Finished | Failed, run_id: str | None, environment: dict[str, str]
) -> TrialResult:
    finished = isinstance(event, Finished)
    return TrialResult(
        key=key,
        name=trial.name,
        settings=trial.settings,
        status="finished" if finished else "failed",
        metrics=event.metrics if isinstance(event, Finished) else {},
        best_epoch=event.best_epoch if isinstance(event, Finished) else None,
        failure=event.kind if isinstance(event, Failed) else None,
        reason=event.reason if isinstance(event, Failed) else "",
        run_id=run_id,
        environment=environment,
    )


def compute_work(trial: Trial, data: Data) -> float:
    """A trial's share of the time, in units of its own: operations, with narrow networks taking longer for each.

    Narrow ones wait for memory, not for arithmetic: doubling init_features from 8 to 16 makes a
    step 1.8 times longer on 2 CPU cores, not 4 times. The 48 is a fit to that, and rough.
    """
    train_photos, val_photos = data.num_photos
    forward = compute_forward_gflop(trial.unet.init_features, trial.train.image_size)
    slowness = 1 + 48 / trial.unet.init_features
    return trial.train.epochs * forward * slowness * (3 * train_photos + val_photos)


def estimate_seconds(plan: Plan, data: Data, device_name: str) -> float:
    """Seconds that the pending trials will take, good to a factor of two.

    From finished trials of the same plan if there are any, else from one training step.
    """
    if not plan.pending:
        return 0.0
    rates = [
        result.metrics["cost/train_seconds"] / compute_work(trial, data)
        for trial, result in plan.results.items()
        if result.status == "finished"
    ]
    if not rates:
        trial = min(plan.pending, key=lambda pending: compute_work(pending, data))
        steps = trial.train.epochs * data.num_photos[0] / trial.train.batch_size
        rates = [measure_step_seconds(trial, device_name) * steps / compute_work(trial, data)]
    return statistics.median(rates) * sum(compute_work(trial, data) for trial in plan.pending)
