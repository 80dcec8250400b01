"""What this machine can do at all, to measure networks by.

In:  a device and a precision.   Out: billions of operations and bytes a second, measured.
Knows nothing of networks.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d

from catseg.device import read_clock

ROUNDS, WARMUP_ROUNDS = 5, 2


@dataclass(frozen=True)
class Ceiling:
    matmul_gflop_per_second: float
    convolution_gflop_per_second: float
    copy_gb_per_second: float


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The median of a large matrix product, a 3x3 convolution of 256 channels, channels-last, and a copy."""
    side, batch, pixels = (8192, 32, 128) if device.type == "cuda" else (1536, 2, 48)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    photo = torch.randn(batch, 256, pixels, pixels, generator=generator).to(device, dtype)
    weight = torch.randn(256, 256, 3, 3, generator=generator).to(device, dtype)
    photo = photo.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    source = torch.zeros(2**28 if device.type == "cuda" else 2**25, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        return Ceiling(
            2 * side**3 / 1e9 / _time(device, lambda: left @ right),
            2 * 9 * 256**2 * batch * pixels**2 / 1e9 / _time(device, lambda: conv2d(photo, weight, padding=1)),
            2 * source.nbytes / 1e9 / _time(device, lambda: target.copy_(source)),  # read and written
        )


def _time(device: torch.device, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(WARMUP_ROUNDS + ROUNDS):
        start = read_clock(device)
        work()
        seconds.append(read_clock(device) - start)
    return statistics.median(seconds[WARMUP_ROUNDS:])
