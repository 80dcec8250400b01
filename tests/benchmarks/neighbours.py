"""How busy a machine is with other things than this process: what a noise floor does not show.

In:  nothing.   Out: cores.
Knows nothing of what is measured. Where the system does not tell (all but Linux): nothing.

A neighbour that is always there slows all rounds alike, two equals too: on two cores with one of
them taken, threads waited for each other and inference took thirty times as long, within 7 %.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Seconds since some moment: of the clock, and of all cores together on other processes."""

    wall_seconds: float
    other_seconds: float


def read_usage(stat: Path = Path("/proc/stat")) -> Usage | None:
    """So far; two of them make a measurement."""
    try:
        fields = stat.read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[:8])
    own = os.times()
    own_seconds = own.user + own.system + own.children_user + own.children_system
    return Usage(time.monotonic(), user + nice + system + irq + softirq + steal - own_seconds)


def compute_other_cores(before: Usage | None, after: Usage | None) -> float | None:
    """How many cores others kept busy in between, on average."""
    if before is None or after is None or after.wall_seconds <= before.wall_seconds:
        return None
    return max(0.0, (after.other_seconds - before.other_seconds) / (after.wall_seconds - before.wall_seconds))
