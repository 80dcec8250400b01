"""Deep supervision: while it is trained, a U-Net also predicts from the lower levels of its decoder.

In:  a U-Net, photo_B3HW; the mask.   Out: logits of every level, finest first; one loss.
Knows nothing of optimizers or files.      (B batch, K classes, H height, W width in pixels)
"""

from collections.abc import Sequence

import torch
from torch import nn

from catseg.losses import compute_loss
from catseg.unet import UNet


class DeepSupervision(nn.Module):
    """A U-Net and, for its training alone, a 1x1 convolution at each lower level (Lee et al., arXiv 1409.5185)."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        widths = [unet.config.init_features * factor for factor in (2, 4, 8)]  # at 1/2, 1/4, 1/8 of the photo
        self.heads = nn.ModuleList(nn.Conv2d(width, unet.config.num_classes, 1) for width in widths)

    def forward(self, photo_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """Logits at the photo's size, which are the U-Net's own, at a half of it, a quarter, an eighth."""
        finest, *lower = reversed(self.unet.decode(photo_B3HW))
        return [self.unet.head(finest), *(head(x) for head, x in zip(self.heads, lower, strict=True))]


def make_deep_supervision(unet: UNet, seed: int) -> DeepSupervision:
    """Around the U-Net itself, not a copy; the heads follow from the seed, on the U-Net's device."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        supervised = DeepSupervision(unet)
    return supervised.to(unet.head.weight.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compute_deep_loss(
    name: str, levels: Sequence[torch.Tensor], mask_BHW: torch.Tensor, dice_weight: float | None = None
) -> torch.Tensor:
    """The mean of the levels' losses, weighted 1, 1/2, 1/4, ... from the finest down.

    A mean and not a sum, as in nnU-Net, so that it is of the size of a loss without the lower levels. They
    see every second pixel of the mask, every fourth, ...: nearest neighbour, void stays void.
    """
    losses = [
        compute_loss(name, logits_BKHW, mask_BHW[:, :: 2**level, :: 2**level], dice_weight)
        for level, logits_BKHW in enumerate(levels)
    ]
    weights = [0.5**level for level in range(len(losses))]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)
