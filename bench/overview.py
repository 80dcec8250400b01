"""What the journal knows, shown without running anything: `bench plan`, `bench sync`.

In:  the flags of a command.   Out: lines on the terminal.
Knows nothing of how trials are run.
"""

from collections.abc import Mapping
from pathlib import Path

from bench import journal
from bench.environment import find_device_type
from bench.grid import load_experiment
from bench.mirror import sync_all
from bench.plan import Plan, estimate_seconds, make_plan
from bench.store import find_store_uri
from bench.terminal import format_plan, format_seconds, make_console, warn_of_leaks
from bench.trial import Trial
from catseg.dataset import load_data
from catseg.errors import InputError


def show_plan(grid: Path, folders: Mapping[str, str | None], only: str | None, device_name: str) -> None:
    """What is done, what is left and from where, and about how long it will take."""
    console = make_console()
    if device_name not in ("auto", "cpu"):  # which are never wrong
        find_device_type(device_name)
    experiment = load_experiment(grid, folders, only)
    with console.status("reading photos"):
        data = load_data(experiment.data, (trial.train.image_size for trial in experiment.trials))
    plan = make_plan(experiment, data, journal.ROOT / experiment.name, device_name)
    # one call: a line at a time, ten thousand take seconds
    console.out("\n".join(_describe(trial, plan) for trial in experiment.trials), highlight=False)
    console.print(format_plan(experiment, data, plan), markup=False)
    warn_of_leaks(console, data.leaks)
    if plan.pending:
        seconds = estimate_seconds(plan, data, device_name)
        console.print(
            f"About {format_seconds(seconds)} left on this machine, one after another, good to a factor of two."
        )


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
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            problems.append(f"{find_store_uri()}: {folder.name} could not be sent ({reason}); try again later")
        else:
            console.print(f"{folder.name}: {num_trials} trials, {num_sent} brought up to date", markup=False)
    if problems:
        raise InputError(problems)
