"""Contenders of one setting, timed in turn: round by round, so that a slow minute of the machine meets all of them.

In:  a setting, names of contenders, a device.   Out: what each took, or why it could not: plain numbers.
Knows nothing of files.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from catseg.device import measure_peak_mib, read_clock, release_memory, reset_peak_memory
from tests.benchmarks.graph import NUM_WARMUPS
from tests.benchmarks.setting import Setting, Work, allows_tf32, make_work, set_tf32

BLOCK_SECONDS = 0.05  # about, of calls of one contender in one round
MIN_ROUNDS, MAX_ROUNDS, ROUNDS_SECONDS = 3, 15, 15.0  # rounds end at 15, or after 15 s
MAX_CALLS = 200  # in a block
MEASURED, OUT_OF_MEMORY, FAILED = "measured", "out of memory", "failed"
OUT_OF_MEMORY_WORDS = ("out of memory", "STATUS_ALLOC_FAILED")  # of CUDA itself, and of cuDNN and cuBLAS

Make = Callable[[Setting, str, torch.device], Work]


@dataclass(frozen=True)
class Contender:
    """Warmed up and ready: from here on its calls only take time."""

    work: Work
    tf32: bool  # may be used by it
    waits: bool  # after every call
    num_calls: int  # in a block
    value: float  # of its fourth call: equal for all that compute the same
    peak_mib: float  # of its own weights, activations and workspaces; on a CPU, of the process
    warmup_seconds: float  # compiling, capturing, searching for algorithms


def measure_setting(
    setting: Setting, names: Sequence[str], device: torch.device, make: Make = make_work
) -> dict[str, dict[str, Any]]:
    """Per contender: status, seconds per call of each round by both clocks, and what Contender says of it.

    One that runs out of memory beside the others is tried again alone (`alone` is then true) before
    it counts as too large. One that fails in any other way is kept with its reason; the others go on.
    """
    results = measure_together(setting, names, device, make)
    for name in names:
        if results[name]["status"] == OUT_OF_MEMORY and len(names) > 1:
            release_all(device)
            results[name] = measure_together(setting, [name], device, make)[name] | {"alone": True}
    release_all(device)
    return results


def measure_together(
    setting: Setting, names: Sequence[str], device: torch.device, make: Make
) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    ready: dict[str, Contender] = {}
    for name in names:
        try:
            ready[name] = prepare(setting, name, device, make)
        except Exception as error:  # whatever it is, the others can still be measured
            results[name] = describe_failure(error)
        if name in results:
            release_memory(device)
    blocks: dict[str, list[tuple[float, float | None]]] = {name: [] for name in ready}
    start = read_clock(device)
    for number in range(MAX_ROUNDS):
        for name in rotate(list(ready), number):
            try:
                blocks[name].append(time_block(ready[name], device))
            except Exception as error:
                results[name] = describe_failure(error)
            if name in results:
                del ready[name]
                release_memory(device)
        if number + 1 >= MIN_ROUNDS and read_clock(device) - start > ROUNDS_SECONDS:
            break
    for name, contender in ready.items():
        results[name] = describe(contender, blocks[name])
    return {name: results[name] for name in names}


def prepare(setting: Setting, name: str, device: torch.device, make: Make) -> Contender:
    """Make a contender, warm it up, see what memory it takes and how many calls fill a block.

    The fourth call gives the value, also of one that is replayed: its first three warmed it up.
    """
    tf32 = allows_tf32(setting, name)
    waits = setting.task == "inference" and setting.batch_size == 1  # a latency, not a rate
    before_mib = measure_allocated_mib(device)
    reset_peak_memory(device)
    start = read_clock(device)
    with set_tf32(tf32):
        work = make(setting, name, device)
        if not name.endswith("graphed"):  # those are warm, and all that they allocate was allocated in the recording
            for _ in range(NUM_WARMUPS):
                work()
                reset_peak_memory(device)
        value = float(work().float().mean())
        warm = read_clock(device)
        work()
        seconds = read_clock(device) - warm
    num_calls = min(MAX_CALLS, max(1, round(BLOCK_SECONDS / seconds)))
    peak_mib = measure_peak_mib(device) - before_mib
    return Contender(work, tf32, waits, num_calls, value, peak_mib, warm - start)


def rotate(names: list[str], number: int) -> Iterator[str]:
    """Each round begins with another contender, so that none always follows the same one."""
    for place in range(len(names)):
        yield names[(place + number) % len(names)]


def time_block(contender: Contender, device: torch.device) -> tuple[float, float | None]:
    """Seconds per call by the host's clock, the device waited for, and by the GPU's own (None without one)."""
    on_gpu = device.type == "cuda"
    with set_tf32(contender.tf32):
        if contender.num_calls > 1:
            contender.work()  # untimed: caches are this contender's again
        if on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = read_clock(device)
        if on_gpu:
            begin.record()
        for _ in range(contender.num_calls):
            contender.work()
            if contender.waits:
                read_clock(device)
        if on_gpu:
            end.record()
        host_seconds = (read_clock(device) - start) / contender.num_calls
    return host_seconds, begin.elapsed_time(end) / 1000 / contender.num_calls if on_gpu else None


def describe(contender: Contender, blocks: list[tuple[float, float | None]]) -> dict[str, Any]:
    """Values are kept raw, of each round; `seconds` is the median by the host's clock."""
    host_seconds = [host for host, _ in blocks]
    return {
        "status": MEASURED,
        "seconds": statistics.median(host_seconds),
        "host_seconds": host_seconds,
        "event_seconds": [event for _, event in blocks if event is not None],
        "num_calls": contender.num_calls,
        "value": contender.value,
        "peak_mib": round(contender.peak_mib, 1),
        "warmup_seconds": contender.warmup_seconds,
        "alone": False,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_failure(error: BaseException) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [""]
    status = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
    return {"status": status, "reason": f"{type(error).__name__}: {lines[0]}"[:300], "alone": False}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Also where a compiler or the end of a recording has wrapped it in an error of its own."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in OUT_OF_MEMORY_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def measure_allocated_mib(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def release_all(device: torch.device) -> None:
    """Compiled code, too: it holds on to the networks it was made for, and each setting compiles anew."""
    if device.type == "cuda":
        torch.compiler.reset()
    release_memory(device)
