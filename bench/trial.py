"""The words of the harness: what is to be trained, what happened, what came of it.

In:  settings.   Out: frozen dataclasses that cross process borders and are written to disk.
Knows nothing of how a trial is run, kept or shown.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from catseg.dataset import DataConfig
from catseg.settings import RECIPE_VERSION, TrainConfig, UNetConfig

FailureKind = Literal["oom", "nonfinite", "killed", "timeout", "data", "crash"]
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)

# The settings an experiment file may name, in the order they are shown: the users' words.
SETTINGS = ("init_features", *(setting.name for setting in fields(TrainConfig)))

# Settings that came later than the first results, and the value that means "as before": it is left out of a trial's
# identity, so that earlier results stand. A default may change; these may not.
LATER_SETTINGS: dict[str, Any] = {
    "augment": "none",
    "compile": "off",
    "decay_norms": True,
    "momentum": 0.0,
    "clip_norm": None,
    "ema": None,
    "dice_weight": None,
    "deep_supervision": False,
    "augment_fade": 0.0,
    "first_size": None,
    "grow_epochs": 0.7,
    "val_every": 1,
}

CHECKPOINT_EVERY_SECONDS = 60.0  # at most so much training is lost in a kill, or one epoch if that is longer


def format_value(value: Any) -> str:
    """A setting's value as an experiment file has it: null, true, 0.001."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Trial:
    """One point of a grid, seed included. Each part of catseg is given only its own config."""

    unet: UNetConfig
    train: TrainConfig
    varying: tuple[str, ...]  # the settings in which the trials of this grid differ
    is_rung: bool = False  # short, to choose which settings are trained in full: never ranked

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its one name."""
        values = asdict(self.unet) | asdict(self.train)
        return {name: values[name] for name in SETTINGS}

    @property
    def setting(self) -> tuple[UNetConfig, TrainConfig]:
        """What it has in common with its other seeds, and with its rung, which is shorter."""
        return self.unet, replace(self.train, seed=0, epochs=1)

    @property
    def name(self) -> str:
        """What sets this trial apart from the others of its grid, for people; for a grid of one, what it is."""
        settings = self.settings
        return " ".join(
            f"{name}={format_value(settings[name])}"
            for name in self.varying or ("init_features", "lr", "image_size", "loss")
        )

    def make_key(self, data_fingerprint: str) -> str:
        """The identity of its result: a hash of settings, data and recipe version, not of what else the grid holds.

        A rung's is not that of a training in full that happens to be as short: only one of them is ranked.
        """
        settings = dict(self.settings.items() - LATER_SETTINGS.items())
        identity = [settings, self.unet.num_classes, data_fingerprint, RECIPE_VERSION]
        text = json.dumps([*identity, "rung"] if self.is_rung else identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def needs_more_than(self, other: "Trial") -> bool:
        """Whether it takes strictly more memory: wider, larger or in larger batches, and alike in all else."""
        mine, others = self.settings, other.settings
        names = ("loss", "optimizer", "precision", "augment", "compile", "deep_supervision")
        copies = [(each["momentum"] > 0, each["ema"] is not None) for each in (mine, others)]  # of the weights
        alike = all(mine[name] == others[name] for name in names) and copies[0] == copies[1]
        sizes = [(mine[name], others[name]) for name in ("init_features", "image_size", "batch_size")]
        return alike and all(a >= b for a, b in sizes) and any(a > b for a, b in sizes)


@dataclass(frozen=True)
class Halving:
    """All settings are trained for a few epochs, the best of them in full. Its checks need a grid: bench/grid.py."""

    first_epochs: int = 3
    keep: int = 3  # settings


@dataclass(frozen=True)
class Experiment:
    """One experiment file, resolved."""

    file: str  # as it was named
    name: str
    data: DataConfig
    trials: tuple[Trial, ...]
    checkpoint_every_seconds: float = CHECKPOINT_EVERY_SECONDS
    search: Halving | None = None  # None: every trial is trained


@dataclass(frozen=True)
class Started:
    """A worker has begun. `environment` is that of the machine it runs on."""

    device: str
    precision: str
    environment: dict[str, str]
    epoch: int = 0  # it goes on after this one
    step: int = 0  # and so many steps of the next


@dataclass(frozen=True)
class Queued:
    """It is handed out, and not at work yet: a cluster has no place for it."""

    reason: str  # one line


@dataclass(frozen=True)
class StepDone:
    """A sign of life, of a batch trained or validated on. Kept nowhere."""


@dataclass(frozen=True)
class EpochDone:
    epoch: int  # from 1
    metrics: dict[str, float]  # by their one name, split first; val/miou leads
    train_seconds: float
    val_seconds: float
    system: dict[str, float] = field(default_factory=dict)  # what the worker used of its machine meanwhile


@dataclass(frozen=True)
class Checkpoint:
    """All that it takes to go on from here as if nothing had been between."""

    epoch: int  # the last that is whole
    step: int  # of the next
    seconds: float  # that the worker took to make it
    data: bytes  # a safetensors file


@dataclass(frozen=True)
class Weights:
    """A trained model, for use."""

    which: Literal["best", "last"]
    epoch: int
    data: bytes  # a safetensors file


@dataclass(frozen=True)
class Overlays:
    """The same validation photos in every trial: photo | truth over prediction | errors."""

    which: Literal["first", "last", "best"]  # after the first or the last epoch, or by the best model
    epoch: int
    png: tuple[bytes, ...]


@dataclass(frozen=True)
class Finished:
    best_epoch: int
    metrics: dict[str, float]  # of the best epoch, and the costs of the whole trial
    photos: tuple[str, ...]  # names of the validation photos
    counts: tuple[
        tuple[tuple[int, ...], ...], ...
    ]  # per photo and class: true positives, false positives, false negatives
    valid_pixels: tuple[int, ...]  # per photo: all that are not void


@dataclass(frozen=True)
class Failed:
    kind: FailureKind
    reason: str  # one line
    log: str = ""  # the last lines of what the worker printed


@dataclass(frozen=True)
class Stopped:
    """The worker was asked to stop, and did, after a checkpoint."""

    epoch: int  # the last that is whole


@dataclass(frozen=True)
class Stopping:
    """The driver has asked a worker to stop."""


@dataclass(frozen=True)
class Elsewhere:
    """Another session is at work on it; there is nothing else to do here."""


@dataclass(frozen=True)
class Retried:
    """The driver tries again what failed through no fault of its own."""

    failure: Failed
    attempt: int  # 1: the first one again
    num_attempts: int  # that it gets at the most


@dataclass(frozen=True)
class Skipped:
    """It needs more memory than a trial that ran out of it."""

    name: str
    culprit: str  # that trial's name


WorkerEvent = Queued | Started | StepDone | EpochDone | Checkpoint | Weights | Overlays | Finished | Failed | Stopped
Event = WorkerEvent | Stopping | Elsewhere | Retried | Skipped


@dataclass(frozen=True)
class TrialResult:
    """The one committed outcome of a trial."""

    key: str  # Trial.make_key
    name: str
    settings: dict[str, Any]
    status: Literal["finished", "failed"]
    metrics: dict[str, float]  # of the best epoch, and costs; empty if failed
    best_epoch: int | None
    failure: FailureKind | None
    reason: str
    environment: dict[str, str]
    data_fingerprint: str = ""
    seconds: float = 0.0  # in a worker, all attempts together
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # num_bytes and sha256 of what stands beside it
    is_rung: bool = False  # Trial.is_rung
