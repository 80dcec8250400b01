"""A network applied to photos: logits, label maps, counts; how photos get to the device.

In:  a U-Net, photos fitted into squares.   Out: predictions at the photos' own sizes, losses and counts.
Knows nothing of training or files.      (N photos, B batch, K classes, S side in pixels)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from catseg.dataset import PhotoSet
from catseg.device import choose_precision
from catseg.folding import fold_batch_norm
from catseg.losses import apply_loss, sum_terms
from catseg.metrics import Counts, choose_labels, count_pixels
from catseg.photo import UInt8, fit_size

# What a CPU computes at once: more falls out of its cache (32 features, 256 px, AMX: 8 photos took 1.6 times as long
# a photo as 1 or 2), less is too little for its cores.
PART_PIXELS = 2**17


@dataclass(frozen=True)
class Predictor:
    """A network made ready for inference; what is learnt later it does not know."""

    network: nn.Module  # without batch norms, weights on the device and in `dtype`
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Placed:
    """The photos and masks of a PhotoSet as uint8 tensors."""

    photo_NSS3: torch.Tensor
    mask_NSS: torch.Tensor
    native_masks: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class BatchScore:
    """What one batch adds to a loss and to the counts; both stay on the device."""

    terms_4K: torch.Tensor
    counts_BK3: torch.Tensor


def make_predictor(model: nn.Module | Predictor, precision: str, device: torch.device) -> Predictor:
    """The fast way from photos to logits: a copy of the network without batch norm, its weights cast and moved once.

    What is a Predictor already, by another library perhaps, stays as it is.
    """
    if isinstance(model, Predictor):
        return model
    dtype = choose_precision(precision, device)
    return Predictor(fold_batch_norm(model).to(device, dtype), dtype, device)


@torch.inference_mode()
def compute_logits(predictor: Predictor, photo_BSS3: torch.Tensor, flip: bool = False) -> torch.Tensor:
    """logits_BKSS, float32, of fitted photos (uint8); a photo's own depend on the others in rounding at most.

    `flip`: the mean of those of the photos and of the photos mirrored, for twice the time.
    """
    if flip:
        mirrored_BKSS = compute_logits(predictor, photo_BSS3.flip(2)).flip(3)
        return (compute_logits(predictor, photo_BSS3) + mirrored_BKSS) / 2
    most = len(photo_BSS3)
    if predictor.device.type == "cpu":
        most = max(1, PART_PIXELS // photo_BSS3[0, ..., 0].numel())
    logits = []
    for part_BSS3 in torch.split(photo_BSS3, most):
        photo_B3SS = to_input(part_BSS3, predictor.device).to(predictor.dtype)
        logits.append(predictor.network(photo_B3SS).float())
    return torch.cat(logits)


def evaluate(
    model: nn.Module | Predictor, photos: PhotoSet, loss: str, batch_size: int, precision: str, device: torch.device
) -> tuple[float, Counts]:
    """Loss of all photos pooled, and counts_NK3 at the masks' native size."""
    predictor = make_predictor(model, precision, device)
    return pool(loss, list(evaluate_batches(predictor, place(photos, predictor.device), batch_size)))


def evaluate_batches(predictor: Predictor, placed: Placed, batch_size: int, flip: bool = False) -> Iterator[BatchScore]:
    """Score photos, a batch at a time, without waiting for the device.

    The logits are scaled back to each photo's own size before they are thresholded, so that
    image sizes compare. What the batches add up to does not depend on their size. `flip`: as in `compute_logits`.
    """
    device = predictor.device
    for start in range(0, len(placed.photo_NSS3), batch_size):
        batch = slice(start, start + batch_size)
        with torch.inference_mode():
            logits_BKSS = compute_logits(predictor, placed.photo_NSS3[batch], flip)
            counts = []  # one by one: photos of one size in one call were no faster on a CPU
            for logits_KSS, mask_HW in zip(logits_BKSS, placed.native_masks[batch], strict=True):
                labels_HW = restore_labels(logits_KSS, *mask_HW.shape)
                counts.append(count_pixels(labels_HW, mask_HW.to(device, non_blocking=True), len(logits_KSS)))
            score = BatchScore(sum_terms(logits_BKSS, placed.mask_NSS[batch].to(device)), torch.stack(counts))
        yield score


def pool(loss: str, scores: Sequence[BatchScore], dice_weight: float | None = None) -> tuple[float, Counts]:
    """The loss of all photos as if they were one batch, and counts_NK3."""
    terms_4K = sum((score.terms_4K for score in scores[1:]), scores[0].terms_4K)
    counts_NK3 = torch.cat([score.counts_BK3 for score in scores])
    return float(apply_loss(loss, terms_4K, dice_weight)), counts_NK3.cpu().numpy().astype(np.int64)


def predict_fitted(predictor: Predictor, photo_SS3: UInt8, size: tuple[int, ...]) -> UInt8:
    """labels_HW of one fitted photo at `size` (height, width): 0 background, 1..K classes."""
    logits_1KSS = compute_logits(predictor, torch.tensor(photo_SS3).unsqueeze(0))
    labels_HW: UInt8 = restore_labels(logits_1KSS[0], *size).cpu().numpy()
    return labels_HW


def restore_labels(logits_KSS: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """logits_KSS of a fitted photo -> labels_HW uint8 at the photo's own size."""
    used_height, used_width = fit_size(height, width, logits_KSS.shape[-1])
    logits_1KHW = F.interpolate(
        logits_KSS[None, :, :used_height, :used_width].float(), (height, width), mode="bilinear", align_corners=False
    )
    return choose_labels(logits_1KHW)[0]


def to_input(photo_BSS3: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 photos -> photo_B3SS, floats 0..1 on the device; channels-last without moving a byte.

    Photos that are floats already, as augmented ones are, stay what they are.
    """
    photo_B3SS = photo_BSS3.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return photo_B3SS if photo_B3SS.is_floating_point() else photo_B3SS.float().div_(255)


def place(photos: PhotoSet, device: torch.device) -> Placed:
    """Photos and masks on the device as far as half its free memory holds them, else in RAM."""
    # masks at their own size may be most of all: only what nobody may write to is copied
    native_masks = [torch.from_numpy(mask if mask.flags.writeable else mask.copy()) for mask in photos.native_masks]
    photo_NSS3, mask_NSS = _move([torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS)], device)
    return Placed(photo_NSS3, mask_NSS, tuple(_move(native_masks, device)))


def _move(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    if device.type == "cuda" and num_bytes < torch.cuda.mem_get_info(device)[0] / 2:
        return [tensor.to(device) for tensor in tensors]
    return tensors
