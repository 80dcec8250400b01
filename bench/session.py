"""One `bench run` from file to ranking: joins grid, data, driver, mirror and terminal.

In:  the flags of a command.   Out: lines on the terminal, an exit code.
Knows nothing of how any of them works.
"""

import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bench import journal
from bench.claim import hold, make_experiment_folder
from bench.compare import Leaderboard, list_failed, make_leaderboard, rank
from bench.driver import Engine, run_pending
from bench.engine import LocalEngine
from bench.grid import load_experiment
from bench.jobs import choose_jobs
from bench.mirror import Mirror
from bench.plan import Plan, compute_work, estimate_bytes, make_plan
from bench.rules import Cluster, Rules
from bench.scoring import format_busy, format_winner, score_winner
from bench.search import (
    add_rung,
    choose_kept,
    compute_cost,
    format_choice,
    format_cost,
    format_regret,
    format_search,
    make_rung,
)
from bench.standing import list_begun, read_standing
from bench.stops import Stop, listen
from bench.store import format_ui_hint
from bench.table import print_leaderboard
from bench.terminal import (
    ProgressView,
    format_bytes,
    format_plan,
    format_skipped,
    make_console,
    warn_of_leaks,
)
from bench.trial import EpochDone, Event, Experiment, Skipped, Trial, TrialResult
from catseg.dataset import Data, load_data
from catseg.device import choose_device
from catseg.errors import InputError
from catseg.files import remove_leftovers

if TYPE_CHECKING:
    from bench.ray_engine import RayEngine

FAILED = 1  # exit code: some trial ended without a model
DRAIN_SECONDS, DRAIN_SECONDS_STOPPED = 40.0, 5.0  # of silence; a request is given up after some 30


@dataclass(frozen=True)
class _Session:
    """What all stages of one `bench run` have in common."""

    console: Console
    data: Data
    folder: Path
    rules: Rules
    ray: "RayEngine | None"


@dataclass
class _Outcome:
    """What came of a session's trials, and where its time went."""

    results: dict[Trial, TrialResult]
    skipped: dict[Trial, Skipped]
    jobs: int  # that shared the cores
    is_new: bool  # there was something to do
    is_cut_short: bool = False  # by the first failure
    exit_code: int | None = None
    problem: str = ""  # why the journal could not be written
    train_seconds: float = 0.0
    val_seconds: float = 0.0

    def has_all(self, trials: Collection[Trial]) -> bool:
        """Whether each of them has ended or was left out."""
        return all(trial in self.results or trial in self.skipped for trial in trials)


def run_experiment(grid: Path, folders: Mapping[str, str | None], only: str | None, rules: Rules) -> int:
    """Do what is missing and rank all of it. 0: all finished; 1: some trial failed; else as a stop asks for."""
    console = make_console()
    if rules.cluster is None:
        choose_device(rules.device)  # refused before photos are read
    experiment = load_experiment(grid, folders, only)
    if rules.regret and experiment.search is None:
        raise InputError(f"--regret: {grid} has no `search: {{mode: halving}}`, so nothing is stopped; leave it out")
    with console.status("reading photos"):
        data = load_data(experiment.data, (trial.train.image_size for trial in experiment.trials))
    ray = _join(console, data, rules.device, rules.cluster) if rules.cluster else None
    try:
        return _run_experiment(console, experiment, data, rules, ray)
    finally:
        if ray is not None:
            ray.leave()


def _join(console: Console, data: Data, device_name: str, cluster: Cluster) -> "RayEngine":
    """Connect to the cluster, and say what it holds."""
    from bench.ray_engine import RayEngine  # Ray is there for who asked for it

    with console.status("asking Ray for its hosts"):
        ray = RayEngine(data.sets, device_name, cluster.address, cluster.gpus_per_trial, cluster.cpus_per_trial)
    console.print(f"Ray: {ray.describe()}", markup=False)
    return ray


def _run_experiment(console: Console, experiment: Experiment, data: Data, rules: Rules, ray: "RayEngine | None") -> int:
    folder = make_experiment_folder(experiment.name)
    session = _Session(console, data, folder, rules, ray)
    everything, first = experiment, experiment
    if experiment.search is not None:
        everything, first = add_rung(experiment), replace(experiment, trials=make_rung(experiment))
    plan = _make_plan(session, first)
    if experiment.search is not None:
        console.print(format_search(experiment), markup=False)
    console.print(format_plan(first, data, plan), markup=False)
    warn_of_leaks(console, data.leaks)
    with listen() as stop:
        jobs = ray.num_places if ray else rules.jobs or _choose_jobs(console, plan, data, rules.device, stop)
    if stop.exit_code is not None:
        return _say_stopped(console, stop.exit_code)
    _check_disk(folder, plan, jobs)
    start = time.monotonic()
    with closing(Mirror(folder)) as mirror:
        if experiment.search is None:
            outcome, wanted = _run(session, experiment, plan, mirror, jobs), experiment.trials
        else:
            outcome, wanted = _search(session, experiment, plan, mirror, jobs)
        if outcome.exit_code is None and not outcome.problem:
            ordered = [outcome.results[trial] for trial in everything.trials if trial in outcome.results]
            begun = list_begun(journal.list_folders(folder).values(), data.fingerprint) if experiment.search else []
            board = make_leaderboard(ordered, journal.gather_counts(folder, ordered), begun)
            _show_outcome(console, data, board, outcome.skipped)
            if experiment.search is not None:
                _show_search(console, experiment, outcome, board, folder)
            page = _write_page(console, folder, is_new=outcome.is_new)
            all_ended = outcome.has_all(wanted)
            if experiment.data.test and board.rows and all_ended:  # the winner of a part is no winner
                _score_winner(console, board, experiment.data.test, folder, mirror, "auto" if ray else rules.device)
        _wait_for(console, mirror, DRAIN_SECONDS if outcome.exit_code is None else DRAIN_SECONDS_STOPPED)
    if outcome.problem:
        raise InputError(outcome.problem)
    if outcome.exit_code is not None:
        return _say_stopped(console, outcome.exit_code)
    _say_where_time_went(console, outcome, (time.monotonic() - start) * outcome.jobs)
    _say_where(console, board, folder, page, mirror)
    return FAILED if list_failed(ordered) or outcome.skipped else 0


def _make_plan(session: _Session, experiment: Experiment) -> Plan:
    """What is left to do on the device that trials will have."""
    data, folder, rules, ray = session.data, session.folder, session.rules, session.ray
    if ray is None:
        return make_plan(experiment, data, folder, choose_device(rules.device).type, rules.retry, rules.rerun)
    return make_plan(experiment, data, folder, ray.device_type, rules.retry, rules.rerun, ray.torch_version)


def _choose_jobs(console: Console, plan: Plan, data: Data, device_name: str, stop: Stop) -> int:
    if not plan.pending:
        return 1
    with console.status("measuring how many trials at a time are fastest"):
        choice = choose_jobs(plan, data, device_name, stop)
    if not stop.asked:
        console.print(f"jobs: {choice.reason}", markup=False)
    return choice.jobs


def _say_stopped(console: Console, exit_code: int) -> int:
    console.print("stopped; all is kept, the same command goes on", highlight=False)
    return exit_code


def _run(session: _Session, experiment: Experiment, plan: Plan, mirror: Mirror, jobs: int) -> _Outcome:
    """Run what is pending, on the screen, until it is done, somebody stops it or the disk is full."""
    data, folder, rules = session.data, session.folder, session.rules
    skipped = {trial: Skipped(trial.name, culprit.name) for trial, culprit in plan.skipped.items()}
    outcome = _Outcome(dict(plan.results), skipped, jobs, bool(plan.pending))
    work = {trial: compute_work(trial, data) for trial in plan.pending}
    best = max((result.metrics["val/miou"] for result in rank(plan.results.values())), default=None)
    engine: Engine = session.ray or LocalEngine(data.sets, rules.device, jobs)
    with closing(engine), listen() as stop:
        running = run_pending(experiment, data, plan, folder, engine, mirror, stop)
        try:
            with closing(running), ProgressView(session.console, work, best) as view:
                for trial, event in running:
                    view.show(trial, event)
                    _note(outcome, trial, event)
                    if rules.fail_fast and isinstance(event, TrialResult) and event.status == "failed":
                        stop.asked = outcome.is_cut_short = True
        except OSError as error:
            where, reason = error.filename or folder, error.strerror or error
            outcome.problem = (
                f"{where}: cannot be written ({reason}); what is finished is kept: "
                "make room or mend it, and the same command goes on"
            )
        outcome.exit_code = stop.exit_code
    return outcome


def _search(
    session: _Session, experiment: Experiment, plan: Plan, mirror: Mirror, jobs: int
) -> tuple[_Outcome, tuple[Trial, ...]]:
    """Run what is pending of the rung, then in full the settings that it keeps; with `--regret` all others, too.

    What came of both, and the trials in full that were wanted.
    """
    console, data, rules = session.console, session.data, session.rules
    everything = add_rung(experiment)
    rung = _run(session, everything, plan, mirror, jobs)
    is_whole = rung.has_all(make_rung(experiment)) and not rung.is_cut_short
    if rung.exit_code is not None or rung.problem or not is_whole:
        return rung, experiment.trials
    kept = choose_kept(experiment, rung.results)
    console.print(format_choice(experiment, rung.results), markup=False, soft_wrap=True)
    wanted = experiment.trials if rules.regret else kept
    kept_first = replace(experiment, trials=tuple(dict.fromkeys([*kept, *experiment.trials])))
    whole = _make_plan(session, kept_first)
    full = whole.restrict(wanted)
    console.print(format_plan(replace(experiment, trials=wanted), data, full), markup=False)
    if session.ray is None and rules.jobs is None and (not plan.pending or len(full.pending) < jobs):
        with listen() as stop:
            jobs = _choose_jobs(console, full, data, rules.device, stop)
        if stop.exit_code is not None:
            return replace(rung, exit_code=stop.exit_code), wanted
    _check_disk(session.folder, full, jobs)
    outcome = _run(session, everything, full, mirror, jobs)
    # others that were trained in full before: they are ranked, too, and what is wanted of them is in the outcome anew
    before = {trial: result for trial, result in (whole.results | whole.redo).items() if trial not in full.redo}
    outcome.results = before | outcome.results | rung.results
    outcome.skipped = rung.skipped | outcome.skipped
    outcome.is_new |= rung.is_new
    outcome.train_seconds += rung.train_seconds
    outcome.val_seconds += rung.val_seconds
    return outcome, wanted


def _note(outcome: _Outcome, trial: Trial, event: Event | TrialResult) -> None:
    match event:
        case EpochDone():
            outcome.train_seconds += event.train_seconds
            outcome.val_seconds += event.val_seconds
        case Skipped():
            outcome.skipped[trial] = event
        case TrialResult():
            outcome.results[trial] = event


def _check_disk(folder: Path, plan: Plan, jobs: int) -> None:
    needed, free = estimate_bytes(plan.pending, jobs), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {format_bytes(free)} free on this disk, {len(plan.pending)} trials need up to "
            f"{format_bytes(needed)}; make room, or choose some with --only"
        )


def _show_outcome(console: Console, data: Data, board: Leaderboard, skipped: Mapping[Trial, Skipped]) -> None:
    print_leaderboard(console, board)
    for trial in skipped.values():
        console.print(format_skipped(trial.name, trial.culprit), markup=False)
    if data.val_is_train:
        console.print("Validated on the training photos: this shows what was memorised, not skill.")
    warn_of_leaks(console, data.leaks)


def _show_search(console: Console, experiment: Experiment, outcome: _Outcome, board: Leaderboard, folder: Path) -> None:
    """What the search cost beside the full grid, once it is decided; where all of that was trained, what it lost."""
    folders, rung = journal.list_folders(folder), make_rung(experiment)
    if outcome.is_cut_short or not outcome.has_all(rung):
        return
    ended = [trial for trial in rung if trial in outcome.results]
    histories = {trial: journal.read_history(folders[outcome.results[trial].key]) for trial in ended}
    epoch_seconds = {
        trial: [line["train_seconds"] + line["val_seconds"] for line in history.epochs]
        for trial, history in histories.items()
    }
    console.print(format_cost(compute_cost(experiment, outcome.results, epoch_seconds)), markup=False, soft_wrap=True)
    if outcome.has_all(experiment.trials):
        kept = choose_kept(experiment, outcome.results)
        console.print(format_regret(board, kept), markup=False, soft_wrap=True)


def _write_page(console: Console, folder: Path, is_new: bool) -> Path | None:
    """The page of all that the experiment has finished, whatever grid it stood in; it stays if nothing is new."""
    from bench.report import make_report  # plotly

    page = folder / journal.REPORT
    if page.is_file() and not is_new:
        return page
    board = read_standing(folder).board
    if not board.rows:
        return None
    try:
        with hold(folder / "report.lock"), console.status("writing the page"):
            remove_leftovers(folder)  # of one that was killed; with the lock, nobody else writes here
            make_report(folder, board, page)
    except (InputError, OSError) as error:  # a full disk: all else is kept
        console.print(f"No page: {error}", markup=False)
        return None
    return page


def _score_winner(
    console: Console, board: Leaderboard, source: str, folder: Path, mirror: Mirror, device_name: str
) -> None:
    """The test photos see one setting: the one that validation chose. Of two sessions one scores it."""
    with console.status("scoring the winner on the test photos"):
        score = score_winner(folder, board, source, device_name)
    for line in format_winner(score) if score else [format_busy(board)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for trial_folder in score.folders if score else ():
        mirror.notify(trial_folder)


def _wait_for(console: Console, mirror: Mirror, patience_seconds: float) -> None:
    try:
        with console.status("") as line:
            for num_left in mirror.drain(patience_seconds):
                line.update(f"{num_left} trials to send to MLflow; Ctrl-C leaves them to `bench sync`")
    except KeyboardInterrupt:
        return  # it is said with the link that not all is there


def _say_where_time_went(console: Console, outcome: _Outcome, seconds: float) -> None:
    if outcome.train_seconds:
        train, val = outcome.train_seconds / seconds, outcome.val_seconds / seconds
        console.print(f"Time: training {train:.1%}, validation {val:.1%}, all else {1 - train - val:.1%}")


def _say_where(console: Console, board: Leaderboard, folder: Path, page: Path | None, mirror: Mirror) -> None:
    if board.rows:
        best_folder = journal.list_folders(folder)[board.rows[0].best_result.key]
        console.print(f"\nBest model: {best_folder}/best.safetensors", markup=False)
    if page is not None:
        console.print(f"All of it on one page: {page}", markup=False)
    if mirror.num_left:
        reason = f" ({mirror.status.problem})" if mirror.status.problem else ""
        console.print(
            f"MLflow has not got all of it{reason}; the results are in {folder}, `bench sync` sends the rest",
            markup=False,
        )
    if mirror.status.experiment_id:
        console.print("See all runs side by side:")
        for line in format_ui_hint(mirror.status.experiment_id):
            console.print(f"  {line}", markup=False)
