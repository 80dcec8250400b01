"""A network applied to photos: logits, label maps, counts; how photos get to the device.

In:  a U-Net, photos fitted into squares.   Out: predictions at the photos' own sizes, losses and counts.
Knows nothing of training or files.      (N photos, B batch, K classes, S side in pixels)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from catseg.dataset import PhotoSet
from catseg.device import autocast, choose_precision
from catseg.losses import LOSSES, sum_terms
from catseg.metrics import Counts, choose_labels, count_pixels
from catseg.photo import UInt8, fit_size
from catseg.unet import UNet


@dataclass(frozen=True)
class BatchScore:
    """What one batch adds to a loss and to the counts; both stay on the device."""

    terms_4K: torch.Tensor
    counts_BK3: torch.Tensor


def evaluate(
    model: UNet, photos: PhotoSet, loss: str, batch_size: int, precision: str, device: torch.device
) -> tuple[float, Counts]:
    """Loss of all photos pooled, and counts_NK3 at the masks' native size."""
    return pool(loss, list(evaluate_batches(model, photos, batch_size, precision, device, place(photos, device))))


def evaluate_batches(
    model: UNet,
    photos: PhotoSet,
    batch_size: int,
    precision: str,
    device: torch.device,
    placed: tuple[torch.Tensor, torch.Tensor],
) -> Iterator[BatchScore]:
    """Score photos, a batch at a time; `placed` are the same photos by `place`.

    The logits are scaled back to each photo's own size before they are thresholded, so that
    image sizes compare. What the batches add up to does not depend on their size.
    """
    model.eval()
    photo_NSS3, mask_NSS = placed
    for start in range(0, len(photos.names), batch_size):
        batch = slice(start, start + batch_size)
        with torch.inference_mode():
            with autocast(device, choose_precision(precision, device)):
                logits_BKSS = model(to_input(photo_NSS3[batch], device)).float()
            counts = []
            for logits_KSS, mask_HW in zip(logits_BKSS, photos.native_masks[batch], strict=True):
                labels_HW = restore_labels(logits_KSS, *mask_HW.shape)
                counts.append(count_pixels(labels_HW, torch.tensor(mask_HW, device=device), model.config.num_classes))
            score = BatchScore(sum_terms(logits_BKSS, mask_NSS[batch].to(device)), torch.stack(counts))
        yield score


def pool(loss: str, scores: Sequence[BatchScore]) -> tuple[float, Counts]:
    """The loss of all photos as if they were one batch, and counts_NK3."""
    terms_4K = sum((score.terms_4K for score in scores[1:]), scores[0].terms_4K)
    counts_NK3 = torch.cat([score.counts_BK3 for score in scores])
    return float(LOSSES[loss](terms_4K)), counts_NK3.cpu().numpy().astype(np.int64)


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
    """uint8 photos -> photo_B3SS, floats 0..1 on the device; channels-last without moving a byte.

    Photos that are floats already, as augmented ones are, stay what they are.
    """
    photo_B3SS = photo_BSS3.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return photo_B3SS if photo_B3SS.is_floating_point() else photo_B3SS.float().div_(255)


def place(photos: PhotoSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos and masks as uint8 tensors on the device if half its free memory holds them, else in RAM."""
    photo_NSS3, mask_NSS = torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS)
    if device.type == "cuda" and photo_NSS3.nbytes + mask_NSS.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return photo_NSS3.to(device), mask_NSS.to(device)
    return photo_NSS3, mask_NSS
