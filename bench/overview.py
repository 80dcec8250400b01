"""What the journal knows, shown without running anything: `bench plan`, `bench sync`.

In:  the flags of a command.   Out: lines on the terminal.
Knows nothing of how trials are run.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import journal
from bench.environment import find_device_type
from bench.grid import load_experiment
from bench.mirror import sync_all
from bench.plan import Plan, compute_work, estimate_seconds, make_plan, measure_rate
from bench.search import (
    add_rung,
    choose_kept,
    forecast_cost,
    format_forecast,
    format_search,
    make_rung,
)
from bench.store import find_store_uri
from bench.terminal import format_plan, format_seconds, make_console, warn_of_leaks
from bench.trial import Experiment, Trial
from catseg.dataset import Data, load_data
from catseg.errors import InputError, first_line


def show_plan(grid: Path, folders: Mapping[str, str | None], only: str | None, device_name: str) -> None:
    """What is done, what is left and from where, and about how long it will take."""
    console = make_console()
    if device_name not in ("auto", "cpu"):  # which are never wrong
        find_device_type(device_name)
    experiment = load_experiment(grid, folders, only)
    with console.status("reading photos"):
        data = load_data(experiment.data, (trial.train.image_size for trial in experiment.trials))
    if experiment.search is not None:
        _show_search(console, experiment, data, device_name)
        return
    plan = make_plan(experiment, data, journal.ROOT / experiment.name, device_name)
    # one call: a line at a time, ten thousand take seconds
    console.out("\n".join(_describe(trial, plan) for trial in experiment.trials), highlight=False)
    console.print(format_plan(experiment, data, plan), markup=False)
    warn_of_leaks(console, data.leaks)
    _print_left(console, estimate_seconds(plan, data, device_name))


def _print_left(console: Console, seconds: float) -> None:
    if seconds:
        console.print(
            f"About {format_seconds(seconds)} left on this machine, one after another, good to a factor of two."
        )


def _show_search(console: Console, experiment: Experiment, data: Data, device_name: str) -> None:
    """The same of a search: its rung, what is trained in full as far as that is decided, its cost and the grid's."""
    everything, rung = add_rung(experiment), make_rung(experiment)
    plan = make_plan(everything, data, journal.ROOT / experiment.name, device_name)
    is_decided = all(trial in plan.results or trial in plan.skipped for trial in rung)
    kept = dict.fromkeys(choose_kept(experiment, plan.results) if is_decided else ())
    lines = [_describe(trial, plan) for trial in rung]
    for trial in experiment.trials:
        if trial in kept or trial in plan.results or trial in plan.begun or trial in plan.running:
            lines.append(_describe(trial, plan))
        else:
            lines.append(f"stopped   {trial.name}" if is_decided else f"waits     {trial.name}  for its rung")
    console.out("\n".join(lines), highlight=False)
    console.print(format_search(experiment), markup=False)
    staged = plan.restrict([*rung, *kept])
    console.print(format_plan(replace(experiment, trials=(*rung, *kept)), data, staged), markup=False)
    warn_of_leaks(console, data.leaks)
    rate = measure_rate(plan, data, device_name)
    seconds = {trial: rate * compute_work(trial, data) for trial in everything.trials}
    likely, dearest = forecast_cost(experiment, kept, seconds)
    if likely.full_seconds:
        console.print(format_forecast(likely, dearest), markup=False)
    left = sum(rate * compute_work(trial, data, plan.count_epochs(trial)) for trial in staged.pending)
    _print_left(console, left if is_decided else left + likely.kept_seconds)


def _describe(trial: Trial, plan: Plan) -> str:
    """One line: what has become of a trial."""
    result = plan.results.get(trial)
    if result is not None:
        outcome = f"val/miou {result.metrics['val/miou']:.3f}" if result.status == "finished" else f"{result.failure}"
        return f"{'done' if result.status == 'finished' else 'failed':9s} {trial.name}  {outcome}"
    if trial in plan.skipped:
        return f"skipped   {trial.name}  needs more memory than {plan.skipped[trial].name}, which ran out of it"
    epochs = plan.count_epochs(trial)
    kept = f"  epoch {epochs} of {trial.train.epochs} is kept" if epochs else ""
    state = "running" if trial in plan.running else "resumable" if epochs else "to do"
    return f"{state:9s} {trial.name}{kept}"


def sync() -> None:
    """Bring MLflow up to what the journals say: what is missing is sent, nothing twice, every status made true."""
    console = make_console()
    experiments = journal.list_experiments()
    if not experiments:
        raise InputError(f"{journal.ROOT}: no experiments here; `bench run` makes one, or change the working folder")
    problems = []
    for folder in experiments:
        num_trials = num_sent = 0
        try:
            with console.status(f"{folder.name}: asking MLflow") as line:
                for number, num_trials, was_missing in sync_all(folder):
                    num_sent += was_missing
                    line.update(f"{folder.name}: {number} of {num_trials}")
        except Exception as error:  # whatever a store, a server or a disk may raise
            reason = first_line(error)
            problems.append(f"{find_store_uri()}: {folder.name} could not be sent ({reason}); try again later")
        else:
            console.print(f"{folder.name}: {num_trials} trials, {num_sent} brought up to date", markup=False)
    if problems:
        raise InputError(problems)
