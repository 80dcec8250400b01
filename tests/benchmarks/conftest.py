"""How contests become entries of pytest-benchmark, what is kept with them, and the table after the run."""

from collections.abc import Callable
from dataclasses import dataclass, field

import clock
import pytest
import torch
from ceiling import measure_ceiling
from contest import Contest, Outcome, measure_contest, replay
from ratio import compute_noise_floor, compute_ratio
from table import Row, describe_row, format_table

from bench.environment import describe_environment, format_machine
from catseg.device import name_gpu


@dataclass
class Record:
    """What a session of benchmarks has measured so far."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by the contest's name: each is measured once
    ceilings: dict[torch.dtype, float] = field(default_factory=dict)  # GFLOP a second of a large convolution
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # who could not take part, and why


RECORD = pytest.StashKey[Record]()


def pytest_configure(config):
    """Called when this folder is collected: nothing has been measured yet."""
    config.stash[RECORD] = Record()


def pytest_collection_modifyitems(config, items):
    """The whole product of the axes takes an hour or more: only when `-m` asks for it by name."""
    if "wide" not in config.option.markexpr:
        wide = [item for item in items if item.get_closest_marker("wide")]
        config.hook.pytest_deselected(items=wide)
        items[:] = [item for item in items if item not in set(wide)]


@pytest.fixture
def enter(benchmark, request) -> Callable[[Contest, str], None]:
    """enter(contest, name): one contestant's entry. The first to come has the whole contest measured."""
    config = request.config
    record = config.stash[RECORD]

    def enter(contest: Contest, name: str) -> None:
        benchmark.group = contest.name
        if contest.name not in record.outcomes:
            min_rounds, seconds = config.getoption("benchmark_min_rounds"), config.getoption("benchmark_max_time")
            if not benchmark.enabled:  # --benchmark-disable: does it run at all?
                min_rounds, seconds = 1, 0
            record.outcomes[contest.name] = measure_contest(contest, min_rounds, float(seconds))
        row = make_row(contest, name, record)
        replay(benchmark, row.seconds)
        contestant = next(contestant for contestant in contest.contestants if contestant.name == name)
        benchmark.extra_info |= describe_row(row) | dict(contestant.facts or {})
        if benchmark.enabled:
            record.rows.append(row)

    return enter


@pytest.fixture
def leave_out(request) -> Callable[[str], None]:
    """leave_out(reason): this contestant is not here, which the table is to say."""

    def leave_out(reason: str) -> None:
        notes = request.config.stash[RECORD].notes
        if reason not in notes:
            notes.append(reason)
        pytest.skip(reason)

    return leave_out


def make_row(contest: Contest, name: str, record: Record) -> Row:
    """What a contest says of one contestant."""
    outcome = record.outcomes[contest.name]
    contestant = next(contestant for contestant in contest.contestants if contestant.name == name)
    ceiling = None
    if contestant.gflop is not None and contestant.dtype is not None:
        if contestant.dtype not in record.ceilings:
            measured = measure_ceiling(clock.find_device(), contestant.dtype)
            record.ceilings[contestant.dtype] = measured.convolution_gflop_per_second
        ceiling = record.ceilings[contestant.dtype]
    seconds, base = outcome.seconds[name], contest.base
    return Row(
        contest=contest.name,
        name=name,
        seconds=seconds,
        noise_floor=compute_noise_floor(*(outcome.seconds[twin] for twin in contest.twins)),
        ratio=None if base in (None, name) else compute_ratio(outcome.seconds[base], seconds),
        is_base=name == base,
        photos=contestant.photos,
        gflop=contestant.gflop,
        ceiling_gflop_per_second=ceiling,
        peak_mib=outcome.peak_mib[name],
        other_cores=outcome.other_cores,
    )


def _describe_machine() -> dict[str, str]:
    return describe_environment(name_gpu(clock.find_device()), torch.get_num_threads())


def pytest_benchmark_update_machine_info(config, machine_info):
    """What a comparison must find equal or name: `bench compare --speed` reads it."""
    machine_info["catseg"] = _describe_machine()


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own
def pytest_terminal_summary(terminalreporter, config):
    record = config.stash[RECORD]
    if record.rows:
        terminalreporter.section("speed, side by side")
        machine = format_machine(_describe_machine())
        for line in format_table(record.rows, record.notes, machine):
            terminalreporter.write_line(line)
