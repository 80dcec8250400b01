"""The tutorial's U-Net, with batch norm that is trained and logits that are not squashed.

In:  photo_B3HW, floats 0..1, H and W divisible by 16.   Out: logits_BKHW.
Knows nothing of files, losses or training.      (B batch, K classes, H height, W width in pixels)
"""

import torch
from torch import nn

from catseg.settings import STRIDE, WIDTHS, UNetConfig
from catseg.upsample import upsample_beside


class UNet(nn.Module):
    """Four levels down, four up, skips concatenated (Ronneberger et al., arXiv 1505.04597)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths = [config.init_features * factor for factor in WIDTHS]
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (16f, 8f), (8f, 4f), ...
        self.config = config
        self.encoders = nn.ModuleList(
            make_block(wide, wider) for wide, wider in zip([3, *widths[:-2]], widths[:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = make_block(widths[-2], widths[-1])
        self.upsamplers = nn.ModuleList(nn.ConvTranspose2d(wider, wide, 2, stride=2) for wider, wide in upwards)
        self.decoders = nn.ModuleList(make_block(2 * wide, wide) for _, wide in upwards)
        self.head = nn.Conv2d(widths[0], config.num_classes, 1)

    def forward(self, photo_B3HW: torch.Tensor) -> torch.Tensor:
        logits_BKHW: torch.Tensor = self.head(self.decode(photo_B3HW)[-1])
        return logits_BKHW

    def decode(self, photo_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """The features of each level of the decoder, from the lowest, at 1/8 of the photo's size, up to all of it."""
        assert photo_B3HW.shape[2] % STRIDE == 0 and photo_B3HW.shape[3] % STRIDE == 0, photo_B3HW.shape
        x, skips, levels = photo_B3HW, [], []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for upsampler, decoder, skip in zip(self.upsamplers, self.decoders, reversed(skips), strict=True):
            x = decoder(upsample_beside(upsampler, x, skip))
            levels.append(x)
        return levels


def make_block(num_in: int, num_out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each followed by batch norm (which makes a bias redundant) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(num_out, num_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU(inplace=True),
    )


def make_unet(config: UNetConfig, seed: int) -> UNet:
    """A fresh U-Net; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
