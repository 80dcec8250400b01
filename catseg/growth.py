"""Photos that are trained on, made smaller for the first epochs: small ones teach faster.

In:  fitted photos and masks as uint8 tensors, a smaller side.   Out: the same photos at that side.
Knows nothing of epochs or networks.      (N photos, S side, R smaller side in pixels)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

AT_ONCE = 64  # photos that are floats at a time


@dataclass(frozen=True)
class Sized:
    """Photos of one size, as an epoch is trained on them."""

    photo_NSS3: torch.Tensor  # uint8
    mask_NSS: torch.Tensor  # uint8
    used_N2: npt.NDArray[np.int64]  # height and width that each photo takes of its square

    @property
    def side(self) -> int:
        return self.photo_NSS3.shape[1]


def shrink(full: Sized, side: int) -> Sized:
    """The photos at a smaller side, on the same device: antialiased, masks by nearest neighbour, so no new label.

    Done once for all epochs of a size: again in every batch it would be paid for in every epoch.
    """
    parts = []
    for photo_BSS3 in torch.split(full.photo_NSS3, AT_ONCE):
        photo_B3SS = photo_BSS3.permute(0, 3, 1, 2).float()
        # the filter of `fit_photo`; in floats, for CUDA has none for bytes
        photo_B3RR = F.interpolate(photo_B3SS, (side, side), mode="bilinear", antialias=True, align_corners=False)
        parts.append(photo_B3RR.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
    at_R = (2 * torch.arange(side, device=full.mask_NSS.device) + 1) * full.side // (2 * side)  # middles of pixels
    mask_NRR = full.mask_NSS[:, at_R][:, :, at_R]
    used_N2 = np.maximum(1, np.round(full.used_N2 * side / full.side).astype(np.int64))
    return Sized(torch.cat(parts), mask_NRR, used_N2)
