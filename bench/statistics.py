"""Counts of several settings on the same photos -> how far apart they are, and how sure that is.

In:  hits and errors per seed, photo and class.   Out: estimates with intervals; which of several are told apart.
Knows nothing of trials, files or terminals.      (A settings, S seeds of one, N photos, K classes, D draws)

Two things make a score what it is and might have been others: the seeds, and the photos. Both are drawn anew, seeds
of each setting by themselves, photos for all settings at once, for they were all asked about the same ones: so what
makes a photo hard for everybody cancels out. The score is drawn as it is computed, pooled over the photos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

NUM_DRAWS = 10_000
ALPHA = 0.05  # intervals are of 95 %
CHUNK = 500  # draws at a time: their weights for 10,000 photos are 40 MB

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """Scores of settings as they are, and as they might have been with other seeds and photos."""

    scores: tuple[Float64, ...]  # of each setting: miou_S
    draws_AD: Float64  # means over the seeds
    num_photos: int

    @cached_property
    def means_A(self) -> Float64:
        return np.array([miou_S.mean() for miou_S in self.scores])


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with the interval that holds the true one in 95 of 100 such studies."""

    value: float
    low: float
    high: float
    p: float  # how often so much or more would be seen if the true value were 0

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


def draw(counts: Sequence[Int64], num_draws: int = NUM_DRAWS, seed: int = 0) -> Draws:
    """Draw seeds and photos anew; `counts` are counts_SNK3 of each setting, photos in the same order everywhere.

    Of S seeds, drawn with replacement, the mean varies too little, by (S - 1) / S: with three seeds a
    third of the variance is missing. So what a draw's seeds deviate by is stretched to the right size.
    """
    generator = np.random.default_rng(seed)
    num_photos = counts[0].shape[1]
    # float32 knows a sum of a billion pixels to 100, and is twice as fast
    flat = [counts_SNK3.astype(np.float32).swapaxes(0, 1).reshape(num_photos, -1) for counts_SNK3 in counts]
    draws_AD = np.empty((len(counts), num_draws))
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        photo_DN = generator.multinomial(num_photos, np.full(num_photos, 1 / num_photos), size).astype(np.float32)
        for index, counts_SNK3 in enumerate(counts):
            num_seeds, _, num_classes, _ = counts_SNK3.shape
            sums_DSK3 = (photo_DN @ flat[index]).reshape(size, num_seeds, num_classes, 3)
            miou_DS = compute_miou(sums_DSK3)
            seed_DS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size) / num_seeds
            mean_D1 = miou_DS.mean(1, keepdims=True)
            stretch = np.sqrt(num_seeds / max(num_seeds - 1, 1))
            draws_AD[index, start : start + size] = mean_D1[:, 0] + stretch * ((miou_DS - mean_D1) * seed_DS).sum(1)
    scores = tuple(compute_miou(counts_SNK3.sum(1).astype(np.float64)) for counts_SNK3 in counts)
    return Draws(scores, draws_AD, num_photos)


def compute_miou(sums_XK3: Float) -> Float64:
    """miou_X of pooled counts, the mean over the classes that occur; 0 where none does. X may be several axes."""
    hit_XK, union_XK = sums_XK3[..., 0], sums_XK3.sum(-1)
    occurs_XK = union_XK > 0
    iou_XK = np.divide(hit_XK, union_XK, out=np.zeros_like(hit_XK), where=occurs_XK)
    miou_X: Float64 = iou_XK.sum(-1) / np.maximum(occurs_XK.sum(-1), 1)
    return miou_X


def estimate(draws: Draws, weights_A: Float64, alpha: float = ALPHA) -> Estimate:
    """The weighted sum of the settings' scores: one setting, a difference, or an effect over many.

    The draws give its standard error. How many standard errors the interval is wide follows from
    Student's t with the degrees of freedom of Welch and Satterthwaite: three seeds are few to know a
    spread from, and a normal interval would hold the truth in 85 of 100 studies.
    """
    value = float(draws.means_A @ weights_A)
    at = np.flatnonzero(weights_A)  # of thousands of settings a difference needs two
    variance = float((weights_A[at] @ draws.draws_AD[at]).var())
    parts = [  # of the variance that comes from each setting's seeds, and from how many they are
        (float(weight) ** 2 * float(miou_S.var(ddof=1)) / len(miou_S), len(miou_S) - 1)
        for weight, miou_S in ((weights_A[index], draws.scores[index]) for index in at)
        if len(miou_S) > 1
    ]
    of_seeds = sum(part for part, _ in parts)
    parts.append((max(variance - of_seeds, 0.0), draws.num_photos - 1))
    variance = max(variance, of_seeds)
    if variance < 1e-20:  # settings that answer alike on every photo
        return Estimate(value, value, value, 1.0 if abs(value) < 1e-10 else 0.0)
    degrees = variance**2 / sum(part**2 / max(freedom, 1) for part, freedom in parts)
    error = np.sqrt(variance)
    half = float(stats.t.ppf(1 - alpha / 2, degrees)) * error
    return Estimate(value, value - half, value + half, float(2 * stats.t.sf(abs(value) / error, degrees)))


def compute_holm_alphas(p: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """For each of several comparisons the share of error it may have so that all together have `alpha` (Holm, 1979).

    The comparison with the smallest p must stand alpha / n, the next one alpha / (n - 1), until one does
    not; its share is that of all others, too. So a comparison is significant where its p is below its share.
    """
    order = sorted(range(len(p)), key=lambda index: p[index])
    alphas, share = [0.0] * len(p), alpha
    has_failed = False
    for place, index in enumerate(order):
        if not has_failed:
            share = alpha / (len(p) - place)
            has_failed = p[index] > share
        alphas[index] = share
    return alphas
