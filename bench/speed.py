"""Two files of `pytest --benchmark-only`, compared: faster, slower, or nothing that could be told.

In:  two JSON files that may be broken or hostile.   Out: lines of plain text.
Knows nothing of how the durations were measured, and needs neither torch nor pytest-benchmark.

Two things decide. The noise floor stored with each benchmark: how far apart one piece of work came
out that was entered twice, in one run. And the drift from one run to the other: how far the bases
moved, which are code of others and the same in both (the tutorial, Pillow, typer). Of 42 entries of
two runs with nearly the same code, one after the other on an idle machine, 21 lay within their
floors, 39 within the drift of 9 %, and two of the other three had truly changed. It finds what is
worth to be measured side by side in one run, and settles nothing small.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catseg.errors import InputError, make_printable

MAX_BYTES = 100_000_000  # a hundred times what all benchmarks write
MACHINE = {"cpu": "CPU", "cores": "cores", "threads": "threads", "gpu": "GPU"}  # must be equal
NAME_WIDTH = 58  # of 120 columns
AGAIN = "measure both with this project's `pytest --benchmark-only --benchmark-json=FILE`"


@dataclass(frozen=True)
class Timing:
    """One benchmark of one file. `noise_floor` 0.02: ratios within 2 % of 1 mean nothing; None: it is not known."""

    median_seconds: float
    low_seconds: float  # the quartiles
    high_seconds: float
    noise_floor: float | None
    is_base: bool = False  # no code of this project: it takes as long before and after a change


@dataclass(frozen=True)
class SpeedFile:
    """What a file says: where it was measured, with what, and how long each benchmark took."""

    path: Path
    machine: dict[str, str]
    torch: str
    code: str  # the commit, and whether it was changed
    timings: dict[str, Timing]  # by the benchmark's full name


@dataclass(frozen=True)
class Comparison:
    """B beside A. `ratio` 2: B takes half the time; `low` and `high`: if A's and B's quartiles meet at their worst."""

    first: Timing
    second: Timing
    ratio: float
    low: float
    high: float
    verdict: str  # faster, slower, tie, or unknown


def compare_speed(first: Path, second: Path) -> list[str]:
    """The lines of a comparison of B, `second`, with A, `first`; InputError where there is nothing to compare."""
    a, b = load_speed(first), load_speed(second)
    differing = [
        f"{words} {a.machine[name]} and {b.machine[name]}"
        for name, words in MACHINE.items()
        if a.machine[name] != b.machine[name]
    ]
    if differing:
        raise InputError(f"{first}, {second}: measured on different machines ({'; '.join(differing)}); {AGAIN} on one")
    if not a.timings.keys() & b.timings.keys():
        raise InputError(f"{first}, {second}: no benchmark is in both; {AGAIN} and the same selection")
    return [make_printable(line) for line in _format(a, b)]


def compute_drift(a: SpeedFile, b: SpeedFile) -> float | None:
    """How far the machine itself moved between two files: the farthest of the bases in both. None: there is none."""
    pairs = ((timing, b.timings.get(name)) for name, timing in a.timings.items())
    ratios = (one.median_seconds / other.median_seconds for one, other in pairs if other and one.is_base)
    return max((_compute_distance(ratio) for ratio in ratios), default=None)


def compare_timings(first: Timing, second: Timing, drift: float = 0.0) -> Comparison:
    """The ratio of two medians, and what it means beside the larger of the two noise floors, and the drift."""
    ratio = first.median_seconds / second.median_seconds
    floors = [timing.noise_floor for timing in (first, second) if timing.noise_floor is not None]
    if not floors:
        verdict = "unknown"
    elif _compute_distance(ratio) <= max(*floors, drift):
        verdict = "tie"
    else:
        verdict = "faster" if ratio > 1 else "slower"
    low, high = first.low_seconds / second.high_seconds, first.high_seconds / second.low_seconds
    return Comparison(first, second, ratio, low, high, verdict)


def _compute_distance(ratio: float) -> float:
    """How far a ratio is from 1, the same for its inverse: 0.25 for 1.25 and for 0.8."""
    return max(ratio, 1 / ratio) - 1


def load_speed(path: Path) -> SpeedFile:
    """Read and check a file that pytest-benchmark wrote; InputError says what is wrong with it."""
    content = _read_json(path)
    machine_info = _expect(path, content.get("machine_info"), dict, "machine_info")
    facts = machine_info.get("catseg")
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name), str) for name in MACHINE):
        raise InputError(f"{path}: does not say which machine it was measured on (machine_info.catseg); {AGAIN}")
    commit, dirty = facts.get("git_commit"), facts.get("git_dirty")
    code = f"commit {commit[:8]}{' (changed)' if dirty == 'true' else ''}" if isinstance(commit, str) else "no commit"
    entries = _expect(path, content.get("benchmarks"), list, "benchmarks")
    timings: dict[str, Timing] = {}
    for number, entry in enumerate(entries):
        where = f"benchmarks[{number}]"
        name = _expect(path, _expect(path, entry, dict, where).get("fullname"), str, f"{where}.fullname")
        if name in timings:
            raise InputError(f"{path}: {name[:NAME_WIDTH]} is in it twice; {AGAIN}")
        timings[name] = _read_timing(path, where, entry)
    if not timings:
        raise InputError(f"{path}: no benchmarks in it; {AGAIN}")
    machine = {name: facts[name][:60] for name in MACHINE}
    return SpeedFile(path, machine, str(facts.get("torch", "unknown"))[:40], code, timings)


def _read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds."""
    if not path.is_file():  # a device or a pipe might never end
        raise InputError(f"{path}: no such file; {AGAIN}")
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_BYTES:
            raise InputError(f"{path}: {num_bytes:,} bytes are over {MAX_BYTES:,}; {AGAIN}")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # no JSON, no text, brackets in brackets
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise InputError(f"{path}: cannot be read ({reason}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a file of pytest-benchmark; {AGAIN}")
    return content


def _read_timing(path: Path, where: str, entry: dict[str, Any]) -> Timing:
    stats = _expect(path, entry.get("stats"), dict, f"{where}.stats")
    median, low, high = (
        _read_number(path, stats.get(name), f"{where}.stats.{name}", 1e-12) for name in ("median", "q1", "q3")
    )
    extra = _expect(path, entry.get("extra_info", {}), dict, f"{where}.extra_info")
    floor = extra.get("noise_floor")
    if floor is not None:
        floor = _read_number(path, floor, f"{where}.extra_info.noise_floor", 0.0)
    # equal durations have quartiles that are a bit off their median in the last digit
    return Timing(median, min(low, median), max(high, median), floor, extra.get("is_base") is True)


def _read_number(path: Path, value: object, where: str, least: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < 1e12:
        return float(value)
    raise InputError(f"{path}: {where} is no number from {least:g} to 1e12; {AGAIN}")


def _expect(path: Path, value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"{path}: {where} is missing or of the wrong type; {AGAIN}")
    return value


def _format(a: SpeedFile, b: SpeedFile) -> Iterator[str]:
    for letter, file in (("A", a), ("B", b)):
        yield f"{letter}: {file.path}, torch {file.torch}, {file.code}"
    device = a.machine["cpu"] if a.machine["gpu"] == "none" else a.machine["gpu"]
    yield f"Machine of both: {device}, {a.machine['cores']} cores, {a.machine['threads']} threads"
    yield f"{'':{NAME_WIDTH}} {'A, ms':>9} {'B, ms':>9}  {'B: times faster':22} verdict"
    drift = compute_drift(a, b)
    compared = {
        name: compare_timings(timing, b.timings[name], drift or 0.0)
        for name, timing in a.timings.items()
        if name in b.timings
    }
    for name, comparison in compared.items():
        spread = f"{comparison.ratio:.2f} ({comparison.low:.2f} .. {comparison.high:.2f})"
        yield (
            f"{_shorten(name):{NAME_WIDTH}} {_format_ms(comparison.first)} {_format_ms(comparison.second)}  "
            f"{spread:22} {comparison.verdict}"
        )
    for letter, file, other in (("A", a, b), ("B", b, a)):
        for name in file.timings:
            if name not in other.timings:
                yield f"only in {letter}: {_shorten(name)}"
    yield _count([comparison.verdict for comparison in compared.values()])
    yield "In brackets: the ratio if the quartiles meet at their worst. Tie: within the larger of the two noise floors,"
    if drift is None:
        yield "and no base is in both that would tell how far the machine itself moved in between."
    else:
        yield f"or within {drift:.1%}: so far moved what is the same code in both (the bases of the contests)."
    yield "Two runs of the same code can differ by more: settle what is below 20 % side by side in one run."
    if any(comparison.verdict == "unknown" for comparison in compared.values()):
        yield "Unknown: neither file has a noise floor for it."


def _count(verdicts: Sequence[str]) -> str:
    return ", ".join(
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in ("faster", "slower", "tie", "unknown")
        if verdict in verdicts
    )


def _shorten(fullname: str) -> str:
    """Without its file; the end is what tells one from another."""
    test, bracket, parameters = fullname.partition("[")
    name = f"{test.rpartition('::')[2]}{bracket}{parameters}"
    return name if len(name) <= NAME_WIDTH else f"...{name[3 - NAME_WIDTH :]}"


def _format_ms(timing: Timing) -> str:
    ms = timing.median_seconds * 1000
    return f"{ms:9.4g}" if ms < 1000 else f"{ms:9,.0f}"
