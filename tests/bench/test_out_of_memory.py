"""A trial that wants more memory than there is is told from one that is broken."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.run import _is_out_of_memory

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, is_it):
    assert _is_out_of_memory(error) == is_it


OUT_OF_MEMORY = """
import resource
import numpy as np
from bench.run import StopRequest, Task, execute
from bench.trial import Trial
from catseg.dataset import PhotoSet
from catseg.settings import TrainConfig, UNetConfig

import torch._dynamo  # which the first optimizer loads: not under the limit

mask_NSS = np.ones((4, 512, 512), np.uint8)
used_N2 = np.full((4, 2), 512)
photos = PhotoSet(tuple("abcd"), np.zeros((4, 512, 512, 3), np.uint8), mask_NSS, tuple(mask_NSS), (), used_N2)
used_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 100 * 2**20,) * 2)
trial = Trial(UNetConfig(16), TrainConfig(image_size=512, epochs=1, batch_size=4), ())
*_, last = execute(Task(trial, ("cat",)), photos, photos, "cpu", StopRequest())
print(last.kind, len(last.reason.splitlines()))
"""


def test_a_trial_that_asks_for_more_memory_than_there_is_runs_out_of_memory():
    process = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (0, "oom 1\n"), process.stderr
