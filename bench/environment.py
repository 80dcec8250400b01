"""The machine and the code a number was measured with.

In:  what only a running torch can tell.   Out: facts by name, and a fingerprint: numbers of unlike machines are
never compared. Knows nothing of trials; torch is imported only where it must be asked, for a plan does not wait for it.
"""

import hashlib
import importlib.util
import math
import os
import platform
import runpy
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import catseg


def _hash_code() -> str:
    paths = sorted(Path(catseg.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:12]


# Of the source of catseg: what the same settings may owe another result to, whatever git says. Taken when this is
# imported, beside catseg itself: what is changed later does not run in this process.
CODE_HASH = _hash_code()

MIXED = "mixed"  # the machine fingerprint of a trial that ran on several, or with other numbers of threads


def describe_environment(gpu: str, num_threads: int) -> dict[str, str]:
    """Machine, versions and git state by name; `machine_fingerprint` hashes what timings depend on.

    `gpu` is its name or `none`, `num_threads` how many torch computes on.
    """
    machine = {
        "cpu": _read_cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(num_threads),
        "gpu": gpu,
        "torch": read_torch_version(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    fingerprint = hashlib.sha256(repr(sorted(machine.items())).encode()).hexdigest()[:12]
    code = {"catseg": catseg.__version__, "code": CODE_HASH}
    return machine | {"machine_fingerprint": fingerprint} | code | describe_git()


def read_torch_version() -> str:
    """torch.__version__, which the package's metadata does not know: that of some wheels lacks the +cu130."""
    return str(_read_torch_build()["__version__"])


def find_device_type(device_name: str) -> str:
    """`cpu` or `cuda`; InputError for what is not there. Imports torch only where there may be a GPU."""
    build = _read_torch_build()
    if device_name == "cpu" or (device_name == "auto" and not (build.get("cuda") or build.get("hip"))):
        return "cpu"
    from catseg.device import choose_device

    return choose_device(device_name).type


@cache
def _read_torch_build() -> dict[str, Any]:
    """What torch/version.py says by itself, at once, where all of torch takes a second."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    return runpy.run_path(str(Path(torch.origin).with_name("version.py")))


@cache
def describe_git() -> dict[str, str]:
    """The commit of this code and whether it was changed since; nothing where there is no git."""
    folder = Path(catseg.__file__).parent
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": str(bool(changed)).lower()}


def format_machine(environment: dict[str, str]) -> str:
    """One line for under a table."""
    if environment.get("machine_fingerprint") == MIXED:
        return "several machines or numbers of threads in one trial"
    device = environment["gpu"] if environment["gpu"] != "none" else environment["cpu"]
    return f"{device}, {environment['threads']} threads, torch {environment['torch']}"


def measure_free_mib() -> float:
    """Memory that processes may still take, in MiB: of the machine, or of a container or batch job (cgroup v2).

    Infinite where the system does not say.
    """
    free = [math.inf]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = meminfo.read_text().splitlines()
        free += [float(line.split()[1]) / 2**10 for line in lines if line.startswith("MemAvailable:")]
    own = Path("/proc/self/cgroup")
    groups = [line[4:] for line in own.read_text().splitlines() if line.startswith("0::/")] if own.exists() else []
    for group in groups:
        for folder in (Path(group), *Path(group).parents):
            limit = Path("/sys/fs/cgroup") / folder / "memory.max"
            if limit.exists() and (number := limit.read_text().strip()).isdecimal():
                free.append(float(number) / 2**20)  # what it uses is mostly cache that it can do without
    return min(free)


def read_usage() -> tuple[float, float]:
    """CPU seconds that this process has used, all its threads together, and a clock's seconds."""
    return time.process_time(), time.monotonic()


def compute_load(before: tuple[float, float], now: tuple[float, float]) -> dict[str, float]:
    """What this process used between two usages, by MLflow's names; 200 % are two cores kept busy.

    Memory is what it holds at this moment, where the system says so.
    """
    cpu_seconds, seconds = (late - early for late, early in zip(now, before, strict=True))
    load = {"system/cpu_percentage": 100 * cpu_seconds / max(seconds, 1e-9)}
    statm = Path("/proc/self/statm")
    if statm.exists():
        load["system/rss_mib"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return load


def _ask_git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _read_cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
