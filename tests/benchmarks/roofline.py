"""The least time a training step or an inference of the U-Net can take on a device with a given ceiling.

In:  the network's width, the batch, a Ceiling.   Out: seconds.
Knows nothing of how it is computed: the layers follow from the widths alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from catseg.settings import WIDTHS

NORM_PASSES = 3 + 5  # over a batch norm's numbers in training, forward and backward, beside what convolutions do


class Peaks(Protocol):
    """Of a ceiling, what bounds a layer."""

    @property
    def matmul_gflop_per_second(self) -> float: ...
    @property
    def copy_gb_per_second(self) -> float: ...


@dataclass(frozen=True)
class Layer:
    """A convolution and what it costs a photo, forward."""

    flop: int
    num_in: int  # numbers read
    num_out: int  # numbers written
    num_weights: int  # once for the whole batch
    has_norm: bool


def list_layers(init_features: int, image_size: int) -> Iterator[Layer]:
    """The 23 convolutions of the U-Net, 3 channels in, 1 class out; FLOPs as `compute_forward_gflop` counts them."""
    widths = [init_features * factor for factor in WIDTHS]
    sides = [image_size // 2**level for level in range(len(WIDTHS))]
    for num_in, width, side in zip([3, *widths[:-1]], widths, sides, strict=True):
        yield from _list_block(num_in, width, side)
    for level in reversed(range(len(WIDTHS) - 1)):
        wide, wider, pixels = widths[level], widths[level + 1], sides[level + 1] ** 2
        yield Layer(2 * 4 * wider * wide * pixels, wider * pixels, 4 * wide * pixels, 4 * wider * wide, has_norm=False)
        yield from _list_block(2 * wide, wide, sides[level])
    pixels = image_size**2
    yield Layer(2 * init_features * pixels, init_features * pixels, pixels, init_features, has_norm=False)


def _list_block(num_in: int, width: int, side: int) -> Iterator[Layer]:
    for channels in (num_in, width):
        num_weights = 9 * channels * width
        yield Layer(2 * num_weights * side**2, channels * side**2, width * side**2, num_weights, has_norm=True)


def compute_roofline_seconds(
    init_features: int, image_size: int, batch_size: int, peaks: Peaks, bytes_per_number: int, training: bool
) -> float:
    """Each convolution takes its FLOPs at the matrix peak or its bytes at the copy's rate, whichever is longer.

    It reads its input and weights once and writes its output once; in training three times, for two
    gradients, and each batch norm then passes 8 times over its numbers. In inference batch norm and
    ReLU are free (folded). Pooling, concatenation, the loss and the optimizer are left out: nothing
    can be faster than this, and what is slower may have good reasons.
    """
    flop_per_second, bytes_per_second = peaks.matmul_gflop_per_second * 1e9, peaks.copy_gb_per_second * 1e9
    seconds = 0.0
    for layer in list_layers(init_features, image_size):
        num_bytes = bytes_per_number * (batch_size * (layer.num_in + layer.num_out) + layer.num_weights)
        convolution_seconds = max(batch_size * layer.flop / flop_per_second, num_bytes / bytes_per_second)
        if not training:
            seconds += convolution_seconds
            continue
        norm_bytes = NORM_PASSES * bytes_per_number * batch_size * layer.num_out if layer.has_norm else 0
        seconds += 3 * convolution_seconds + norm_bytes / bytes_per_second
    return seconds
