"""The training loop: it yields what happened in each epoch and calls nobody back.

In:  a U-Net, photos to train and to validate on, settings, a device.   Out: one Epoch after another.
Knows nothing of files, grids or tracking.      (N photos, B batch, K classes, S side in pixels)
"""

import math
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn, optim

from catseg.augment import augment, draw_changes
from catseg.average import Average, follow, make_average
from catseg.dataset import PhotoSet
from catseg.device import autocast, choose_precision, read_clock
from catseg.growth import Sized, shrink
from catseg.inference import Placed, evaluate_batches, make_predictor, place, pool, to_input
from catseg.losses import compute_loss
from catseg.metrics import Counts, compute_metrics
from catseg.optimizer import hand_over_gradients, list_views, make_optimizer
from catseg.schedule import Schedule, follow_score, follow_step, make_schedule
from catseg.settings import TrainConfig, compute_augment_strength, compute_side
from catseg.supervision import DeepSupervision, compute_deep_loss, make_deep_supervision
from catseg.unet import UNet

# What `compile: auto` reckons with on a GPU: the seconds it takes, and what share of a step it saves. Of 163 networks
# on an A100 it saved 0.3 (pytorch.org on torch.compile 2.0); not measured here.
COMPILE_SECONDS, COMPILE_SAVING = 60.0, 0.3


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. The seconds hold the work and its signs of life, no logging or pictures."""

    number: int  # from 1
    train_loss: float  # mean over the photos, each batch as it was trained, augmented if they are
    val_loss: float | None  # of all validation photos pooled: independent of the batch size; None: not validated
    val_counts_NK3: Counts | None  # at the masks' native size
    lr: float  # of its first step
    train_seconds: float
    val_seconds: float
    photos_per_second: float  # in training


@dataclass(frozen=True)
class Step:
    """A batch was trained or validated on: nothing to know but that it goes on."""


@dataclass(frozen=True)
class Best:
    """The validated epoch with the highest mIoU so far, the first of equals, and the weights that were validated."""

    epoch: Epoch
    miou: float
    weights: dict[str, torch.Tensor]


@dataclass
class Training:
    """A network on its way: all that a step changes, so all that a checkpoint must hold."""

    config: TrainConfig
    device: torch.device
    model: UNet  # whose weights are stepped
    learner: UNet | DeepSupervision  # all that is trained: the model, alone or with what only its training needs
    optimizer: optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    network: Callable[[torch.Tensor], torch.Tensor | list[torch.Tensor]]  # the learner as whole batches pass it
    average: Average | None = None  # of the model
    epoch: int = 0  # the last that is whole: trained and validated
    losses: list[torch.Tensor] = field(default_factory=list)  # of the steps of the next, on the device
    lr: float = 0.0  # of the first of them
    seconds: float = 0.0  # that they took
    epoch_seconds: list[float] = field(default_factory=list)  # training, of each whole epoch
    val_seconds: list[float] = field(default_factory=list)  # validation, of the same
    mious: list[float | None] = field(default_factory=list)  # val/miou after each of them; None: not validated
    best: Best | None = None
    stopping: bool = False  # set it between two steps: `advance` ends there, and a checkpoint loses nothing

    @property
    def judged(self) -> UNet:
        """What is validated, may be the best, and is exported: the average where there is one."""
        return self.model if self.average is None else self.average.model


class NonFiniteError(ArithmeticError):
    """A number became infinite or NaN; the message says which, and at which step."""


def make_training(model: UNet, config: TrainConfig, num_photos: int, device: torch.device) -> Training:
    """Ready for the first step of `num_photos` an epoch; the model is moved to the device."""
    model.to(device)
    learner = make_deep_supervision(model, config.seed) if config.deep_supervision else model
    optimizer = make_optimizer(learner, config)
    schedule = make_schedule(optimizer, config, config.epochs * math.ceil(num_photos / config.batch_size))
    has_scaler = choose_precision(config.precision, device) is torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=has_scaler)
    network = _compile(learner, device) if config.compile == "on" else learner
    average = make_average(model) if config.ema is not None else None
    return Training(config, device, model, learner, optimizer, schedule, scaler, network, average)


def train(
    model: UNet, train_set: PhotoSet, val_set: PhotoSet, config: TrainConfig, device: torch.device
) -> Iterator[Epoch]:
    """Train in place from the first epoch to the last, for who needs neither signs of life nor checkpoints."""
    training = make_training(model, config, len(train_set.names), device)
    yield from (event for event in advance(training, train_set, val_set) if isinstance(event, Epoch))


def advance(training: Training, train_set: PhotoSet, val_set: PhotoSet) -> Iterator[Step | Epoch]:
    """Train on from where `training` stands; after each epoch validate if it is its turn, stop the clock, and yield.

    The host waits for the device once an epoch: losses stay there until its end. The order of
    photos and their augmentation are functions of seed and epoch, so the same seed gives the same
    numbers bit for bit on the same CPU and as many threads, stopped and gone on with or not.
    """
    config, device = training.config, training.device
    placed_train, placed_val = place(train_set, device), place(val_set, device)
    full = Sized(placed_train.photo_NSS3, placed_train.mask_NSS, train_set.used_N2)
    photos, num_photos = full, len(train_set.names)
    while training.epoch < config.epochs:
        number = training.epoch + 1
        order_N = torch.randperm(num_photos, generator=torch.Generator().manual_seed(_mix(config.seed, number)))
        batches = torch.split(order_N.to(full.photo_NSS3.device), config.batch_size)
        if not training.losses:
            training.lr = float(training.optimizer.param_groups[0]["lr"])
        if config.compile == "auto" and training.network is training.learner and pays_to_compile(training):
            training.network = _compile(training.learner, device)
        start = read_clock(device)
        if photos.side != (side := compute_side(config, number)):
            photos = full if side == full.side else shrink(full, side)
        yield from _train_epoch(training, photos, number, batches)
        training.seconds += read_clock(device) - start
        if training.stopping:
            return
        train_loss = _check_finite(training, [len(batch) for batch in batches])
        val_loss, val_counts_NK3, val_seconds = None, None, 0.0
        if number % config.val_every == 0 or number == config.epochs:
            start = read_clock(device)
            val_loss, val_counts_NK3 = yield from _validate(training, placed_val)
            if training.stopping:
                return
            val_seconds = read_clock(device) - start
            if not math.isfinite(val_loss):
                raise NonFiniteError(f"val/loss is {val_loss} after epoch {number}: running statistics overflowed")
        speed = num_photos / training.seconds
        yield _finish_epoch(
            training,
            Epoch(number, train_loss, val_loss, val_counts_NK3, training.lr, training.seconds, val_seconds, speed),
        )
        if training.stopping:
            return


def _train_epoch(training: Training, photos: Sized, number: int, batches: tuple[torch.Tensor, ...]) -> Iterator[Step]:
    """The steps of an epoch that are left; ends early once `training.stopping`."""
    config = training.config
    training.learner.train()
    changes_NC = None
    if config.augment != "none":
        strength = compute_augment_strength(config, number)
        changes_NC = draw_changes(config.seed, number, photos.used_N2, config.augment, strength)
        changes_NC = changes_NC.to(photos.photo_NSS3.device)
    for batch in batches[len(training.losses) :]:
        photo_BSS3, mask_BSS = photos.photo_NSS3[batch], photos.mask_NSS[batch]
        if changes_NC is not None:
            photo_BSS3, mask_BSS = augment(photo_BSS3, mask_BSS, changes_NC[batch], training.device)
        training.losses.append(train_step(training, photo_BSS3, mask_BSS))
        yield Step()
        if training.stopping:
            return


def _validate(training: Training, placed: Placed) -> Generator[Step, None, tuple[float, Counts]]:
    """Loss and counts of all photos; of some, worth nothing, once `training.stopping`."""
    config = training.config
    parts = []
    for part in evaluate_batches(
        make_predictor(training.judged, config.precision, training.device), placed, config.batch_size
    ):
        parts.append(part)
        yield Step()
        if training.stopping:
            break
    return pool(config.loss, parts, config.dice_weight)


def train_step(training: Training, photo_BSS3: torch.Tensor, mask_BSS: torch.Tensor) -> torch.Tensor:
    """The loss of one batch, on the device; weights, statistics and schedule are a step further."""
    device, config = training.device, training.config
    # the last batch of an epoch may be smaller: not worth compiling anew
    network = training.network if len(photo_BSS3) == config.batch_size else training.learner
    with autocast(device, choose_precision(config.precision, device)):
        logits = network(to_input(photo_BSS3, device))
    mask_BSS = mask_BSS.to(device, non_blocking=True)
    if isinstance(logits, torch.Tensor):
        loss = compute_loss(config.loss, logits, mask_BSS, config.dice_weight)
    else:
        loss = compute_deep_loss(config.loss, logits, mask_BSS, config.dice_weight)
    training.optimizer.zero_grad()
    training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    hand_over_gradients(training.learner, training.optimizer)
    if config.clip_norm is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(list_views(training.optimizer), config.clip_norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    follow_step(training.schedule)
    if config.ema is not None and training.average is not None:
        follow(training.average, training.model, config.ema)
    return loss.detach()


def pays_to_compile(training: Training) -> bool:
    """Whether compiling saves more of the epochs that are left than it takes; before the first epoch nobody knows.

    Never on a CPU, where it took 19 to 40 s and made steps 1 to 6 % faster, nor where the tools for it are missing.
    """
    if training.device.type == "cpu" or not training.epoch_seconds:
        return False
    if find_spec("triton") is None or shutil.which("cc") is None:
        return False
    seconds_left = (training.config.epochs - training.epoch) * training.epoch_seconds[-1]
    return seconds_left * COMPILE_SAVING > COMPILE_SECONDS


def _compile(learner: nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor | list[torch.Tensor]]:
    """On a GPU as CUDA graphs: small networks wait for launches there, not for arithmetic."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    network: Callable[[torch.Tensor], torch.Tensor | list[torch.Tensor]] = torch.compile(
        learner, mode=mode, dynamic=False
    )
    return network


def _finish_epoch(training: Training, epoch: Epoch) -> Epoch:
    miou = None
    if epoch.val_counts_NK3 is not None:
        miou = compute_metrics(epoch.val_counts_NK3)["miou"]
        follow_score(training.schedule, miou)
        if training.best is None or miou > training.best.miou:
            weights = {name: tensor.clone() for name, tensor in training.judged.state_dict().items()}
            training.best = Best(epoch, miou, weights)
    training.epoch = epoch.number
    training.epoch_seconds.append(epoch.train_seconds)
    training.val_seconds.append(epoch.val_seconds)
    training.mious.append(miou)
    training.losses, training.seconds = [], 0.0
    return epoch


def _mix(seed: int, epoch: int) -> int:
    """One number from two, so that epoch 2 of seed 0 is not epoch 1 of seed 1."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _check_finite(training: Training, batch_sizes: list[int]) -> float:
    """The mean loss of an epoch's photos, or NonFiniteError with the first bad step and what is broken by now."""
    values = torch.stack(training.losses).tolist()
    for step, value in enumerate(values, training.epoch * len(batch_sizes) + 1):
        if not math.isfinite(value):
            parameters = training.model.named_parameters()
            broken = (name for name, parameter in parameters if not parameter.isfinite().all())
            culprit = next(broken, None)
            also = f"; at the end of the epoch so is {culprit}" if culprit else ""
            raise NonFiniteError(f"train/loss is {value} at step {step}{also}")
    return float(np.average(values, weights=batch_sizes))
