"""The tutorial's U-Net, with batch norm that is trained and logits that are not squashed.

In:  photo_B3HW, floats 0..1, H and W divisible by 16.   Out: logits_BKHW.
Knows nothing of files, losses or training.      (B batch, K classes, H height, W width in pixels)
"""

from dataclasses import dataclass

import torch
from torch import nn

from catseg.upsample import upsample_beside

WIDTHS = (1, 2, 4, 8, 16)  # of the five levels, times init_features
STRIDE = 2 ** (len(WIDTHS) - 1)  # H and W must be divisible by it


@dataclass(frozen=True)
class UNetConfig:
    init_features: int = 16  # channels of the first level; parameters and FLOPs grow with its square
    num_classes: int = 1  # foreground classes, one logit each

    def __post_init__(self) -> None:
        if not 1 <= self.init_features <= 512:
            raise ValueError(f"init_features: must be 1 to 512, got {self.init_features}")
        if not 1 <= self.num_classes <= 254:
            raise ValueError(f"num_classes: must be 1 to 254, got {self.num_classes}")


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
        assert photo_B3HW.shape[2] % STRIDE == 0 and photo_B3HW.shape[3] % STRIDE == 0, photo_B3HW.shape
        x, skips = photo_B3HW, []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for upsampler, decoder, skip in zip(self.upsamplers, self.decoders, reversed(skips), strict=True):
            x = decoder(upsample_beside(upsampler, x, skip))
        logits_BKHW: torch.Tensor = self.head(x)
        return logits_BKHW


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


def compute_forward_gflop(init_features: int, image_size: int) -> float:
    """Billions of floating-point operations of one photo's forward pass; training takes three times that.

    Convolutions only, a multiply-add counted as two, for 3 channels in and 1 class out; equals
    torch's FlopCounterMode.
    """
    return (358 * init_features**2 + 56 * init_features) * image_size**2 / 1e9
