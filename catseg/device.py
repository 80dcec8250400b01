"""Where and how numbers are computed: device, precision, a clock that waits, peak memory.

In:  `auto`, `cpu`, `cuda`, `float32`, ...   Out: torch devices and dtypes, seconds, MiB.
Knows nothing of models or data.
"""

import gc
import resource
import time
from pathlib import Path

import torch

from catseg.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU; anything else is a torch device by name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: unknown device {name!r}; use auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: {name!r} has not been tried; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: {name} asked for, {torch.cuda.device_count()} GPUs found; use auto or cpu")
    return device


def name_gpu(device: torch.device) -> str:
    """The GPU's own name, `none` for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "none"


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware multiplies it, else float16 on CUDA, else float32.

    On a CPU that means AMX or AVX-512-BF16: without them autocast is slower than float32.
    """
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which the network runs; the loss is computed outside of it."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def read_clock(device: torch.device) -> float:
    """Seconds on a monotonic clock, once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def release_memory(device: torch.device) -> None:
    """Give back what an earlier training of this process no longer needs, so that the next one's peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew, where the system can (CUDA; Linux, by /proc/self/clear_refs)."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # a device named by its number is not initialised by asking for its peak
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():
        try:
            clear_refs.write_text("5")
        except PermissionError:  # some sandboxes: the peak is then that of the whole process
            return


def measure_peak_mib(device: torch.device) -> float:
    """Peak memory since the reset in MiB: allocated on the GPU, or resident in RAM for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
