"""Counts of several settings on the same photos -> how far apart they are, and how sure that is.

In:  hits and errors per seed, photo and class.   Out: estimates with intervals; which of several are told apart.
Knows nothing of trials, files or terminals.      (A settings, S seeds of one, N photos, K classes, D draws)

Two things make a score what it is and might have been others: the seeds, and the photos. Both are drawn anew, seeds
for each setting by itself, photos for all settings at once, for they were all asked about the same ones: so what
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
    seed_variances: tuple[float, ...]  # of one seed's score, for each setting
    freedom: int  # degrees of it, with which those are known
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

    Photos are drawn with replacement. So are what seeds deviated by from their setting's mean, out of
    all settings' deviations: three seeds know too little of a spread to be asked alone. A setting
    whose own seeds spread wider than that keeps its own spread.
    """
    generator = np.random.default_rng(seed)
    num_photos = counts[0].shape[1]
    scores = tuple(compute_miou(counts_SNK3.sum(1).astype(np.float64)) for counts_SNK3 in counts)
    variance, freedom, deviations_X = _pool_seeds(scores)
    # float32 knows a sum of a billion pixels to 100, and is twice as fast
    flat = [counts_SNK3.astype(np.float32).swapaxes(0, 1).reshape(num_photos, -1) for counts_SNK3 in counts]
    draws_AD = np.empty((len(counts), num_draws))
    variances = []
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        photo_DN = generator.multinomial(num_photos, np.full(num_photos, 1 / num_photos), size).astype(np.float32)
        for index, (num_seeds, _, num_classes, _) in enumerate(each.shape for each in counts):
            sums_DSK3 = (photo_DN @ flat[index]).reshape(size, num_seeds, num_classes, 3)
            draws_AD[index, start : start + size] = compute_miou(sums_DSK3).mean(1)
    for index, miou_S in enumerate(scores):
        own = max(variance, float(miou_S.var(ddof=1)) if len(miou_S) > 1 else 0.0)
        variances.append(own)
        if own:
            drawn_DS = generator.choice(deviations_X, (num_draws, len(miou_S)))
            draws_AD[index] += np.sqrt(own / variance) * drawn_DS.mean(1)
    return Draws(scores, draws_AD, tuple(variances), freedom, num_photos)


def _pool_seeds(scores: Sequence[Float64]) -> tuple[float, int, Float64]:
    """The variance of seeds within settings, its degrees of freedom, and the deviations, stretched to that variance.

    Deviations from a mean of S seeds are too small, by (S - 1) / S in the square.
    """
    several = [miou_S for miou_S in scores if len(miou_S) > 1]
    freedom = sum(len(miou_S) - 1 for miou_S in several)
    if not freedom:
        return 0.0, 0, np.zeros(1)
    variance = sum(float(((miou_S - miou_S.mean()) ** 2).sum()) for miou_S in several) / freedom
    deviations_X = np.concatenate([miou_S - miou_S.mean() for miou_S in several])
    size = float(np.sqrt((deviations_X**2).mean()))
    return variance, freedom, deviations_X * (np.sqrt(variance) / size if size else 0.0)


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
    Student's t with Satterthwaite's degrees of freedom, those of the seeds' spread and of the
    photos': a few seeds know little of a spread, and a normal interval would promise too much.
    """
    value = float(draws.means_A @ weights_A)
    at = np.flatnonzero(weights_A)  # of thousands of settings a difference needs two
    variance = float((weights_A[at] @ draws.draws_AD[at]).var())
    of_seeds = sum(weights_A[index] ** 2 * draws.seed_variances[index] / len(draws.scores[index]) for index in at)
    of_photos = max(variance - of_seeds, 0.0)
    variance = max(variance, of_seeds)
    if variance < 1e-20:  # settings that answer alike on every photo
        return Estimate(value, value, value, 1.0 if abs(value) < 1e-10 else 0.0)
    degrees = variance**2 / (of_seeds**2 / max(draws.freedom, 1) + of_photos**2 / max(draws.num_photos - 1, 1))
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
