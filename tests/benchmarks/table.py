"""What was measured, for people: a block of rows per contest, the machine, what the words mean.

In:  rows.   Out: lines of plain text, at most 120 columns.
Knows nothing of how it was measured.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ratio import Ratio, is_tie

WIDTH = 120
NOISY, BUSY = 0.15, 0.2  # a noise floor, and cores: of a machine that does other things, too
HEADER = f"{'':29} {'median':>9} {'middle half':>19} {'photos':>8} {'GFLOP':>7} {'of':>8} {'peak':>6}  times faster"
UNITS = f"{'':29} {'ms':>9} {'ms':>19} {'/s':>8} {'/s':>7} {'ceiling':>8} {'MiB':>6}  than the base"
LEGEND = (
    "Each block was measured in one process, in turn, round by round. Middle half: between the quartiles.",
    "Ceiling: a large 3x3 convolution in the same precision on this machine. GFLOP of training are three times those",
    "of the forward pass. Peak: the most memory that it added while it was built and warmed up. Brackets: 95 % of the",
    "ratios if the rounds are drawn anew. Tie: within the noise floor, which is how far apart one piece of work came",
    "out that was entered twice.",
)


@dataclass(frozen=True)
class Row:
    """One contestant of one contest."""

    contest: str
    name: str
    seconds: Sequence[float]  # of each round
    noise_floor: float  # of the contest
    ratio: Ratio | None  # times faster than the base; None for the base, and where there is none
    is_base: bool = False
    photos: int | None = None  # of one round
    gflop: float | None = None  # of one round
    ceiling_gflop_per_second: float | None = None
    peak_mib: float | None = None
    other_cores: float | None = None  # that other processes kept busy meanwhile

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def photos_per_second(self) -> float | None:
        return self.photos / self.median_seconds if self.photos else None

    @property
    def gflop_per_second(self) -> float | None:
        return self.gflop / self.median_seconds if self.gflop else None

    @property
    def share_of_ceiling(self) -> float | None:
        if self.gflop_per_second is None or self.ceiling_gflop_per_second is None:
            return None
        return self.gflop_per_second / self.ceiling_gflop_per_second

    @property
    def is_tie(self) -> bool:
        return self.ratio is not None and is_tie(self.ratio.value, self.noise_floor)


def describe_row(row: Row) -> dict[str, object]:
    """What is kept with the durations, as plain numbers by name; what is not known is left out."""
    facts = {
        "contest": row.contest,
        "contestant": row.name,
        "noise_floor": row.noise_floor,
        "is_base": row.is_base,
        "photos": row.photos,
        "gflop": row.gflop,
        "photos_per_second": row.photos_per_second,
        "gflop_per_second": row.gflop_per_second,
        "ceiling_gflop_per_second": row.ceiling_gflop_per_second,
        "share_of_ceiling": row.share_of_ceiling,
        "peak_mib": row.peak_mib,
        "other_cores": row.other_cores,
    }
    if row.ratio is not None:
        facts |= {
            "times_faster": row.ratio.value,
            "times_faster_95": [row.ratio.low, row.ratio.high],
            "tie": row.is_tie,
        }
    return {name: value for name, value in facts.items() if value is not None}


def format_table(rows: Iterable[Row], notes: Iterable[str], machine: str) -> Iterator[str]:
    """The rows of each contest in their order, then the machine and what was left out."""
    yield from (HEADER, UNITS)
    heads = []
    for contest, group in groupby(rows, key=lambda row: row.contest):
        members = list(group)
        heads.append(members[0])
        yield f"{contest[:80]}: {len(members[0].seconds)} rounds, noise floor {members[0].noise_floor:.1%}"
        yield from (_format_row(row) for row in members)
    yield ""
    yield f"Machine: {machine}"[:WIDTH]
    floors, cores = [head.noise_floor for head in heads], [head.other_cores or 0.0 for head in heads]
    if heads:
        yield f"Noise floor: {min(floors):.1%} to {max(floors):.1%}, each contest's beside its name."
        if max(floors) > NOISY or max(cores) > BUSY:
            yield f"Other processes kept up to {max(cores):.1f} cores busy: measure again on an idle machine."
    yield from (f"Left out: {note}"[:WIDTH] for note in notes)
    yield from LEGEND


def _format_row(row: Row) -> str:
    quartiles = statistics.quantiles(row.seconds, n=4, method="inclusive") if len(row.seconds) > 1 else row.seconds * 3
    spread = f"{_format_ms(quartiles[0])} .. {_format_ms(quartiles[2])}"
    share = "" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.0%}"
    cells = (
        f"  {row.name}"[:29].ljust(29),
        f"{_format_ms(row.median_seconds):>9}",
        f"{spread:>19}",
        f"{_format(row.photos_per_second):>8}",
        f"{_format(row.gflop_per_second):>7}",
        f"{share:>8}",
        f"{_format(row.peak_mib):>6}",
    )
    return f"{' '.join(cells)}  {_format_verdict(row)}".rstrip()[:WIDTH]


def _format_verdict(row: Row) -> str:
    if row.is_base:
        return "base"
    if row.ratio is None:
        return ""
    if row.is_tie:
        return "tie"
    return f"{row.ratio.value:.2f} ({row.ratio.low:.2f} .. {row.ratio.high:.2f})"


def _format_ms(seconds: float) -> str:
    """Four digits that count: 0.1234, 12.34, 1234."""
    ms = seconds * 1000
    decimals = max(0, 3 - len(str(int(ms)))) + (1 if ms < 1 else 0)
    return f"{ms:,.{decimals}f}"


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
