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
STRIDE: int = 2 ** (len(WIDTHS) - 1)  # H and W must be divisible by it
GROWING_SIZES = 2  # before the full one


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
    optimizer: Literal["adam", "adamw", "rmsprop"] = "adamw"
    weight_decay: float = 0.01  # AdamW's and RMSprop's; Adam has none
    schedule: Literal["constant", "one_cycle", "cosine", "plateau"] = "one_cycle"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    augment: Literal["none", "light", "strong"] = "none"  # of the photos that are trained on
    compile: Literal["auto", "on", "off"] = "off"  # `auto`: on a GPU, once it saves more time than it takes
    decay_norms: bool = True  # whether weight decay is of biases and batch norms, too
    momentum: float = 0.0  # RMSprop's alone
    clip_norm: float | None = None  # the most that the norm of all gradients together may be
    ema: float | None = None  # decay of a moving average of the weights, which is then what is scored and kept
    dice_weight: float | None = None  # Dice's share in bce_dice, 0..1, the rest BCE's; None: their sum
    deep_supervision: bool = False  # a loss at the decoder's lower levels, too
    augment_fade: float = 0.0  # share of the epochs, the last ones, over which augmentation fades away
    first_size: int | None = None  # px; photos are trained on at this size first and grow to image_size
    grow_epochs: float = 0.7  # share of the epochs after which they have grown
    val_every: int = 1  # epochs; the last is always validated

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("val_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: must be below 2**63, got {self.seed}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: must be above 0 and finite, got {self.lr}")
        for name in ("weight_decay", "momentum", "grow_epochs"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 0 to below 1, got {getattr(self, name)}")
        if self.clip_norm is not None and not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ValueError(f"clip_norm: must be above 0 and finite, or null, got {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: must lie between 0 and 1, or be null, got {self.ema}")
        if self.dice_weight is not None and not 0 <= self.dice_weight <= 1:
            raise ValueError(f"dice_weight: must be 0 to 1, or null, got {self.dice_weight}")
        if not 0 <= self.augment_fade <= 1:
            raise ValueError(f"augment_fade: must be 0 to 1, got {self.augment_fade}")
        if not (2 * STRIDE <= self.image_size <= 4096 and self.image_size % STRIDE == 0):
            raise ValueError(
                f"image_size: must be a multiple of {STRIDE} from {2 * STRIDE} to 4096, got {self.image_size}"
            )
        first = self.first_size
        if first is not None and not (2 * STRIDE <= first <= self.image_size and first % STRIDE == 0):
            raise ValueError(
                f"first_size: must be a multiple of {STRIDE} from {2 * STRIDE} to image_size, or null, got {first}"
            )


def compute_side(config: TrainConfig, epoch: int) -> int:
    """px, at which photos are trained on in an epoch (from 1): `first_size`, one size between, then `image_size`.

    The first two last equally long, `grow_epochs` of all epochs together; the last epoch is always at full size.
    Small photos first is progressive resizing, as in EfficientNetV2 (Tan and Le, arXiv 2104.00298).
    """
    num_growing = math.floor(config.grow_epochs * config.epochs)
    if config.first_size is None or epoch > num_growing:
        return config.image_size
    stage = (epoch - 1) * GROWING_SIZES // num_growing
    side = config.first_size + (config.image_size - config.first_size) * stage / GROWING_SIZES
    return STRIDE * math.floor(side / STRIDE + 0.5)


def compute_augment_strength(config: TrainConfig, epoch: int) -> float:
    """How much of the augmentation an epoch (from 1) gets: 1, and in the last `augment_fade` of them linearly to 0."""
    num_fading = round(config.augment_fade * config.epochs)
    return min(1.0, (config.epochs - epoch) / num_fading) if num_fading else 1.0


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
