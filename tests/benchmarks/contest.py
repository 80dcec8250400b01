"""Several pieces of work timed side by side: in turn, round by round, by one clock.

In:  contestants.   Out: the durations of each, what memory each adds, and how they are put before pytest-benchmark.
Knows nothing of networks, nor of what the durations mean.

Machines grow slower and faster while they are measured, by more than what is looked for. Whoever
is timed in turn with the others suffers as they do, so that their ratio stands. Turns are not
enough: after a greedy neighbour one's own data is no longer in the caches (measured: two equals
came out 8 % apart, one always after the tutorial's network), so all have all others as neighbours.
"""

import ctypes
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import clock
import torch
from neighbours import compute_other_cores, read_usage

from catseg.device import measure_peak_mib, release_memory, reset_peak_memory

Work = Callable[[int], object]  # called with the number of its round, by which it picks its batch

WARMUP_ROUNDS = 2  # alone: caches, kernels, pools of threads; then one round beside the others
MAX_ROUNDS = 60


@dataclass(frozen=True)
class Contestant:
    """One piece of work. It is built when its contest begins, so that what it needs of memory can be told."""

    name: str
    make: Callable[[], Work]
    photos: int | None = None  # of one round
    gflop: float | None = None  # of one round
    dtype: torch.dtype | None = None  # in which it multiplies: what it is measured by
    facts: Mapping[str, object] | None = None  # what else is kept of it


@dataclass(frozen=True)
class Contest:
    """Who is timed in turn. The twins are one piece of work entered twice: how far apart they come out is noise."""

    name: str
    contestants: tuple[Contestant, ...]
    twins: tuple[str, str]
    base: str | None  # whom the others' speed is a multiple of


@dataclass(frozen=True)
class Outcome:
    """Of each contestant by name: the seconds of its rounds, and the most MiB it added."""

    seconds: dict[str, list[float]]
    peak_mib: dict[str, float | None]
    other_cores: float | None = None  # that other processes kept busy meanwhile


def measure_contest(contest: Contest, min_rounds: int, seconds_each: float) -> Outcome:
    """Build and warm up one after another, then time them in turn for about `seconds_each` a contestant."""
    device = clock.find_device()
    works: dict[str, Work] = {}
    peak_mib = {}
    _warm_up(contest.contestants[0], device)  # what a process keeps for good once it computes is nobody's
    for contestant in contest.contestants:
        works[contestant.name], peak_mib[contestant.name] = _warm_up(contestant, device)
    start = clock.read()
    measure_rounds(works, 1)
    num_rounds = choose_num_rounds(len(works), clock.read() - start, min_rounds, seconds_each)
    before = read_usage()
    seconds = measure_rounds(works, num_rounds)
    other_cores = compute_other_cores(before, read_usage())
    works.clear()
    release_memory(device)
    return Outcome(seconds, peak_mib, other_cores)


def _warm_up(contestant: Contestant, device: torch.device) -> tuple[Work, float | None]:
    """Ready to be timed, and the MiB that were in use at most since it began, less those before: all that it keeps
    and needs in passing, whoever else is there. None where nothing was added, or the system does not tell."""
    release_memory(device)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what is freed, and gives it to the next unseen
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory(device)
    before_mib = measure_peak_mib(device)
    work = contestant.make()
    for number in range(WARMUP_ROUNDS):
        work(number)
    clock.read()
    added_mib = measure_peak_mib(device) - before_mib
    return work, added_mib if added_mib > 0 else None


def choose_num_rounds(num_contestants: int, round_seconds: float, min_rounds: int, seconds_each: float) -> int:
    """As many as fit into the time, no fewer than asked for, and whole turns: everyone begins equally often."""
    fitting = math.floor(seconds_each * num_contestants / round_seconds)
    wanted = max(min_rounds, min(fitting, MAX_ROUNDS))
    return math.ceil(wanted / num_contestants) * num_contestants


def measure_rounds(
    works: Mapping[str, Work], num_rounds: int, read: Callable[[], float] = clock.read
) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, in the order that is due, all on the round's own batch."""
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for number in range(num_rounds):
            for name in (names[place] for place in make_order(len(names), number)):
                start = read()
                works[name](number)
                seconds[name].append(read() - start)
    finally:
        gc.enable()
    return seconds


def make_order(num_contestants: int, number: int) -> list[int]:
    """Who comes when in a round: A B D C, B C A D, C D B A, D A C B, then the same from the back.

    In as many rounds as there are contestants everyone has had every place once; in twice as many,
    everyone has come equally often right after each of the others (Williams, Aust. J. Sci. Res. A
    2, 1949: balanced for what the one before leaves behind).
    """
    zigzag = [(place + 1) // 2 if place % 2 else -place // 2 for place in range(num_contestants)]
    turn, shift = divmod(number, num_contestants)
    order = [(place + shift) % num_contestants for place in zigzag]
    return order[::-1] if turn % 2 else order


_replayed: list[float] = []


def read_replayed() -> float:
    """The clock of a replay, for `@pytest.mark.benchmark(timer=read_replayed)`: 0 before, the duration after."""
    return _replayed.pop() if _replayed else 0.0


def replay(benchmark, seconds: Sequence[float]) -> None:
    """Hand durations that were measured before to pytest-benchmark, as one round each, unchanged.

    The test must be marked with `read_replayed`: pytest-benchmark reads that clock around each
    round, and the round, instead of working, says what the clock is to show next.
    """
    _replayed.clear()
    left = iter(seconds)
    benchmark.pedantic(lambda: _replayed.append(next(left)), rounds=len(seconds))
