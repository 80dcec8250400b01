"""A leaderboard as people and programs read it: tables on the terminal, Markdown, CSV, JSON.

In:  a Leaderboard.   Out: text.
Knows nothing of files or of how anything was computed.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.compare import (
    NO_SPREAD,
    ONE_SEED,
    Leaderboard,
    Row,
    find_machine,
    mark_machine,
    name_settings,
)
from bench.environment import MIXED
from bench.statistics import Estimate
from bench.terminal import format_failed
from bench.trial import format_value

MAX_ROWS = 100  # on a terminal: nobody reads ten thousand

# What is timed, and so is worth something only beside what the same machine did: header, metric, decimals, rank.
TIMED = (
    ("train\ns", "cost/train_seconds", 1, 0),
    ("photos\n/s", "cost/photos_per_second", 0, 0),
    ("predict\n/s", "cost/inference_photos_per_second", 0, 1),
)


@dataclass(frozen=True)
class Column:
    """A column of the terminal's tables: those of the highest rank are left out first where the terminal is narrow."""

    header: str
    format: Callable[[Row], str]
    rank: int = 0


def print_leaderboard(console: Console, board: Leaderboard) -> None:
    """Settings by val/miou with what they cost; then what failed; then what the order is worth."""
    if board.rows:
        if board.has_spread:
            _print_table(console, board, [*_list_settings(board), *_list_scores()])
            _print_table(console, board, [*_list_settings(board), *_list_costs(board)])
        else:
            scores = [
                Column("val/\nmiou", lambda row: f"{row.score.value:.3f}"),
                Column("per\nphoto", lambda row: _format(row.find_median("val/miou_per_photo"), 3)),
                Column("best\nepoch", _format_best_epoch),
            ]
            _print_table(console, board, [*_list_settings(board), *scores, *_list_costs(board)[:-3]])
        if len(board.rows) > MAX_ROWS:
            console.print(f"... and {len(board.rows) - MAX_ROWS:,} below", highlight=False)
        for line in [*_describe_machines(board), *describe_verdict(board)]:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    for line in [*list_stopped(board, MAX_ROWS), *map(format_failed, board.failed)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def list_stopped(board: Leaderboard, num_shown: int | None = None) -> list[str]:
    """A line for each setting that was stopped: none of them has a place; of many the first."""
    if not board.stopped:
        return []
    shown = board.stopped[:num_shown]
    lines = [
        f"{each.state}, not ranked: {name_settings(each.settings, board.varying)}, val/miou then {each.miou:.3f}"
        for each in shown
    ]
    return [*lines, *([f"... and {len(board.stopped) - len(shown):,} more"] if len(board.stopped) > len(shown) else [])]


def print_effects(console: Console, board: Leaderboard) -> None:
    """What one step along each axis changed, the mean over all pairs of settings that differ in it alone."""
    if not board.effects:
        return
    table = _make_table(["setting", "from", "to", "val/miou", "95 %", "pairs"])
    for effect in board.effects:
        change = effect.change
        cells = (
            effect.setting,
            format_value(effect.before),
            format_value(effect.after),
            f"{change.value:+.3f}",
            _format_interval(change),
        )
        style = "bold" if not change.holds_zero and board.has_spread else None
        table.add_row(*cells, str(effect.num_pairs), style=style)
    console.print("\nWhat one step changes, all else equal:", highlight=False)
    console.print(table)
    if not board.has_spread:
        console.print("These intervals know of the photos alone: with one seed nobody knows what seeds change.")


def describe_verdict(board: Leaderboard) -> list[str]:
    """What the order is worth, in a sentence or two."""
    if not board.rows:
        return []
    if not board.has_spread:
        return [f"{NO_SPREAD}."]
    tied = [row for row in board.rows[1:] if row.is_tied]
    unknown = sum(row.is_tied is None for row in board.rows)
    best = f"{name_settings(board.rows[0].settings, board.varying)} is best, val/miou {board.rows[0].score.value:.3f}"
    others = len(board.rows) - 1
    if tied:
        named = "; ".join(name_settings(row.settings, board.varying) for row in tied[:3]) + (
            "; ..." if len(tied) > 3 else ""
        )
        best += f", tied with {len(tied)} of {others} others: {named}"
    elif others and not unknown:
        best += f", better than each of the {others} others"
    lines = [f"{best}."]
    if unknown:
        lines.append(f"{unknown} of {len(board.rows)} have {ONE_SEED}.")
    lines.append(
        f"Intervals: 95 %, seeds and the {board.num_photos} photos drawn anew {board.num_draws:,} times; to the best: "
        "over the same photos, with Holm's correction. Tied: the interval holds 0."
    )
    return lines


def make_records(board: Leaderboard) -> list[dict[str, Any]]:
    """Every row as plain values by name, unrounded; None where there is none. Timings: one column per machine."""
    records = []
    for row in board.rows:
        record: dict[str, Any] = {"rank": row.rank, **row.settings, "num_seeds": len(row.results)}
        record |= {"seeds": list(row.seeds), "val/miou": row.score.value, "sd": row.sd, "seed_mious": list(row.mious)}
        record |= {"low": row.score.low, "high": row.score.high, "verdict": row.verdict}
        to_best = row.to_best
        record |= {"to_best": to_best.value if to_best else None}
        record |= {"to_best_low": to_best.low if to_best else None, "to_best_high": to_best.high if to_best else None}
        for name in ("val/miou_per_photo", "cost/parameters", "cost/forward_gflop", "cost/peak_mib"):
            record[name] = row.find_median(name)
        for machine in board.machines:
            suffix = f" [{machine}]" if len(board.machines) > 1 else ""
            record |= {f"{name}{suffix}": row.find_median(name, machine) for _, name, _, _ in TIMED}
        records.append(record)
    return records


def make_stopped_records(board: Leaderboard) -> list[dict[str, Any]]:
    """Settings that were stopped, with their short scores under a name that is nobody's rank."""
    return [{**setting.settings, "verdict": setting.state, "short val/miou": setting.miou} for setting in board.stopped]


def format_csv(board: Leaderboard) -> str:
    """A line for each setting, as `make_records`; lists with spaces between."""
    records = [*make_records(board), *make_stopped_records(board)]
    names = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names) or ["rank"], lineterminator="\n")
    writer.writeheader()
    for record in records:
        lists = {name: " ".join(map(str, value)) for name, value in record.items() if isinstance(value, list)}
        writer.writerow(record | lists)
    return text.getvalue()


def format_json(board: Leaderboard) -> str:
    """Rows, effects, failures, machines and how the statistics were made."""
    effects = [
        {"setting": effect.setting, "from": effect.before, "to": effect.after, "change": effect.change.value}
        | {"low": effect.change.low, "high": effect.change.high}
        | {"num_pairs": effect.num_pairs, "num_seeds": effect.num_seeds}
        for effect in board.effects
    ]
    failed = [{"name": result.name, "kind": result.failure, "reason": result.reason} for result in board.failed]
    content: dict[str, Any] = {
        "rows": make_records(board),
        "effects": effects,
        "stopped": make_stopped_records(board),
        "failed": failed,
        "machines": board.machines,
    }
    content |= {"num_photos": board.num_photos, "num_draws": board.num_draws}
    return json.dumps(content, indent=1) + "\n"


def format_markdown(board: Leaderboard, is_narrow: bool = False) -> str:
    """The leaderboard as a Markdown table, and what it is worth under it; `is_narrow`: without what can be spared."""
    columns = [*_list_settings(board), *_list_scores(), *_list_costs(board)]
    columns = [column for column in columns if column.rank <= 1 or not is_narrow]
    header = " | ".join(column.header.replace("_\n", "_").replace("\n", " ") for column in columns)
    lines = [f"| {header} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(column.format(row) for column in columns)} |" for row in board.rows]
    notes = [*_describe_machines(board), *describe_verdict(board), *list_stopped(board)]
    notes += map(format_failed, board.failed)
    return "\n".join([*(lines if board.rows else []), "", *(f"- {_escape(note)}" for note in notes)]) + "\n"


def _list_settings(board: Leaderboard) -> list[Column]:
    def show(name: str) -> Callable[[Row], str]:
        return lambda row: format_value(row.settings[name])

    # 80 columns hold four settings in two lines
    settings = [Column(name.replace("_", "_\n"), show(name)) for name in board.varying]
    return [Column("#", lambda row: str(row.rank)), *settings]


def _list_scores() -> list[Column]:
    return [
        Column("seeds", lambda row: str(len(row.results)), rank=1),
        Column("val/\nmiou", lambda row: f"{row.score.value:.3f}"),
        Column("sd", lambda row: _format(row.sd, 3), rank=2),
        Column("95 %", lambda row: _format_interval(row.score, signed=False), rank=1),
        Column("per\nphoto", lambda row: _format(row.find_median("val/miou_per_photo"), 3), rank=3),
        Column("to best", lambda row: f"{row.to_best.value:+.3f}" if row.to_best else "", rank=2),
        Column("to best,\n95 %", lambda row: _format_interval(row.to_best) if row.to_best else ""),
        Column("", lambda row: row.verdict),
        Column("each seed", lambda row: " ".join(f"{miou:.3f}" for miou in row.mious), rank=4),
    ]


def _list_costs(board: Leaderboard) -> list[Column]:
    def show(name: str, decimals: int, machine: str | None = None, scale: float = 1.0) -> Callable[[Row], str]:
        def format_cell(row: Row) -> str:
            value = row.find_median(name, machine)
            return _format(None if value is None else value / scale, decimals)

        return format_cell

    machines = list(board.machines)
    marks = [f" {mark_machine(index)}" if len(machines) > 1 else "" for index in range(len(machines))]
    timed = [
        Column(f"{header}{mark}", show(name, decimals, machine), rank)
        for mark, machine in zip(marks, machines, strict=True)
        for header, name, decimals, rank in TIMED
        if any(row.find_median(name, machine) is not None for row in board.rows)
    ]
    return [
        *timed,
        Column("peak\nMiB", show("cost/peak_mib", 0)),
        Column("million\nparameters", show("cost/parameters", 2, scale=1e6), rank=2),
        Column("GFLOP", show("cost/forward_gflop", 2), rank=2),
        Column("epochs", lambda row: f"{row.settings['epochs']}", rank=3),
    ]


def _describe_machines(board: Leaderboard) -> list[str]:
    machines = list(board.machines.values())
    lines = [f"Machine {mark_machine(index)}: {words}" for index, words in enumerate(machines)]
    if len(machines) == 1:
        lines = [f"Machine: {machines[0]}"]
    if any(find_machine(result) == MIXED for row in board.rows for result in row.results):
        lines.append("Not timed: several machines or numbers of threads in one trial")
    return lines


def _print_table(console: Console, board: Leaderboard, columns: Sequence[Column]) -> None:
    """As many of the columns as the terminal is wide, the dispensable ones left out first."""
    unbounded = console.options.update(width=10_000)
    for most in range(max(column.rank for column in columns), -1, -1):
        kept = [column for column in columns if column.rank <= most]
        table = _make_table([column.header for column in kept])
        for row in board.rows[:MAX_ROWS]:
            table.add_row(*(column.format(row) for column in kept), style="bold" if row.rank == 1 else None)
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    console.print()
    console.print(table)


def _make_table(headers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _format(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def _format_interval(estimate: Estimate, signed: bool = True) -> str:
    sign = "+" if signed else ""
    return f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


def _format_best_epoch(row: Row) -> str:
    return " ".join(str(result.best_epoch) for result in row.results)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
