"""How many times faster one is than another, and from when on that means anything. Pure.

In:  durations measured in turn, round by round.   Out: a ratio with its interval; the noise floor; a verdict.
Knows nothing of what was timed, nor how.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Ratio:
    """So many times faster, and the interval that the rounds, drawn anew, give it."""

    value: float
    low: float
    high: float


def compute_ratio(base_seconds: Sequence[float], own_seconds: Sequence[float]) -> Ratio:
    """Median of the base by the median of one's own: 2 is twice as fast.

    The interval is a bootstrap's: 95 % of the ratios if the rounds, both durations of a round
    together, are drawn anew with replacement, 2000 times, always the same draws.
    """
    base, own = np.asarray(base_seconds), np.asarray(own_seconds)
    picks = np.random.default_rng(0).integers(len(own), size=(NUM_RESAMPLES, len(own)))
    ratios = np.median(base[picks], axis=1) / np.median(own[picks], axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(float(np.median(base) / np.median(own)), float(low), float(high))


def compute_noise_floor(first_seconds: Sequence[float], second_seconds: Sequence[float]) -> float:
    """How far from 1 a ratio must be to mean anything, 0.02 for 2 %: from one piece of work that was entered twice.

    The larger of two things: how far apart the two medians came out (their ratio, the larger above,
    less 1), and half the width of the interval of that ratio: were they equal by chance, the rounds
    may still have scattered.
    """
    ratio = compute_ratio(first_seconds, second_seconds)
    return max(compute_distance(ratio.value), (ratio.high - ratio.low) / 2)


def compute_distance(ratio: float) -> float:
    """How far a ratio is from 1, the same for its inverse: 0.25 for 1.25 and for 0.8."""
    return max(ratio, 1 / ratio) - 1


def is_tie(ratio: float, noise_floor: float) -> bool:
    """Whether two that are equal might have come out like this."""
    return compute_distance(ratio) <= noise_floor
