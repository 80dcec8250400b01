"""Photos and their masks changed a little, alike, on the device that trains: `augment: light`.

In:  a batch of fitted photos and masks, numbers drawn for each photo.   Out: the same batch, warped and re-exposed.
Knows nothing of networks, of the loop or of files.      (N photos, B batch, S side in pixels)
"""

import numpy as np
import numpy.typing as npt
import torch

from catseg.inference import to_input

MAX_ANGLE = 15.0  # degrees, either way
MAX_SCALE = 1.25  # and 1 / 1.25 = 0.8 at the least
MAX_SHIFT = 0.1  # of the photo's own width and height
MAX_EXPOSURE = 0.2  # brightness and contrast: factors of 0.8 to 1.2

NUM_DRAWS = 7  # of a photo: mirrored if below 0, angle, scale, shifts right and down, brightness, contrast

Float64 = npt.NDArray[np.float64]


def draw(seed: int, epoch: int, num_photos: int) -> Float64:
    """draws_N7, each -1..1: a photo's are a function of seed, epoch and its number, whatever batch it comes in.

    Drawn for an epoch at once and on the CPU, so that every device sees the same and none is waited for.
    """
    stream = np.random.SeedSequence([seed, epoch, 1])  # the order of photos comes from [seed, epoch]
    return np.random.default_rng(stream).uniform(-1, 1, (num_photos, NUM_DRAWS))


def draw_changes(seed: int, epoch: int, used_N2: npt.NDArray[np.int64]) -> torch.Tensor:
    """changes_N10 for an epoch of all photos; `used_N2` is how much of its square each takes."""
    return make_changes(draw(seed, epoch, len(used_N2)), used_N2)


def make_changes(draws_N7: Float64, used_N2: npt.NDArray[np.int64]) -> torch.Tensor:
    """changes_N10: where a pixel goes (a 2 x 3 matrix, row by row), gain, offset, height and width of the photo.

    Draws of 0 change nothing. Photos turn, grow and are mirrored about their own middle, not the
    square's: a mirrored portrait stays at the left, where all photos are.
    """
    from kornia.geometry.transform import get_affine_matrix2d

    mirrored, angle, scale, right, down, brightness, contrast = draws_N7.T
    height, width = used_N2.T
    factor = MAX_SCALE**scale
    matrix_N33 = get_affine_matrix2d(
        translations=torch.tensor(np.stack([right * width, down * height], 1) * MAX_SHIFT),
        center=torch.tensor(np.stack([width - 1, height - 1], 1) / 2),
        scale=torch.tensor(np.stack([np.where(mirrored < 0, -factor, factor), factor], 1)),
        angle=torch.tensor(angle * MAX_ANGLE),
    )
    # brightness * (contrast * (pixel - 0.5) + 0.5), as one multiplication and one addition
    brightness, contrast = 1 + MAX_EXPOSURE * brightness, 1 + MAX_EXPOSURE * contrast
    others_N4 = torch.tensor(np.stack([brightness * contrast, brightness * (1 - contrast) / 2, height, width], 1))
    return torch.cat([matrix_N33[:, :2].flatten(1), others_N4], 1).float()


def augment(
    photo_BSS3: torch.Tensor, mask_BSS: torch.Tensor, changes_B10: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 photos and masks -> photo_BSS3, floats 0..1 as `to_input` takes them, and mask_BSS uint8, on the device.

    One resampling: bilinear for the photo, nearest for the mask, so no label appears but void. What the
    warp brings in is black in the photo and void in the mask, as is what `fit_photo` and `fit_mask` put
    around a photo: nothing is known of it, so nothing is learnt from it, and its black tells nothing.
    """
    from kornia.geometry.transform import warp_affine

    changes_B10 = changes_B10.to(device, non_blocking=True)
    matrix_B23 = changes_B10[:, :6].view(-1, 2, 3)
    gain_B1, offset_B1, height_B1, width_B1 = changes_B10[:, 6:, None].unbind(1)
    size = (mask_BSS.shape[1], mask_BSS.shape[2])
    at_S = torch.arange(size[0], device=device)
    offset_BSS = torch.where(at_S < height_B1, offset_B1, 0)[:, :, None] * (at_S < width_B1)[:, None]  # black stays so
    photo_B3SS = to_input(photo_BSS3, device)
    photo_B3SS = torch.addcmul(offset_BSS[:, None], photo_B3SS, gain_B1[:, :, None, None]).clamp_(0, 1)
    photo_B3SS = warp_affine(photo_B3SS, matrix_B23, size, align_corners=False)
    # the warp brings in zeros: with 1 added, void is 0, for uint8 goes round from 255
    label_B1SS = (mask_BSS.to(device, non_blocking=True) + 1).float()[:, None]
    label_B1SS = warp_affine(label_B1SS, matrix_B23, size, mode="nearest", align_corners=False)
    return photo_B3SS.permute(0, 2, 3, 1), label_B1SS[:, 0].to(torch.uint8) - 1
