"""A grid that stops paying for losers: which settings are trained in full, what that saves and what it may lose. Pure.

In:  an Experiment with a search, results.   Out: short trials, the trials of the settings that are kept; costs, lines.
Knows nothing of files, of a clock or of how a trial is run.

Every setting is trained for a few epochs, a training of its own from start to end; the best by val/miou are then
trained in full, from the beginning. docs/search.md says why it is one rung, one seed and no checkpoint to go on from.
"""

import statistics
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.compare import Leaderboard, Row, drop_seed, identify, name_settings
from bench.terminal import format_seconds
from bench.trial import Experiment, Trial, TrialResult


@dataclass(frozen=True)
class Cost:
    """Seconds in workers, all that a trial does there: its start, training, validation, checkpoints, pictures."""

    rung_seconds: float
    kept_seconds: float  # of the trainings in full of the settings that were kept
    full_seconds: float  # of all trainings in full
    num_estimated: int  # of those: not trained, so reckoned from the setting's own short training

    @property
    def share(self) -> float:
        """What the search costs of the full grid."""
        return (self.rung_seconds + self.kept_seconds) / self.full_seconds if self.full_seconds else 1.0


def make_rung(experiment: Experiment) -> tuple[Trial, ...]:
    """A short training of each setting, with the first of its seeds; in the grid's order."""
    assert experiment.search is not None
    first: dict[Hashable, Trial] = {}
    for trial in experiment.trials:
        first.setdefault(trial.setting, trial)
    epochs = experiment.search.first_epochs
    return tuple(
        replace(trial, train=replace(trial.train, epochs=epochs), varying=(*trial.varying, "epochs"), is_rung=True)
        for trial in first.values()
    )


def choose_kept(experiment: Experiment, results: Mapping[Trial, TrialResult]) -> tuple[Trial, ...]:
    """The trials in full of the settings whose short training has the highest val/miou; equals in the grid's order.

    Nothing else decides, so a later session decides alike. What failed or was skipped is not kept.
    """
    assert experiment.search is not None
    finished = [t for t in make_rung(experiment) if t in results and results[t].status == "finished"]
    finished.sort(key=lambda trial: -results[trial].metrics["val/miou"])  # a stable sort
    kept = {trial.setting for trial in finished[: experiment.search.keep]}
    return tuple(trial for trial in experiment.trials if trial.setting in kept)


def add_rung(experiment: Experiment) -> Experiment:
    """The same with its short trainings as further trials, so that each has a number of its own."""
    return replace(experiment, trials=(*experiment.trials, *make_rung(experiment)))


def match_rung(experiment: Experiment) -> dict[Trial, Trial]:
    """The short training that speaks for each trial."""
    by_setting = {trial.setting: trial for trial in make_rung(experiment)}
    return {trial: by_setting[trial.setting] for trial in experiment.trials}


def compute_cost(
    experiment: Experiment, results: Mapping[Trial, TrialResult], epoch_seconds: Mapping[Trial, Sequence[float]]
) -> Cost:
    """What the search cost, and the full grid: measured where a trial has a result, else reckoned.

    `epoch_seconds` are those of short trainings, validation included. A training in full is its short one and as
    many median epochs more; a setting that failed in the rung would have failed in the grid as soon.
    """
    kept = choose_kept(experiment, results)
    speaker = match_rung(experiment)
    rung = {trial: results[trial].seconds for trial in speaker.values() if trial in results}
    full = {trial: results[trial].seconds for trial in experiment.trials if trial in results}
    reckoned = {
        trial: rung.get(short, 0.0) + _reckon_rest(trial, short, results, epoch_seconds)
        for trial, short in speaker.items()
        if trial not in full
    }
    kept_seconds = sum(full[trial] for trial in kept if trial in full)
    return Cost(sum(rung.values()), kept_seconds, sum(full.values()) + sum(reckoned.values()), len(reckoned))


def forecast_cost(experiment: Experiment, kept: Collection[Trial], seconds: Mapping[Trial, float]) -> tuple[Cost, Cost]:
    """What the search will cost beside the full grid, as is likely and at the most; `seconds` of every trial.

    Where nobody knows what will be kept: settings of the mean cost, and the dearest.
    """
    assert experiment.search is not None
    by_setting: dict[Hashable, float] = {}
    for trial in experiment.trials:
        by_setting[trial.setting] = by_setting.get(trial.setting, 0.0) + seconds[trial]
    rung, full = sum(seconds[trial] for trial in make_rung(experiment)), sum(by_setting.values())
    dearest = sum(sorted(by_setting.values())[-experiment.search.keep :])
    likely = full * experiment.search.keep / len(by_setting)
    if kept:
        dearest = likely = sum(seconds[trial] for trial in kept)
    num_trials = len(experiment.trials)
    return Cost(rung, likely, full, num_trials), Cost(rung, dearest, full, num_trials)


def format_forecast(likely: Cost, dearest: Cost) -> str:
    """Before anything is measured."""
    most = f", {dearest.share:.0%} if the dearest are kept" if dearest.share > likely.share else ""
    return (
        f"Search: about {format_seconds(likely.rung_seconds)} for the rung and {format_seconds(likely.kept_seconds)} "
        f"for what is kept; the full grid: about {format_seconds(likely.full_seconds)}; "
        f"{likely.share:.0%} of its cost{most}"
    )


def format_search(experiment: Experiment) -> str:
    """What will be done, before anything is."""
    assert experiment.search is not None
    rung, epochs = make_rung(experiment), experiment.search.first_epochs
    seeds = sorted({trial.train.seed for trial in rung})
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else "the first of their seeds"
    return (
        f"Search: {len(rung)} settings for {epochs} epoch{'' if epochs == 1 else 's'} with {seed}, "
        f"then the best {experiment.search.keep} for all {experiment.trials[0].train.epochs}, with all seeds"
    )


def format_choice(experiment: Experiment, results: Mapping[Trial, TrialResult]) -> str:
    """Which settings go on, and how many were stopped though their score was no lower."""
    kept = dict.fromkeys(choose_kept(experiment, results))
    if not kept:
        return "Kept: no setting, for every short training failed"
    speaker = match_rung(experiment)
    names = {_name(trial): results[speaker[trial]].metrics["val/miou"] for trial in kept}
    terms = "; ".join(f"{name} ({miou:.3f})" for name, miou in names.items())
    line = f"Kept: {len(names)} of {len(set(speaker.values()))} settings: {terms}"
    last = min(names.values())
    stopped = {short for trial, short in speaker.items() if trial not in kept and short in results}
    num_alike = sum(round(results[short].metrics.get("val/miou", -1.0) - last, 3) == 0 for short in stopped)
    if num_alike:
        line += f"; {num_alike} that were stopped had the same score as the last of these: more first_epochs would tell"
    return line


def format_cost(cost: Cost) -> str:
    """What was paid, and what the full grid costs."""
    how = "measured" if not cost.num_estimated else f"{cost.num_estimated} of its trials by the rates of their rung"
    spent = cost.rung_seconds + cost.kept_seconds
    saved = cost.full_seconds - spent
    outcome = (
        f"{saved / cost.full_seconds:.0%} saved" if saved > 0 else "nothing saved: fewer epochs first, or keep fewer"
    )
    return (
        f"Search: {format_seconds(cost.rung_seconds)} for the rung and {format_seconds(cost.kept_seconds)} "
        f"for what was kept, {format_seconds(spent)} in all; the full grid: "
        f"{format_seconds(cost.full_seconds)} ({how}); {cost.share:.1%} of its cost, {outcome}"
    )


def format_regret(board: Leaderboard, kept: Collection[Trial]) -> str:
    """What the full grid says of the search's choice; the leaderboard is that of all settings, trained in full.

    The choice is what would lead if the kept settings alone were there. Tied is what the leaderboard calls so.
    """
    settings = {identify(drop_seed(trial.settings)) for trial in kept}
    chosen = next((row for row in board.rows if identify(row.settings) in settings), None)
    if chosen is None:
        return "Regret: nothing that was kept has finished, so there is nothing to compare"
    best = board.rows[0]
    winner = f"{name_settings(best.settings, board.varying)}, val/miou {best.score.value:.3f}"
    if chosen is best:
        return f"Regret: none: the search chose the full grid's winner, {winner}"
    choice = f"{name_settings(chosen.settings, board.varying)}, {chosen.score.value:.3f}"
    return f"Regret: the full grid is won by {winner}; the search chose {choice}: {_judge(chosen)}"


def _judge(row: Row) -> str:
    assert row.to_best is not None
    difference = f"{row.to_best.value:+.3f} (95 %: {row.to_best.low:+.3f} to {row.to_best.high:+.3f})"
    return f"{difference}, {'one seed, so nobody knows' if row.is_tied is None else row.state}"


def _name(trial: Trial) -> str:
    return " ".join(term for term in trial.name.split() if not term.startswith("seed="))


def _reckon_rest(
    trial: Trial,
    short: Trial,
    results: Mapping[Trial, TrialResult],
    epoch_seconds: Mapping[Trial, Sequence[float]],
) -> float:
    """Seconds that a training in full takes beyond its short one."""
    if short not in results or results[short].status == "failed" or not epoch_seconds.get(short):
        return 0.0
    return (trial.train.epochs - short.train.epochs) * statistics.median(epoch_seconds[short])
