"""What a person sees while trials run: one screen of progress.

In:  (trial, event) pairs, plans.   Out: lines on the terminal, plain ones when it is a pipe.
Knows nothing of files or MLflow.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from bench.plan import Plan
from bench.trial import (
    Elsewhere,
    EpochDone,
    Event,
    Experiment,
    Queued,
    Retried,
    Skipped,
    Started,
    Stopped,
    Stopping,
    Trial,
    TrialResult,
)
from catseg.dataset import Data, Leak

PLAIN_EVERY_SECONDS = 10.0  # between epoch lines when piped
NUM_LEAKS_NAMED = 3  # of many; `bench data check` names all


class _LastingOutput:
    """Standard output, and nothing instead once nobody reads it: a closed terminal, a `tee` that was killed.

    What is said is worth less than what is trained: saying it must not end the training.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> Any:
        try:
            return call(*arguments)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what its buffer holds, too, goes there
            os.close(null)
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_console() -> Console:
    """What the commands that may run for hours print on."""
    return Console(file=cast(IO[str], _LastingOutput()), soft_wrap=True, highlight=False)


class ProgressView:
    """Trial k of n, its epoch, the best so far, the time left. Feed it events; it never asks."""

    def __init__(self, console: Console, work: dict[Trial, float], best: float | None) -> None:
        self._console = console
        self._work = work  # of the whole of each pending trial: time is shared out by it
        self._best = best
        self._num_ended = 0
        self._is_stopping = False
        self._shares: dict[Trial, float] = {}  # of each trial that are done
        self._left_work = sum(work.values())
        self._done_work = 0.0  # here and now, to reckon the speed from
        self._start = self._last_line = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}")
        )
        self._grid_bar = self._bars.add_task("grid", total=self._left_work, note="")
        self._trial_bars: dict[Trial, TaskID] = {}
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
                self._show_start(trial, event)
            case EpochDone(epoch, metrics):
                self._done_work += self._advance(trial, epoch / trial.train.epochs)
                self._show_epoch(trial, epoch, metrics)
            case Retried(failure, attempt, num_attempts):
                line = f"{failure.kind}: {failure.reason}; trying again ({attempt} of {num_attempts})  {trial.name}"
                self._print(line)
            case Queued(reason):
                self._print(f"waits: {reason}  {trial.name}")
            case Elsewhere():
                self._print(f"at work in another session, waited for  {trial.name}")
            case Stopping() if not self._is_stopping:
                self._is_stopping = True
                self._print("stopping after this step, with a checkpoint; once more to stop at once")
            case Stopped(epoch):
                has_begun = epoch or trial in self._shares
                self._end(trial)
                line = f"stopped after epoch {epoch} of {trial.train.epochs}, kept" if has_begun else "not begun"
                self._print(f"{line}  {trial.name}")
            case Skipped(name, culprit):
                self._end(trial)
                self._print(format_skipped(name, culprit))
            case TrialResult():
                self._end(trial)
                self._show_result(event)

    def _advance(self, trial: Trial, share: float) -> float:
        """So much of a trial is done, here or before; the work that this adds."""
        work = self._work[trial] * (share - self._shares.get(trial, 0.0))
        self._shares[trial] = share
        self._left_work -= work
        return work

    def _end(self, trial: Trial) -> None:
        self._num_ended += 1
        self._advance(trial, 1.0)
        bar = self._trial_bars.pop(trial, None)
        if bar is not None:
            self._bars.remove_task(bar)

    def _show_start(self, trial: Trial, started: Started) -> None:
        self._advance(trial, started.epoch / trial.train.epochs)
        if trial not in self._trial_bars:
            self._trial_bars[trial] = self._bars.add_task("trial", total=trial.train.epochs, note=trial.name)
        self._bars.update(self._trial_bars[trial], completed=started.epoch)
        if started.epoch or started.step:
            self._print(f"goes on after epoch {started.epoch} of {trial.train.epochs}  {trial.name}")

    def _show_epoch(self, trial: Trial, epoch: int, metrics: dict[str, float]) -> None:
        scores = ""
        if "val/miou" in metrics:  # not every epoch is validated
            self._best = max(metrics["val/miou"], self._best or 0.0)
            scores = f"val/loss {metrics['val/loss']:.3f}  val/miou {metrics['val/miou']:.3f}  "
        line = (
            f"trial {self._num_ended + 1}/{len(self._work)}  epoch {epoch}/{trial.train.epochs}  "
            f"train/loss {metrics['train/loss']:.3f}  {scores}"
            f"best {self._best or 0.0:.3f}  left {self._format_left()}"
        )
        if self._console.is_terminal:
            if trial in self._trial_bars:
                self._bars.update(self._trial_bars[trial], completed=epoch)
            self._bars.update(self._grid_bar, completed=sum(self._work.values()) - self._left_work)
            self._status.plain = line
        elif time.monotonic() - self._last_line > PLAIN_EVERY_SECONDS:
            self._print(f"{line}  {trial.name}")

    def _show_result(self, result: TrialResult) -> None:
        where = f"{self._num_ended}/{len(self._work)}"
        if result.status == "failed":
            line = f"{where}  FAILED ({result.failure}: {result.reason})  {result.name}"
        else:
            miou = result.metrics["val/miou"]
            self._best = max(miou, self._best or 0.0)
            seconds = f"{result.metrics['cost/train_seconds']:.0f} s"
            if self._console.is_terminal:  # what is left and the best stand below, in 80 columns
                line = f"{where}  {miou:.3f}  {seconds}  {result.name}"
            else:
                left = self._format_left()
                line = f"{where}  val/miou {miou:.3f}  best {self._best:.3f}  {seconds}  left {left}  {result.name}"
        self._print(line)

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _format_left(self) -> str:
        """From the work done since the start and the seconds it took."""
        seconds = time.monotonic() - self._start
        return format_seconds(seconds * self._left_work / self._done_work) if self._done_work else "?"


def format_failed(result: TrialResult) -> str:
    """A trial that ended without a model, and why."""
    return f"FAILED  {result.name}: {result.failure}: {result.reason}"


def format_plan(experiment: Experiment, data: Data, plan: Plan) -> str:
    """How many trials, done and to do, on what; and what of it is another code's."""
    train_photos, val_photos = data.num_photos
    validation = "the same photos" if data.val_is_train else f"{val_photos} to validate"
    skipped = f", {len(plan.skipped)} skipped" if plan.skipped else ""
    line = (
        f"{experiment.name}: {len(experiment.trials)} trials, {len(plan.results)} done, {len(plan.pending)} to do"
        f"{skipped}; {train_photos} photos to train, {validation}; data {data.fingerprint}"
    )
    others = plan.of_other_code
    if others:
        commits = {plan.results[trial].environment.get("git_commit", "unknown")[:8] for trial in others}
        line += (
            f"\n{len(others)} of those done are by other code (commit {', '.join(sorted(commits))}); "
            "`bench run --rerun` does them anew and keeps the old"
        )
    return line


def format_skipped(name: str, culprit: str) -> str:
    """Why a trial was left out, by its name and the other's."""
    return f"SKIPPED  {name}: needs more memory than {culprit}, which ran out of it"


def warn_of_leaks(console: Console, leaks: Sequence[Leak]) -> None:
    """Said before the training, while there is time to stop, and under the scores that it flatters."""
    if leaks:
        count = "1 pair of photos is" if len(leaks) == 1 else f"{len(leaks)} pairs of photos are"
        named = "; ".join(f"{leak.first} = {leak.second}" for leak in leaks[:NUM_LEAKS_NAMED])
        more = ", ..." if len(leaks) > NUM_LEAKS_NAMED else ""
        console.print(
            f"Leaks: {count} nearly the same in two sets, which flatters the score: "
            f"{named}{more} (`bench data check DIR --against DIR` lists them)",
            markup=False,
        )


def format_bytes(num_bytes: int) -> str:
    """12 MiB, 3.4 GiB."""
    mib = num_bytes / 2**20
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def format_seconds(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
