"""Photos and their masks changed alike, on the device that trains: `augment`, `light` or `strong`.

In:  a batch of fitted photos and masks, numbers drawn for each photo.   Out: the same batch, warped and re-exposed.
Knows nothing of networks, of the loop or of files.      (N photos, B batch, S side in pixels)
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from catseg.inference import to_input


@dataclass(frozen=True)
class Ranges:
    """How far a draw of 1 or -1 goes."""

    angle: float  # degrees, either way
    scale: float  # and 1 / scale at the least
    shift: float  # of the photo's own width and height
    exposure: float  # brightness and contrast: factors of 1 - exposure to 1 + exposure
    saturation: float = 0.0  # the same; 0: colours stay as they are
    hue: float = 0.0  # degrees around the grey axis, either way


RANGES = {"light": Ranges(15, 1.25, 0.1, 0.2), "strong": Ranges(30, 1.6, 0.15, 0.4, 0.5, 18)}
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601

NUM_DRAWS = 7  # of a photo: mirrored if below 0, angle, scale, shifts right and down, brightness, contrast

Float64 = npt.NDArray[np.float64]


def draw(seed: int, epoch: int, num_photos: int) -> Float64:
    """draws_N7, each -1..1: a photo's are a function of seed, epoch and its number, whatever batch it comes in.

    Drawn for an epoch at once and on the CPU, so that every device sees the same and none is waited for.
    """
    stream = np.random.SeedSequence([seed, epoch, 1])  # the order of photos comes from [seed, epoch]
    return np.random.default_rng(stream).uniform(-1, 1, (num_photos, NUM_DRAWS))


def draw_changes(
    seed: int, epoch: int, used_N2: npt.NDArray[np.int64], name: str = "light", strength: float = 1.0
) -> torch.Tensor:
    """changes_NC for an epoch of all photos; `used_N2` is how much of its square each takes.

    `strength`, 0 to 1, is the share of each range that is used; mirroring is whole or not at all, so it stays.
    """
    draws_N7 = draw(seed, epoch, len(used_N2)) * ([1.0] + [strength] * (NUM_DRAWS - 1))
    changes_N10 = make_changes(draws_N7, used_N2, RANGES[name])
    if not RANGES[name].saturation:
        return changes_N10
    draws_N2 = np.random.default_rng(np.random.SeedSequence([seed, epoch, 2])).uniform(-1, 1, (len(used_N2), 2))
    matrix_N33 = make_color_matrices(draws_N2 * strength, RANGES[name])
    return torch.cat([changes_N10, matrix_N33.flatten(1)], 1)


def make_color_matrices(draws_N2: Float64, ranges: Ranges) -> torch.Tensor:
    """matrix_N33, by which saturation and hue change a colour; grey, black and white stay what they are.

    Hue turns around the grey axis, which a matrix does, instead of around the cone of HSV, which none does.
    """
    saturation_N11 = 1 + ranges.saturation * draws_N2[:, 0, None, None]
    saturate_N33 = saturation_N11 * np.eye(3) + (1 - saturation_N11) * np.array([LUMA] * 3)
    angle_N11 = np.radians(ranges.hue * draws_N2[:, 1, None, None])
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn_N33 = np.cos(angle_N11) * np.eye(3) + (1 - np.cos(angle_N11)) / 3 + np.sin(angle_N11) * across
    return torch.tensor(turn_N33 @ saturate_N33).float()


def make_changes(draws_N7: Float64, used_N2: npt.NDArray[np.int64], ranges: Ranges = RANGES["light"]) -> torch.Tensor:
    """changes_N10: where a pixel goes (a 2 x 3 matrix, row by row), gain, offset, height and width of the photo.

    Draws of 0 change nothing. Photos turn, grow and are mirrored about their own middle, not the
    square's: a mirrored portrait stays at the left, where all photos are.
    """
    from kornia.geometry.transform import get_affine_matrix2d

    mirrored, angle, scale, right, down, brightness, contrast = draws_N7.T
    height, width = used_N2.T
    factor = ranges.scale**scale
    matrix_N33 = get_affine_matrix2d(
        translations=torch.tensor(np.stack([right * width, down * height], 1) * ranges.shift),
        center=torch.tensor(np.stack([width - 1, height - 1], 1) / 2),
        scale=torch.tensor(np.stack([np.where(mirrored < 0, -factor, factor), factor], 1)),
        angle=torch.tensor(angle * ranges.angle),
    )
    # brightness * (contrast * (pixel - 0.5) + 0.5), as one multiplication and one addition
    brightness, contrast = 1 + ranges.exposure * brightness, 1 + ranges.exposure * contrast
    others_N4 = torch.tensor(np.stack([brightness * contrast, brightness * (1 - contrast) / 2, height, width], 1))
    return torch.cat([matrix_N33[:, :2].flatten(1), others_N4], 1).float()


def augment(
    photo_BSS3: torch.Tensor, mask_BSS: torch.Tensor, changes_BC: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 photos and masks -> photo_BSS3, floats 0..1 as `to_input` takes them, and mask_BSS uint8, on the device.

    One resampling: bilinear for the photo, nearest for the mask, so no label appears but void. What the
    warp brings in is black in the photo and void in the mask, as is what `fit_photo` and `fit_mask` put
    around a photo: nothing is known of it, so nothing is learnt from it, and its black tells nothing.
    """
    from kornia.geometry.transform import warp_affine

    changes_BC = changes_BC.to(device, non_blocking=True)
    matrix_B23 = changes_BC[:, :6].view(-1, 2, 3)
    gain_B1, offset_B1, height_B1, width_B1 = changes_BC[:, 6:10, None].unbind(1)
    size = (mask_BSS.shape[1], mask_BSS.shape[2])
    at_S = torch.arange(size[0], device=device)
    offset_BSS = torch.where(at_S < height_B1, offset_B1, 0)[:, :, None] * (at_S < width_B1)[:, None]  # black stays so
    photo_B3SS = to_input(photo_BSS3, device)
    if changes_BC.shape[1] > 10:
        matrix_B133 = changes_BC[:, 10:].view(-1, 1, 3, 3)
        photo_B3SS = (photo_B3SS.permute(0, 2, 3, 1) @ matrix_B133.mT).permute(0, 3, 1, 2)
    photo_B3SS = torch.addcmul(offset_BSS[:, None], photo_B3SS, gain_B1[:, :, None, None]).clamp_(0, 1)
    photo_B3SS = warp_affine(photo_B3SS, matrix_B23, size, align_corners=False)
    # the warp brings in zeros: with 1 added, void is 0, for uint8 goes round from 255
    label_B1SS = (mask_BSS.to(device, non_blocking=True) + 1).float()[:, None]
    label_B1SS = warp_affine(label_B1SS, matrix_B23, size, mode="nearest", align_corners=False)
    return photo_B3SS.permute(0, 2, 3, 1), label_B1SS[:, 0].to(torch.uint8) - 1
