"""One `bench run` from file to ranking: joins grid, data, driver, MLflow and terminal.

In:  the flags of a command.   Out: lines on the terminal, an exit code.
Knows nothing of how any of them works.
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from rich.console import Console

from bench import journal
from bench.compare import list_failed, rank
from bench.driver import Plan, compute_work, estimate_seconds, make_plan, run_pending
from bench.grid import load_experiment
from bench.run import score_test
from bench.terminal import ProgressView, format_seconds, print_ranking
from bench.tracking import Mirror, format_ui_hint
from bench.trial import FAILURE_KINDS, Experiment, TrialResult
from catseg.dataset import Data, load_data
from catseg.device import choose_device
from catseg.errors import InputError

NUM_LEAKS_NAMED = 3  # of many; `bench data check` names all


def run_experiment(
    grid: Path, folders: Mapping[str, str | None], only: str | None, retry: str, device_name: str
) -> int:
    """Do what is missing and rank all of it. 0: all finished; 1: some trial failed."""
    console = Console(soft_wrap=True, highlight=False)
    retry_kinds = [kind.strip() for kind in retry.split(",") if kind.strip()]
    for kind in retry_kinds:
        if kind not in FAILURE_KINDS:
            raise InputError(f"--retry: unknown kind {kind!r}; choose {', '.join(FAILURE_KINDS)}")
    choose_device(device_name)
    experiment = load_experiment(grid, folders, only)
    data = _load(console, experiment)
    with journal.lock_experiment(experiment.name) as folder:
        plan = make_plan(experiment, data, folder, retry_kinds)
        console.print(_describe(experiment, data, plan))
        _warn_of_leaks(console, data)
        results = dict(plan.results)
        mirror = Mirror(experiment.name, grid)
        mirror.close_stale({result.key: result.status for result in journal.read_results(folder)})
        work = {trial: compute_work(trial, data) for trial in plan.pending}
        best = max((result.metrics["val/miou"] for result in rank(results.values())), default=None)
        running = run_pending(experiment, data, plan, folder, mirror, device_name)
        with closing(running), ProgressView(console, work, best) as view:
            for trial, event in running:
                view.show(trial, event)
                if isinstance(event, TrialResult):
                    results[trial] = event
        ordered = [results[trial] for trial in experiment.trials]
        print_ranking(console, ordered, num_seeds=len({trial.train.seed for trial in experiment.trials}))
        if data.val_is_train:
            console.print("Validated on the training photos: this shows what was memorised, not skill.")
        _warn_of_leaks(console, data)
        if experiment.data.test and rank(ordered):
            _score_winner(console, experiment, rank(ordered)[0], folder, mirror, device_name)
    _say_where(console, ordered, folder, mirror)
    return 1 if list_failed(ordered) else 0


def show_plan(grid: Path, folders: Mapping[str, str | None], only: str | None, device_name: str) -> None:
    """What is done, what is left, and about how long it will take."""
    console = Console(soft_wrap=True, highlight=False)
    choose_device(device_name)
    experiment = load_experiment(grid, folders, only)
    data = _load(console, experiment)
    plan = make_plan(experiment, data, journal.ROOT / experiment.name, retry=())
    for trial in experiment.trials:
        result = plan.results.get(trial)
        state = "to do" if result is None else result.status
        outcome = f"  val/miou {result.metrics['val/miou']:.3f}" if result and result.status == "finished" else ""
        console.print(f"{state:9s} {trial.name}{outcome}", markup=False)
    console.print(_describe(experiment, data, plan))
    _warn_of_leaks(console, data)
    if plan.pending:
        seconds = estimate_seconds(plan, data, device_name)
        console.print(f"About {format_seconds(seconds)} of training left on this machine, good to a factor of two.")


def _load(console: Console, experiment: Experiment) -> Data:
    with console.status("reading photos"):
        return load_data(experiment.data, (trial.train.image_size for trial in experiment.trials))


def _describe(experiment: Experiment, data: Data, plan: Plan) -> str:
    train_photos, val_photos = data.num_photos
    done = len(plan.results)
    validation = "the same photos" if data.val_is_train else f"{val_photos} to validate"
    return (
        f"{experiment.name}: {len(experiment.trials)} trials, {done} done, {len(plan.pending)} to do; "
        f"{train_photos} photos to train, {validation}; data {data.fingerprint}"
    )


def _warn_of_leaks(console: Console, data: Data) -> None:
    """Said before the training, while there is time to stop, and under the scores that it flatters."""
    if data.leaks:
        count = "1 pair of photos is" if len(data.leaks) == 1 else f"{len(data.leaks)} pairs of photos are"
        named = "; ".join(f"{leak.first} = {leak.second}" for leak in data.leaks[:NUM_LEAKS_NAMED])
        more = ", ..." if len(data.leaks) > NUM_LEAKS_NAMED else ""
        console.print(
            f"Leaks: {count} nearly the same in two sets, which flatters the score: "
            f"{named}{more} (`bench data check DIR --against DIR` lists them)",
            markup=False,
        )


def _score_winner(
    console: Console, experiment: Experiment, winner: TrialResult, folder: Path, mirror: Mirror, device_name: str
) -> None:
    """The test photos see one model: the one that validation chose."""
    assert experiment.data.test is not None
    trial_folder = journal.find_folder(folder, winner.key)
    assert trial_folder is not None
    metrics = journal.read_test(trial_folder, experiment.data.test)
    if metrics is None:
        batch_size = winner.settings["batch_size"]
        metrics = score_test(trial_folder / "best.safetensors", experiment.data.test, batch_size, device_name)
        journal.write_test(trial_folder, experiment.data.test, metrics)
        if winner.run_id:
            mirror.record_test(winner.run_id, metrics)
    console.print(
        f"Test: val/miou chose {winner.name} of {len(experiment.trials)}; test/miou {metrics['test/miou']:.3f} "
        f"on {experiment.data.test}",
        markup=False,
    )


def _say_where(console: Console, results: list[TrialResult], folder: Path, mirror: Mirror) -> None:
    ranked = rank(results)
    if ranked:
        best_folder = journal.find_folder(folder, ranked[0].key)
        console.print(f"\nBest model: {best_folder}/best.safetensors", markup=False)
    if mirror.problem:
        console.print(f"MLflow could not be reached ({mirror.problem}); the results are in {folder}", markup=False)
        return
    console.print("See all runs side by side:")
    for line in format_ui_hint(mirror.experiment_id):
        console.print(f"  {line}", markup=False)
