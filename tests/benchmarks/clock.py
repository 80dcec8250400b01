"""Seconds, once the device has done all that was asked of it: the only clock of the benchmarks.

In:  nothing.   Out: the device that is measured; seconds on a monotonic clock.
Knows nothing of what is timed.

A GPU works through a queue: a clock that does not wait for it times the asking. Benchmarks that
are not measured side by side can have it from pytest-benchmark:

    PYTHONPATH=tests/benchmarks pytest --benchmark-only --benchmark-timer=clock.read FILE

PYTHONPATH, because pytest-benchmark imports its timer while it reads the command line, before
pytest has looked up `pythonpath` in pyproject.toml.
"""

from functools import cache

import torch

from catseg.device import choose_device, read_clock


@cache  # asking for GPUs again each time would be part of what is timed
def find_device() -> torch.device:
    """Where benchmarks compute: on the GPU where there is one."""
    return choose_device("auto")


def read() -> float:
    """Seconds, after everything queued on the GPU is done, where there is one."""
    return read_clock(find_device())
