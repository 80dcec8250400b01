"""The training loop: it yields what happened in each epoch and calls nobody back.

In:  a U-Net, photos to train and to validate on, settings, a device.   Out: one Epoch after another.
Knows nothing of files, grids or tracking.      (N photos, B batch, K classes, S side in pixels)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import optim

from catseg.dataset import PhotoSet
from catseg.device import autocast, choose_precision, read_clock
from catseg.losses import LOSSES, compute_loss, sum_terms
from catseg.metrics import Counts, choose_labels, count_pixels
from catseg.photo import UInt8, fit_size
from catseg.unet import STRIDE, UNet

RECIPE_VERSION = 1  # raised whenever the same settings give other numbers

ADAM_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class TrainConfig:
    lr: float = 0.002  # the highest of the schedule
    image_size: int = 128  # px, side of the square that photos are fitted into
    loss: Literal["dice", "bce_dice"] = "bce_dice"
    epochs: int = 12
    batch_size: int = 8
    seed: int = 0  # of the weights and of the order of photos
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 0.01  # AdamW's; Adam has none
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: must be below 2**63, got {self.seed}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: must be above 0 and finite, got {self.lr}")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay: must be 0 to below 1, got {self.weight_decay}")
        if not (2 * STRIDE <= self.image_size <= 4096 and self.image_size % STRIDE == 0):
            raise ValueError(
                f"image_size: must be a multiple of {STRIDE} from {2 * STRIDE} to 4096, got {self.image_size}"
            )


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. The seconds are the device's own: nothing but the work is in them."""

    number: int  # from 1
    train_loss: float  # mean over the photos, each batch as it was trained
    val_loss: float  # of all validation photos pooled: independent of the batch size
    val_counts_NK3: Counts  # at the masks' native size
    lr: float  # of its first step
    train_seconds: float
    val_seconds: float
    photos_per_second: float  # in training


class NonFiniteError(ArithmeticError):
    """A number became infinite or NaN; the message says which, and at which step."""


def train(
    model: UNet, train_set: PhotoSet, val_set: PhotoSet, config: TrainConfig, device: torch.device
) -> Iterator[Epoch]:
    """Train in place; after each epoch validate, stop the clock, and yield.

    The host waits for the device once an epoch: losses stay there until its end. The same seed
    gives the same losses bit for bit on the same CPU.
    """
    model.to(device)
    dtype = choose_precision(config.precision, device)
    photo_NSS3, mask_NSS = place(train_set, device)
    placed_val = place(val_set, device)
    num_photos = len(train_set.names)
    steps_per_epoch = math.ceil(num_photos / config.batch_size)
    optimizer = OPTIMIZERS[config.optimizer](model, config)
    schedule = SCHEDULES[config.schedule](optimizer, config, config.epochs * steps_per_epoch)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def train_step(photo_BSS3: torch.Tensor, mask_BSS: torch.Tensor) -> torch.Tensor:
        with autocast(device, dtype):
            logits_BKSS = model(to_input(photo_BSS3, device))
        loss = compute_loss(config.loss, logits_BKSS, mask_BSS.to(device, non_blocking=True))
        optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        return loss.detach()

    for number in range(1, config.epochs + 1):
        order_N = torch.randperm(num_photos, generator=torch.Generator().manual_seed(_mix(config.seed, number)))
        lr = float(optimizer.param_groups[0]["lr"])
        model.train()
        start = read_clock(device)
        batches = torch.split(order_N.to(photo_NSS3.device), config.batch_size)
        losses = torch.stack([train_step(photo_NSS3[batch], mask_NSS[batch]) for batch in batches])
        train_seconds = read_clock(device) - start
        train_loss = _check_finite(losses, model, (number - 1) * steps_per_epoch, [len(batch) for batch in batches])
        start = read_clock(device)
        val_loss, val_counts_NK3 = evaluate(model, val_set, config, device, placed_val)
        val_seconds = read_clock(device) - start
        if not math.isfinite(val_loss):
            raise NonFiniteError(f"val/loss is {val_loss} after epoch {number}: running statistics overflowed")
        yield Epoch(
            number, train_loss, val_loss, val_counts_NK3, lr, train_seconds, val_seconds, num_photos / train_seconds
        )


@torch.inference_mode()
def evaluate(
    model: UNet,
    photos: PhotoSet,
    config: TrainConfig,
    device: torch.device,
    placed: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[float, Counts]:
    """Loss of all photos pooled, and counts_NK3 at the masks' native size.

    The logits are scaled back to each photo's own size before they are thresholded, so that
    image sizes compare. The result does not depend on the batch size. `placed` are the same
    photos and masks by `place`, for who evaluates again and again.
    """
    model.eval()
    dtype = choose_precision(config.precision, device)
    photo_NSS3, mask_NSS = placed or place(photos, device)
    terms_4K = torch.zeros(4, model.config.num_classes, device=device)
    counts = []
    for start in range(0, len(photos.names), config.batch_size):
        batch = slice(start, start + config.batch_size)
        with autocast(device, dtype):
            logits_BKSS = model(to_input(photo_NSS3[batch], device)).float()
        terms_4K += sum_terms(logits_BKSS, mask_NSS[batch].to(device))
        for logits_KSS, mask_HW in zip(logits_BKSS, photos.native_masks[batch], strict=True):
            labels_HW = restore_labels(logits_KSS, *mask_HW.shape)
            counts.append(count_pixels(labels_HW, torch.tensor(mask_HW, device=device), model.config.num_classes))
    val_loss = float(LOSSES[config.loss](terms_4K))
    return val_loss, torch.stack(counts).cpu().numpy().astype(np.int64)


@torch.inference_mode()
def compute_logits(model: UNet, photo_SS3: UInt8, precision: str, device: torch.device) -> torch.Tensor:
    """logits_KSS of one fitted photo."""
    model.eval()
    with autocast(device, choose_precision(precision, device)):
        logits_1KSS: torch.Tensor = model(to_input(torch.tensor(photo_SS3).unsqueeze(0), device))
    return logits_1KSS[0]


def predict_fitted(model: UNet, photo_SS3: UInt8, size: tuple[int, ...], precision: str, device: torch.device) -> UInt8:
    """labels_HW of one fitted photo at `size` (height, width): 0 background, 1..K classes."""
    labels_HW: UInt8 = restore_labels(compute_logits(model, photo_SS3, precision, device), *size).cpu().numpy()
    return labels_HW


def restore_labels(logits_KSS: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """logits_KSS of a fitted photo -> labels_HW uint8 at the photo's own size."""
    used_height, used_width = fit_size(height, width, logits_KSS.shape[-1])
    logits_1KHW = F.interpolate(
        logits_KSS[None, :, :used_height, :used_width].float(), (height, width), mode="bilinear", align_corners=False
    )
    return choose_labels(logits_1KHW)[0]


def to_input(photo_BSS3: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 photos -> photo_B3SS, floats 0..1 on the device; channels-last without moving a byte."""
    return photo_BSS3.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def place(photos: PhotoSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos and masks as uint8 tensors on the device if half its free memory holds them, else in RAM."""
    photo_NSS3, mask_NSS = torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS)
    if device.type == "cuda" and photo_NSS3.nbytes + mask_NSS.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return photo_NSS3.to(device), mask_NSS.to(device)
    return photo_NSS3, mask_NSS


def _make_adam(model: UNet, config: TrainConfig) -> optim.Optimizer:
    return optim.Adam(model.parameters(), config.lr, ADAM_BETAS, fused=True)


def _make_adamw(model: UNet, config: TrainConfig) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), config.lr, ADAM_BETAS, weight_decay=config.weight_decay, fused=True)


def _make_constant(optimizer: optim.Optimizer, config: TrainConfig, num_steps: int) -> optim.lr_scheduler.LRScheduler:
    return optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _make_one_cycle(optimizer: optim.Optimizer, config: TrainConfig, num_steps: int) -> optim.lr_scheduler.LRScheduler:
    """Up to `lr` in the first 30 % of the steps, down to nearly 0 by the last (Smith and Topin, arXiv 1708.07120)."""
    # one step more than is taken: the scheduler is stepped after the last one, too
    return optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=num_steps + 1, cycle_momentum=False)


OPTIMIZERS: dict[str, Callable[[UNet, TrainConfig], optim.Optimizer]] = {"adam": _make_adam, "adamw": _make_adamw}
SCHEDULES: dict[str, Callable[[optim.Optimizer, TrainConfig, int], optim.lr_scheduler.LRScheduler]] = {
    "constant": _make_constant,
    "one_cycle": _make_one_cycle,
}


def _mix(seed: int, epoch: int) -> int:
    """One number from two, so that epoch 2 of seed 0 is not epoch 1 of seed 1."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _check_finite(losses: torch.Tensor, model: UNet, steps_before: int, batch_sizes: list[int]) -> float:
    """The mean loss of an epoch's photos, or NonFiniteError with the first bad step and what is broken by now."""
    values = losses.tolist()
    for step, value in enumerate(values, steps_before + 1):
        if not math.isfinite(value):
            broken = (name for name, parameter in model.named_parameters() if not parameter.isfinite().all())
            culprit = next(broken, None)
            also = f"; at the end of the epoch so is {culprit}" if culprit else ""
            raise NonFiniteError(f"train/loss is {value} at step {step}{also}")
    return float(np.average(values, weights=batch_sizes))
