"""What a device can do at best: a matrix product, a convolution, a copy.

In:  a device and a dtype.   Out: a Ceiling, beside which a network's own figures are read.
Knows nothing of networks.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from catseg.device import read_clock

CHANNELS = 256  # of the convolution
BLOCK_SECONDS, TOTAL_SECONDS, MIN_BLOCKS = 0.02, 0.5, 3  # of each of the three


@dataclass(frozen=True)
class Ceiling:
    matmul_gflop_per_second: float
    convolution_gflop_per_second: float
    copy_gb_per_second: float  # bytes read and bytes written, 1e9 of them


@dataclass(frozen=True)
class Sizes:
    """Large enough to fill the device and its caches, small enough for two seconds."""

    side: int  # of the square matrices
    batch: int  # of the convolution
    pixels: int  # side of its photos
    numbers: int  # float32, copied


CPU, GPU = Sizes(1024, 1, 64, 2**25), Sizes(8192, 32, 128, 2**28)


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Medians over half a second each, on random numbers: zeros take less power and run faster than data does.

    Whether float32 may be multiplied as TF32 is as it is set when this is called.
    """
    sizes = GPU if device.type == "cuda" else CPU
    with torch.no_grad(), search_algorithms():
        return Ceiling(
            _measure_matmul(sizes, device, dtype),
            _measure_convolution(sizes, device, dtype),
            _measure_copy(sizes, device),
        )


@contextmanager
def search_algorithms() -> Iterator[None]:
    """cuDNN tries its algorithms at the first call with a shape and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _measure_matmul(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(sizes.side, sizes.side, device=device, dtype=dtype) for _ in range(2))
    return 2 * sizes.side**3 / 1e9 / _measure_seconds(lambda: left @ right, device)


def _measure_convolution(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> float:
    """3x3, as many channels out as in; what the border's padding saves is counted as done."""
    x = torch.randn(sizes.batch, CHANNELS, sizes.pixels, sizes.pixels, device=device, dtype=dtype)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
    x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (x, weight))
    gflop = 2 * weight.numel() * sizes.batch * sizes.pixels**2 / 1e9
    return gflop / _measure_seconds(lambda: F.conv2d(x, weight, padding=1), device)


def _measure_copy(sizes: Sizes, device: torch.device) -> float:
    source = torch.rand(sizes.numbers, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / 1e9 / _measure_seconds(lambda: target.copy_(source), device)


def _measure_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of blocks of calls, each so long that starting it and waiting for its end count for little."""
    _time(work, 2, device)  # libraries load, choose their kernels
    num_calls = max(1, round(BLOCK_SECONDS / _time(work, 1, device)))
    blocks: list[float] = []
    start = read_clock(device)
    while len(blocks) < MIN_BLOCKS or read_clock(device) - start < TOTAL_SECONDS:
        blocks.append(_time(work, num_calls, device) / num_calls)
    return statistics.median(blocks)


def _time(work: Callable[[], object], num_calls: int, device: torch.device) -> float:
    start = read_clock(device)
    for _ in range(num_calls):
        work()
    return read_clock(device) - start
