"""What a network and its training are told, and what follows from that by arithmetic.

In:  numbers and words, as a user wrote them.   Out: settings that hold together; operations, parameters.
Knows nothing of torch: a plan or a mistake in an experiment file is told before torch could be imported, so
these settings stand here and not beside the code that uses them.
"""

import math
from dataclasses import dataclass
from typing import Literal

# Raised whenever the same settings give other numbers by more than rounding, in which machines and numbers of threads
# differ, too: a training multiplies that, so one seed's score may move by a hundredth, but none is better for it.
RECIPE_VERSION = 1

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


@dataclass(frozen=True)
class TrainConfig:
    lr: float = 0.002  # the highest of the schedule
    image_size: int = 128  # px, side of the square that photos are fitted into
    loss: Literal["dice", "bce_dice"] = "bce_dice"
    epochs: int = 12
    batch_size: int = 8
    seed: int = 0  # of the weights, of the order of photos and of their augmentation
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 0.01  # AdamW's; Adam has none
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    augment: Literal["none", "light"] = "none"  # of the photos that are trained on
    compile: Literal["auto", "on", "off"] = "off"  # `auto`: on a GPU, once it saves more time than it takes

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


def compute_forward_gflop(init_features: int, image_size: int) -> float:
    """Billions of floating-point operations of one photo's forward pass; training takes three times that.

    Convolutions only, a multiply-add counted as two, for 3 channels in and 1 class out; equals
    torch's FlopCounterMode.
    """
    return (358 * init_features**2 + 56 * init_features) * image_size**2 / 1e9


def compute_num_parameters(config: UNetConfig) -> int:
    """Trainable parameters; equals a count of the network's own."""
    width = config.init_features
    return 7574 * width**2 + 226 * width + (width + 1) * config.num_classes  # the last: a weight per channel, a bias
