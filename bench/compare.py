"""Results -> a leaderboard: which settings are best, by how much, how surely, and at what cost. Pure.

In:  results of one experiment, and what each model hit and missed in each photo.   Out: rows, effects, an order.
Knows nothing of files, of a clock or of how it is shown.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.environment import MIXED, format_machine
from bench.statistics import (
    NUM_DRAWS,
    Draws,
    Estimate,
    Int64,
    compute_holm_alphas,
    draw,
    estimate,
)
from bench.trial import TrialResult, format_value

SEED, EPOCHS = "seed", "epochs"
NAMED = ("init_features", "lr", "image_size", "loss")  # of a setting that stands alone
ONE_SEED = "one seed: not a comparison"  # of a setting
NO_SPREAD = "One seed per setting: an order, not a comparison"  # of all of them
MAX_DRAWN = 20_000_000  # scores: 10,000 trials are drawn 2,000 times


@dataclass(frozen=True)
class Row:
    """One setting, its seeds folded."""

    settings: dict[str, Any]  # without the seed
    results: tuple[TrialResult, ...]  # by seed
    score: Estimate  # val/miou, the mean over the seeds; with one seed everywhere the interval is of the photos alone
    rank: int  # 1 is shared by the best and all that are tied with it
    to_best: Estimate | None  # what it is better (above 0) or worse by; None: it is the best
    is_tied: bool | None  # with the best; None: one seed, so nobody knows

    @property
    def state(self) -> Literal["best", "tied", "worse", "unknown"]:
        """What it is beside the best; "best" is what leads, with one seed, too."""
        if self.to_best is None:
            return "best"
        return "unknown" if self.is_tied is None else "tied" if self.is_tied else "worse"

    @property
    def verdict(self) -> str:
        """The same in a word or a few: with one seed there is none."""
        return ONE_SEED if self.is_tied is None else self.state

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(result.settings[SEED] for result in self.results)

    @property
    def mious(self) -> tuple[float, ...]:
        """val/miou of each seed."""
        return self.list_metric("val/miou")

    @property
    def sd(self) -> float | None:
        """Of val/miou over the seeds; None: there is one."""
        return statistics.stdev(self.mious) if len(self.mious) > 1 else None

    @property
    def best_result(self) -> TrialResult:
        """Of its seeds the one with the highest val/miou."""
        return max(self.results, key=lambda result: result.metrics["val/miou"])

    def list_metric(self, name: str) -> tuple[float, ...]:
        """A metric of each seed that has it."""
        return tuple(result.metrics[name] for result in self.results if name in result.metrics)

    def find_median(self, name: str, machine: str | None = None) -> float | None:
        """The median over the seeds, or over those that were timed on `machine`, a fingerprint."""
        results = [result for result in self.results if machine is None or find_machine(result) == machine]
        values = [result.metrics[name] for result in results if name in result.metrics]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Effect:
    """What one step along an axis changed, all else equal."""

    setting: str
    before: Any
    after: Any
    change: Estimate  # of val/miou, the mean over all pairs
    num_pairs: int  # of settings that differ in this alone
    num_seeds: int  # the fewest of any of them: with one, the interval is of the photos alone


@dataclass(frozen=True)
class StoppedSetting:
    """A setting that was trained for a few epochs and is not trained in full: it has no place among those that are."""

    settings: dict[str, Any]  # without the seed; `epochs` are those that it got
    miou: float  # val/miou, the mean over its seeds

    @property
    def state(self) -> str:
        epochs = self.settings[EPOCHS]
        return f"stopped after {epochs} epoch{'' if epochs == 1 else 's'}"


@dataclass(frozen=True)
class Leaderboard:
    """All that can be said of the finished trials of an experiment."""

    rows: tuple[Row, ...]  # best first
    varying: tuple[str, ...]  # settings in which rows differ
    effects: tuple[Effect, ...]
    failed: tuple[TrialResult, ...]
    machines: dict[str, str]  # fingerprint and words for each on which trials were timed, the commonest first
    num_photos: int  # that were validated on
    num_draws: int
    stopped: tuple[StoppedSetting, ...] = ()  # in the order of their short scores, which is no ranking

    @property
    def has_spread(self) -> bool:
        """Whether any setting has more than one seed: without, nothing is told apart."""
        return any(len(row.results) > 1 for row in self.rows)


def make_leaderboard(
    results: Iterable[TrialResult], counts: Mapping[str, Int64], begun: Iterable[Mapping[str, Any]] = ()
) -> Leaderboard:
    """Fold the seeds of each setting, order by the mean of val/miou, and tell apart what can be told apart.

    `counts` are counts_NK3 by a result's key, of the same photos in the same order. The best is
    compared with every other setting, over the same photos; Holm's correction keeps the chance of
    one wrong verdict among them all at 5 %. Equals in the mean go to the cheaper one. Rungs are never ranked: a
    setting that has nothing else was stopped, unless its training in full has `begun` (settings of such trials).
    """
    results = list(results)
    full = [result for result in results if not result.is_rung]
    groups = _fold([result for result in full if result.status == "finished" and result.key in counts])
    failed = tuple(result for result in results if result.status == "failed")
    stopped = _find_stopped(results, begun)
    if not groups:
        return Leaderboard((), find_axes((), [each.settings for each in stopped]), (), failed, {}, 0, 0, stopped)
    groups.sort(key=_order)
    num_draws = min(NUM_DRAWS, MAX_DRAWN // sum(map(len, groups)))
    draws = draw([np.stack([counts[result.key] for result in group]) for group in groups], num_draws)
    rows = _judge(groups, draws)
    tried = [*(row.settings for row in rows), *(drop_seed(result.settings) for result in failed if not result.is_rung)]
    short = [drop_seed(result.settings) for result in results if result.is_rung]
    varying = find_axes(tried, short)
    timed = [result for group in groups for result in group if find_machine(result) != MIXED]
    frequency = Counter(find_machine(result) for result in timed)
    words = {find_machine(result): format_machine(result.environment) for result in timed}
    machines = {machine: words[machine] for machine, _ in frequency.most_common()}
    effects = _find_effects(rows, varying, draws)
    return Leaderboard(rows, varying, effects, failed, machines, draws.num_photos, num_draws, stopped)


def find_varying(settings: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of those in which any two differ."""
    names = settings[0] if settings else ()
    return tuple(name for name in names if len({str(each.get(name)) for each in settings}) > 1)


def find_axes(tried: Sequence[Mapping[str, Any]], short: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of those in which any two differ, where some were tried for a few epochs: that is no axis."""
    names = [name for name in find_varying([*tried, *short]) if name != EPOCHS]
    return tuple(names) if EPOCHS not in find_varying(tried) else find_varying([*tried, *short])


def name_settings(settings: Mapping[str, Any], varying: Sequence[str], separator: str = " ") -> str:
    """What tells a setting from others; where nothing varies, what it is."""
    return separator.join(f"{name}={format_value(settings.get(name))}" for name in varying or NAMED)


def identify(settings: Mapping[str, Any]) -> str:
    """The same for equal settings, in whatever order they were kept."""
    return repr(sorted(settings.items()))


def drop_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """What is left of a trial's settings when its seeds are folded."""
    return {name: value for name, value in settings.items() if name != SEED}


def find_machine(result: TrialResult) -> str:
    """The fingerprint of what its seconds were taken on; "mixed" compares with nobody's."""
    return result.environment.get("machine_fingerprint", MIXED)


def mark_machine(index: int) -> str:
    """A, B, ... Z, 27, 28, ...: by what a column of timings says whose they are."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def sort_values(values: Iterable[Any]) -> list[Any]:
    """The values of a setting: none, numbers by size, words by the alphabet."""
    return sorted(set(values), key=lambda value: (value is not None, isinstance(value, str), value))


def rank(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Finished trials by val/miou, seeds and all, best first; equals in the cheaper one's favour. No rungs."""
    finished = [result for result in results if result.status == "finished" and not result.is_rung]
    return sorted(finished, key=lambda result: (-result.metrics["val/miou"], result.metrics["cost/train_seconds"]))


def list_failed(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Trials that ended without a model, in the order they ran."""
    return [result for result in results if result.status == "failed"]


def _fold(results: Sequence[TrialResult]) -> list[list[TrialResult]]:
    """The results of each setting, by seed."""
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(identify(drop_seed(result.settings)), []).append(result)
    return [sorted(group, key=lambda result: int(result.settings[SEED])) for group in groups.values()]


def _find_stopped(results: Sequence[TrialResult], begun: Iterable[Mapping[str, Any]]) -> tuple[StoppedSetting, ...]:
    """The settings whose longest training was a rung."""

    def fold(settings: Mapping[str, Any]) -> str:
        return identify({name: value for name, value in settings.items() if name not in (SEED, EPOCHS)})

    in_full = {fold(result.settings) for result in results if not result.is_rung} | set(map(fold, begun))
    groups = _fold([result for result in results if result.is_rung and result.status == "finished"])
    longest: dict[str, StoppedSetting] = {}
    for group in sorted(groups, key=lambda group: int(group[0].settings[EPOCHS])):
        settings = drop_seed(group[0].settings)
        miou = statistics.fmean(result.metrics["val/miou"] for result in group)
        longest[fold(settings)] = StoppedSetting(settings, miou)
    stopped = [setting for name, setting in longest.items() if name not in in_full]
    return tuple(sorted(stopped, key=lambda setting: -setting.miou))


def _order(group: list[TrialResult]) -> tuple[float, float, str]:
    def mean(name: str) -> float:
        return statistics.fmean(result.metrics[name] for result in group)

    return -mean("val/miou"), mean("cost/train_seconds"), group[0].key


def _estimate_score(draws: Draws, weights_A: npt.NDArray[np.float64]) -> Estimate:
    """One setting's; no score is below 0 or above 1."""
    score = estimate(draws, weights_A)
    return replace(score, low=max(score.low, 0.0), high=min(score.high, 1.0))


def _judge(groups: list[list[TrialResult]], draws: Draws) -> tuple[Row, ...]:
    weights_AA = np.eye(len(groups))
    comparisons = [estimate(draws, weights_AA[index] - weights_AA[0]) for index in range(1, len(groups))]
    can_tell = [len(group) > 1 and len(groups[0]) > 1 for group in groups[1:]]
    alphas = iter(compute_holm_alphas([c.p for c, can in zip(comparisons, can_tell, strict=True) if can]))
    rows = [
        Row(drop_seed(groups[0][0].settings), tuple(groups[0]), _estimate_score(draws, weights_AA[0]), 1, None, None)
    ]
    if len(groups[0]) > 1:
        rows[0] = replace(rows[0], is_tied=True)
    for index, group in enumerate(groups[1:], 1):
        settings, score = drop_seed(group[0].settings), _estimate_score(draws, weights_AA[index])
        if not can_tell[index - 1]:
            rows.append(Row(settings, tuple(group), score, index + 1, comparisons[index - 1], None))
            continue
        to_best = estimate(draws, weights_AA[index] - weights_AA[0], next(alphas))
        is_tied = to_best.holds_zero
        rows.append(Row(settings, tuple(group), score, 1 if is_tied else index + 1, to_best, is_tied))
    return tuple(rows)


def _find_effects(rows: tuple[Row, ...], varying: tuple[str, ...], draws: Draws) -> tuple[Effect, ...]:
    """For each axis and each step along it: the mean change over all pairs of settings that differ in it alone."""
    effects = []
    for name in varying:
        by_context: dict[str, dict[Any, int]] = {}
        for index, row in enumerate(rows):
            context = identify({other: row.settings[other] for other in varying if other != name})
            by_context.setdefault(context, {})[row.settings[name]] = index
        for before, after in pairwise(sort_values(row.settings[name] for row in rows)):
            pairs = [(at[before], at[after]) for at in by_context.values() if before in at and after in at]
            if not pairs:
                continue
            weights_A = np.zeros(len(rows))
            for first, second in pairs:
                weights_A[first] -= 1 / len(pairs)
                weights_A[second] += 1 / len(pairs)
            num_seeds = min(len(rows[index].results) for pair in pairs for index in pair)
            effects.append(Effect(name, before, after, estimate(draws, weights_A), len(pairs), num_seeds))
    return tuple(effects)
