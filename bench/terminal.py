"""What a person sees while trials run and after: one screen of progress, one table.

In:  (trial, event) pairs, results.   Out: lines on the terminal, plain ones when it is a pipe.
Knows nothing of files or MLflow.
"""

import math
import time
from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from bench.compare import list_failed, rank
from bench.environment import format_machine
from bench.trial import EpochDone, Event, Started, Trial, TrialResult

PLAIN_EVERY_SECONDS = 10.0  # between epoch lines when piped


class ProgressView:
    """Trial k of n, its epoch, the best so far, the time left. Feed it events; it never asks."""

    def __init__(self, console: Console, work: dict[Trial, float], best: float | None) -> None:
        self._console = console
        self._work = work  # of the pending trials: time is shared out by it
        self._best = best
        self._number = 0  # trials that have ended
        self._done_work = 0.0
        self._trial_work = 0.0
        self._start = self._last_line = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}")
        )
        self._grid_bar = self._bars.add_task("grid", total=sum(work.values()), note="")
        self._trial_bar = self._bars.add_task("trial", total=None, note="")
        self._status = Text("")
        self._live = Live(Group(self._bars, self._status), console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, trial: Trial, event: Event | TrialResult) -> None:
        match event:
            case Started():
                self._trial_work = 0.0
                self._bars.update(self._trial_bar, total=trial.train.epochs, completed=0, note=trial.name)
            case EpochDone(epoch, metrics):
                self._trial_work = self._work[trial] * epoch / trial.train.epochs
                self._show_epoch(trial, epoch, metrics)
            case TrialResult():
                self._number += 1
                self._done_work += self._work[trial]
                self._trial_work = 0.0
                self._show_result(event)

    def _show_epoch(self, trial: Trial, epoch: int, metrics: dict[str, float]) -> None:
        self._best = max(metrics["val/miou"], self._best or 0.0)
        line = (
            f"trial {self._number + 1}/{len(self._work)}  epoch {epoch}/{trial.train.epochs}  "
            f"train/loss {metrics['train/loss']:.3f}  val/loss {metrics['val/loss']:.3f}  "
            f"val/miou {metrics['val/miou']:.3f}  best {self._best:.3f}  left {self._format_left()}"
        )
        if self._console.is_terminal:
            self._bars.update(self._trial_bar, completed=epoch)
            self._bars.update(self._grid_bar, completed=self._done_work + self._trial_work)
            self._status.plain = line
        elif time.monotonic() - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{line}  {trial.name}", soft_wrap=True, highlight=False)

    def _show_result(self, result: TrialResult) -> None:
        where = f"{self._number}/{len(self._work)}"
        if result.status == "failed":
            line = f"{where}  FAILED ({result.failure}: {result.reason})  {result.name}"
        else:
            miou = result.metrics["val/miou"]
            seconds = f"{result.metrics['cost/train_seconds']:.0f} s"
            if self._console.is_terminal:  # what is left and the best stand below, in 80 columns
                line = f"{where}  {miou:.3f}  {seconds}  {result.name}"
            else:
                left = self._format_left()
                line = f"{where}  val/miou {miou:.3f}  best {self._best:.3f}  {seconds}  left {left}  {result.name}"
        self._last_line = time.monotonic()
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _format_left(self) -> str:
        """From the work done so far and the seconds it took."""
        done = self._done_work + self._trial_work
        left = sum(self._work.values()) - done
        return format_seconds((time.monotonic() - self._start) * left / done) if done else "?"


def print_ranking(console: Console, results: Iterable[TrialResult], num_seeds: int) -> None:
    """The trials by val/miou, with what they cost; then those that failed; then what the order is worth."""
    results = list(results)
    ranked, failed = rank(results), list_failed(results)
    if ranked:
        varying = [name for name in ranked[0].settings if len({str(result.settings[name]) for result in results}) > 1]
        table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
        settings = [name.replace("_", "_\n") for name in varying]  # 80 columns hold four settings in two lines
        for header in (
            "#",
            *settings,
            "val/\nmiou",
            "per\nphoto",
            "best\nepoch",
            "train\ns",
            "photos\n/s",
            "peak\nMiB",
        ):
            table.add_column(header, justify="right", no_wrap=True)
        for place, result in enumerate(ranked, 1):
            metrics = result.metrics
            table.add_row(
                str(place),
                *(f"{result.settings[name]}" for name in varying),
                f"{metrics['val/miou']:.3f}",
                f"{metrics.get('val/miou_per_photo', math.nan):.3f}",
                str(result.best_epoch),
                f"{metrics['cost/train_seconds']:.1f}",
                f"{metrics['cost/photos_per_second']:.0f}",
                f"{metrics['cost/peak_mib']:.0f}",
                style="bold" if place == 1 else None,
            )
        console.print()
        console.print(table)
        machines = {format_machine(result.environment) for result in ranked}
        console.print(f"Machine: {'; '.join(sorted(machines))}", highlight=False, soft_wrap=True)
        if num_seeds == 1:
            console.print("One seed per setting: an order, not a comparison.", highlight=False)
    for result in failed:
        console.print(
            f"FAILED  {result.name}: {result.failure}: {result.reason}", markup=False, highlight=False, soft_wrap=True
        )


def format_seconds(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
