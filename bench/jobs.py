"""How many trials at a time are the fastest on this machine, found by trying.

In:  a Plan, its photos, a device.   Out: a Choice: so many, and why.
Knows nothing of journals or terminals, nor of what the trials will find.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from bench.engine import END_SECONDS, SILENCE_SECONDS, count_gpus, share_threads
from bench.environment import measure_free_mib
from bench.plan import Plan, compute_work, estimate_seconds
from bench.processes import start_process
from bench.run import take_steps
from bench.stops import WORKER, Stop
from bench.trial import Trial
from catseg.dataset import Data
from catseg.device import choose_device, measure_peak_mib, reset_peak_memory

NUM_PAIRS = 8  # rounds of one and of several trials at a time, in turn: other work on the machine hits both
NUM_OUTLIERS = 1  # pairs that may say otherwise
ROUND_SECONDS = 0.4
MIN_STEPS = 1  # of each worker in a round, however long it takes
MIN_GAIN = 0.05  # several at a time take several times the memory, and end later one by one
WORTH = 10  # measure only where what is left takes so many times as long
MEMORY_SHARE = 0.8  # of what is free: what a trial needs is known roughly
POLL_SECONDS = 0.1  # between looks at whether somebody wants to stop


@dataclass(frozen=True)
class Choice:
    """So many trials at a time, and a line that says why."""

    jobs: int
    reason: str


@dataclass(frozen=True)
class WarmUp:
    """What a worker found in its first steps."""

    step_seconds: float
    idle_mib: float  # before them
    peak_mib: float  # in them


class _GivenUp(Exception):
    """Nothing can be measured; the message says why."""


def choose_jobs(plan: Plan, data: Data, device_name: str, stop: Stop) -> Choice:
    """As many trials at a time as is fastest: one per GPU, or on a CPU what a measurement of some seconds finds.

    Ends early when `stop` says so. It leaves no process behind and writes nothing.
    """
    num_pending, threads = len(plan.pending), torch.get_num_threads()
    if choose_device(device_name).type == "cuda":
        jobs = max(1, min(count_gpus(device_name), num_pending))
        return Choice(
            jobs, "one trial at a time" if jobs == 1 else f"{jobs} trials at a time, each on a GPU of its own"
        )
    if num_pending < 2:
        return Choice(1, "one trial at a time, for there is no other")
    if threads < 2:
        return Choice(1, "one trial at a time: torch has one thread here (one core, or OMP_NUM_THREADS)")
    seconds_left = estimate_seconds(plan, data, device_name)
    if seconds_left < WORTH * compute_cost_seconds(0.0):
        return Choice(1, f"one trial at a time: about {seconds_left:.0f} s are left, too little to measure for")
    start = time.monotonic()
    try:
        ratios = _measure_ratios(plan, data, threads, seconds_left, stop)
    except (_GivenUp, OSError) as error:
        return Choice(1, f"one trial at a time: it could not be measured whether more are faster ({error})")
    jobs = choose_fastest(ratios)
    return Choice(jobs, format_ratios(ratios, jobs, threads, time.monotonic() - start))


# --- the choice ----------------------------------------------------------------------------------------------------


def choose_fastest(ratios: Mapping[int, Sequence[float]]) -> int:
    """The number of jobs with the highest median ratio among those that are truly faster than 1, else 1.

    `ratios[jobs]` are steps a second of so many jobs over those of one, pair by pair. Truly faster:
    all pairs but one are above 1, which equals manage in 9 of 256 measurements of eight pairs, however
    unlike their times; and the median is above 1 by MIN_GAIN.
    """
    medians = {jobs: statistics.median(some) for jobs, some in ratios.items()}
    faster = [jobs for jobs, some in ratios.items() if sorted(some)[NUM_OUTLIERS] > 1 and medians[jobs] >= 1 + MIN_GAIN]
    return max(faster, key=lambda jobs: medians[jobs], default=1)


def format_ratios(ratios: Mapping[int, Sequence[float]], chosen: int, threads: int, seconds: float) -> str:
    """One line: what was chosen, and what was measured."""
    if not ratios:
        return "one trial at a time: too little is left to measure for, or too little memory for two"
    if chosen > 1:
        share = threads // chosen
        return (
            f"{chosen} trials at a time, {share} thread{'s' if share > 1 else ''} each: "
            f"{statistics.median(ratios[chosen]):.2f} times as fast as one after another (measured in {seconds:.0f} s)"
        )
    found = "; ".join(
        f"{jobs} at a time: {statistics.median(some):.2f} times as fast, {min(some):.2f} to {max(some):.2f}"
        for jobs, some in ratios.items()
    )
    return f"one trial at a time ({found}; measured in {seconds:.0f} s)"


def list_candidates(most: int) -> list[int]:
    """2, 4, 8, ... and `most`; nothing below 2."""
    doubled = [2**power for power in range(1, most.bit_length()) if 2**power < most]
    return [*doubled, most] if most > 1 else []


def find_typical(works: Mapping[Trial, float]) -> Trial:
    """The trial of median cost, each counted by what it costs: half of the time goes to trials as cheap or cheaper."""
    ordered = sorted(works, key=lambda trial: works[trial])
    total = sum(works.values())
    return next(
        trial
        for trial, work in zip(ordered, accumulate(works[trial] for trial in ordered), strict=True)
        if 2 * work >= total
    )


def count_fitting(trials: Sequence[Trial], measured: Trial, warm_up: WarmUp, free_mib: float) -> int:
    """How many of the neediest trials fit into memory together.

    Beyond what an idle worker holds, memory goes with the activations, as measured for one trial.
    """

    def count_activations(trial: Trial) -> float:
        return trial.unet.init_features * trial.train.image_size**2 * trial.train.batch_size

    each_mib = (warm_up.peak_mib - warm_up.idle_mib) / count_activations(measured)
    needs = sorted((warm_up.idle_mib + each_mib * count_activations(trial) for trial in trials), reverse=True)
    return sum(total_mib <= MEMORY_SHARE * free_mib for total_mib in accumulate(needs))


def compute_cost_seconds(step_seconds: float, jobs: int = 2) -> float:
    """What it takes to measure one number of jobs, at the worst: when they are no faster than one after another."""
    rounds = (max(ROUND_SECONDS, MIN_STEPS * num * step_seconds) for num in (1, jobs))
    return NUM_PAIRS * sum(rounds)


def compute_throughput(marks: Sequence[Sequence[float]]) -> float:
    """Steps a second of all workers together, while all of them were at work.

    `marks` are each worker's clock readings: one at its start and one after every step. Steps that
    only partly lie in the common time count in part.
    """
    begin, end = max(some[0] for some in marks), min(some[-1] for some in marks)
    if end <= begin:
        raise _GivenUp("the workers were never at work together")
    steps = [np.interp([begin, end], some, range(len(some))) for some in marks]
    return float(sum(last - first for first, last in steps) / (end - begin))


# --- the measurement -----------------------------------------------------------------------------------------------


def _measure_ratios(plan: Plan, data: Data, threads: int, seconds_left: float, stop: Stop) -> dict[int, list[float]]:
    """Of each number of jobs that was tried, its throughput over that of one, pair by pair.

    More are tried until they are no faster than fewer.
    """
    trial = find_typical({trial: compute_work(trial, data, plan.count_epochs(trial)) for trial in plan.pending})
    ratios: dict[int, list[float]] = {}
    best = 1.0
    with _start_workers(trial, 1) as alone:
        (warm_up,) = _hear(alone, stop)
        most = min(threads, len(plan.pending), count_fitting(plan.pending, trial, warm_up, measure_free_mib()))
        for jobs in list_candidates(most):
            if seconds_left < WORTH * compute_cost_seconds(warm_up.step_seconds, jobs):
                break
            with _start_workers(trial, jobs) as together:
                _hear(together, stop)
                ratios[jobs] = _measure_pairs(together, alone, stop)
            if statistics.median(ratios[jobs]) <= best:
                break
            best = statistics.median(ratios[jobs])
    return ratios


def _measure_pairs(together: list[Connection], alone: list[Connection], stop: Stop) -> list[float]:
    """Throughput of these workers over that of the other, in rounds by turns, until it is clearly no higher."""
    ratios: list[float] = []
    while len(ratios) < NUM_PAIRS and sum(ratio <= 1 for ratio in ratios) <= NUM_OUTLIERS:
        ratios.append(_measure_round(together, stop) / _measure_round(alone, stop))
    return ratios


@contextmanager
def _start_workers(trial: Trial, jobs: int) -> Iterator[list[Connection]]:
    """So many processes like those that trials run in, each with a training of its own; they end with the block."""
    workers = []
    try:
        for _ in range(jobs):
            workers.append(start_process(WORKER, _step, trial, share_threads(jobs)))
        yield [link for _, link in workers]
    finally:
        for process, link in workers:
            link.close()
            process.kill()
        for process, _ in workers:
            process.join(END_SECONDS)


def _measure_round(links: list[Connection], stop: Stop) -> float:
    """Steps a second of these workers together."""
    for link in links:
        link.send("go")
    end = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < end and not stop.asked:
        time.sleep(min(POLL_SECONDS, ROUND_SECONDS))
    for link in links:
        link.send("stop")
    return compute_throughput(_hear(links, stop))


def _hear(links: list[Connection], stop: Stop) -> list[Any]:
    """One message of each."""
    heard: dict[Connection, Any] = {}
    end = time.monotonic() + SILENCE_SECONDS
    while len(heard) < len(links):
        if stop.asked:
            raise _GivenUp("stopped")
        if time.monotonic() > end:
            raise _GivenUp(f"no sign of life for {SILENCE_SECONDS:.0f} s")
        for link in wait([link for link in links if link not in heard], POLL_SECONDS):
            assert isinstance(link, Connection)
            try:
                heard[link] = link.recv()
            except (EOFError, OSError):
                raise _GivenUp("a worker died, perhaps for want of memory") from None
    return [heard[link] for link in links]


def _step(link: Connection, trial: Trial, threads: int | None) -> None:
    """A measured worker's life: warm up, say how it was; then take timed steps from each word to the next."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cpu")
    reset_peak_memory(device)
    idle_mib = measure_peak_mib(device)
    steps = take_steps(trial, "cpu")
    next(steps)
    start = time.monotonic()
    next(steps)
    with suppress(EOFError, ConnectionError):
        link.send(WarmUp(time.monotonic() - start, idle_mib, measure_peak_mib(device)))
        while True:
            link.recv()
            marks = [time.monotonic()]  # one clock for all processes
            while len(marks) <= MIN_STEPS or not link.poll():
                next(steps)
                marks.append(time.monotonic())
            link.recv()
            link.send(marks)
