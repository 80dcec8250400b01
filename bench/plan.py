"""Which trials are done, which are left, and about how long they take.

In:  an Experiment, its photos, the journal.   Out: a Plan; seconds; bytes.
Knows nothing of how a trial is run or shown.
"""

import statistics
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import journal
from bench.environment import CODE_HASH, find_device_type, read_torch_version
from bench.journal import History
from bench.trial import Experiment, Trial, TrialResult
from catseg.dataset import Data
from catseg.settings import compute_forward_gflop, compute_num_parameters, compute_side

# Bytes a parameter: the best and the last weights; two checkpoints of weights, their average, best weights and two
# moments of Adam.
WEIGHTS_BYTES, CHECKPOINT_BYTES = 2 * 4, 2 * 20
OTHER_BYTES = 2 * 2**20  # of a trial: overlays, events, counts
MIRROR_FACTOR = 2  # MLflow keeps a copy of what a trial leaves


@dataclass(frozen=True)
class Plan:
    """An experiment's trials with their keys, and what is known of each."""

    keys: dict[Trial, str]
    results: dict[Trial, TrialResult]  # finished, or failed and not to be tried again
    pending: tuple[Trial, ...]
    redo: dict[Trial, TrialResult] = field(default_factory=dict)  # pending though there is this result
    skipped: dict[Trial, Trial] = field(default_factory=dict)  # need more memory than this one, which ran out of it
    begun: dict[Trial, History] = field(default_factory=dict)  # pending, and what was done that can be gone on from
    running: frozenset[Trial] = frozenset()  # pending, and at work in another process

    def count_epochs(self, trial: Trial) -> int:
        """How many epochs of a pending trial no kill takes back."""
        return self.begun[trial].num_durable if trial in self.begun else 0

    def restrict(self, trials: Collection[Trial]) -> "Plan":
        """What it says of these alone."""
        wanted = set(trials)
        return replace(
            self,
            results={trial: result for trial, result in self.results.items() if trial in wanted},
            pending=tuple(trial for trial in self.pending if trial in wanted),
            redo={trial: result for trial, result in self.redo.items() if trial in wanted},
            skipped={trial: culprit for trial, culprit in self.skipped.items() if trial in wanted},
        )

    @property
    def of_other_code(self) -> list[Trial]:
        """Finished by another state of catseg's source than the one that is running."""
        finished = (trial for trial, result in self.results.items() if result.status == "finished")
        return [trial for trial in finished if self.results[trial].environment.get("code") != CODE_HASH]


def make_plan(
    experiment: Experiment,
    data: Data,
    folder: Path,
    device_name: str,
    retry: Collection[str] = (),
    rerun: bool = False,
    torch_version: str | None = None,
) -> Plan:
    """What is done and what is left. Failures count as done unless their kind is in `retry`.

    `torch_version` is that of workers elsewhere, whose device `device_name` is; None: this machine's torch.

    With `rerun`, what other code finished is to be done anew, and nothing else: a rerun that was
    stopped goes on where it was.
    """
    keys = {trial: trial.make_key(data.fingerprint) for trial in experiment.trials}
    folders = journal.list_folders(folder)
    found = {trial: journal.read_result(folders.get(key)) for trial, key in keys.items()}
    results = {trial: result for trial, result in found.items() if result is not None}
    redo = {trial: r for trial, r in results.items() if r.status == "failed" and r.failure in retry}
    if rerun:
        redo |= {trial: results[trial] for trial in Plan(keys, results, ()).of_other_code}
    results = {trial: result for trial, result in results.items() if trial not in redo}
    out_of_memory = [trial for trial, result in results.items() if result.failure == "oom"]
    pending, skipped, begun, running = [], {}, {}, set()
    for trial in experiment.trials:
        if trial in results:
            continue
        culprit = next((other for other in out_of_memory if trial.needs_more_than(other)), None)
        if culprit is not None:
            skipped[trial] = culprit
            continue
        pending.append(trial)
        trial_folder = folders.get(keys[trial])
        if trial_folder is not None and trial not in redo:
            history = journal.read_history(trial_folder)
            device_type = device_name if torch_version else find_device_type(device_name)
            if is_like_now(history, device_type, torch_version):
                begun[trial] = history
            if journal.is_running(trial_folder):
                running.add(trial)
    return Plan(keys, results, tuple(pending), redo, skipped, begun, frozenset(running))


def is_like_now(history: History, device_type: str, torch_version: str | None = None) -> bool:
    """Whether what is there was made by the same source and torch on such a device: else going on is no beginning."""
    if history.started is None:
        return True
    environment = history.started["environment"]
    before = environment.get("code"), environment.get("torch"), history.started["device"].partition(":")[0]
    return before == (CODE_HASH, torch_version or read_torch_version(), device_type)


def compute_work(trial: Trial, data: Data, epochs_done: int = 0) -> float:
    """A trial's share of the time, in units of its own: operations, with narrow networks taking longer for each.

    Narrow ones wait for memory, not for arithmetic: doubling init_features from 8 to 16 makes a
    step 1.8 times longer on 2 CPU cores, not 4 times. The 48 is a fit to that, and rough.
    """
    train_photos, val_photos = data.num_photos
    config, width = trial.train, trial.unet.init_features
    epochs = range(epochs_done + 1, config.epochs + 1)
    num_full = float(len(epochs))  # trained at full size, or as many as those take that are at smaller ones
    if config.first_size is not None:
        num_full = sum((compute_side(config, epoch) / config.image_size) ** 2 for epoch in epochs)
    num_validated = sum(epoch % config.val_every == 0 or epoch == config.epochs for epoch in epochs)
    passes = 3 * train_photos * num_full + val_photos * num_validated
    return passes * compute_forward_gflop(width, config.image_size) * (1 + 48 / width)


def _compute_epoch_work(trial: Trial, data: Data, epoch: int) -> float:
    """Of one epoch, which may be at a smaller size than the next, and without a validation."""
    return compute_work(trial, data, epoch - 1) - compute_work(trial, data, epoch)


def estimate_seconds(plan: Plan, data: Data, device_name: str) -> float:
    """Seconds that the pending trials will take one after another, good to a factor of two."""
    if not plan.pending:
        return 0.0
    left = sum(compute_work(trial, data, plan.count_epochs(trial)) for trial in plan.pending)
    return measure_rate(plan, data, device_name) * left


def measure_rate(plan: Plan, data: Data, device_name: str) -> float:
    """Seconds for a unit of work: from what finished trials of the plan took, else from the epochs of those that
    were begun, else from one training step of a pending one.
    """
    finished = [(trial, r) for trial, r in (*plan.results.items(), *plan.redo.items()) if r.status == "finished"]
    rates = [result.seconds / compute_work(trial, data) for trial, result in finished if result.seconds]
    if not rates:
        rates = [
            (line["train_seconds"] + line["val_seconds"]) / _compute_epoch_work(trial, data, line["epoch"])
            for trial, history in plan.begun.items()
            for line in history.epochs
        ]
    if not rates and not plan.pending:
        return 0.0
    if not rates:
        from bench.run import measure_step_seconds  # here, for most plans need not wait for torch

        trial = min(plan.pending, key=lambda pending: compute_work(pending, data))
        full = replace(trial, train=replace(trial.train, first_size=None))  # the step is one of these
        steps = full.train.epochs * data.num_photos[0] / full.train.batch_size
        rates = [measure_step_seconds(full, device_name) * steps / compute_work(full, data)]
    return statistics.median(rates)


def estimate_bytes(trials: Collection[Trial], jobs: int) -> int:
    """What the trials will write at the most, `jobs` of them at a time: their results stay, checkpoints go."""
    if not trials:
        return 0
    kept = sum(compute_num_parameters(trial.unet) * WEIGHTS_BYTES + OTHER_BYTES for trial in trials)
    largest = sorted((compute_num_parameters(trial.unet) for trial in trials), reverse=True)[:jobs]
    return kept * MIRROR_FACTOR + sum(largest) * CHECKPOINT_BYTES
