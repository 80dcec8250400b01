"""What the journal holds of each setting beside its result: its way epoch by epoch, its score on every photo.

In:  an experiment's folder, a leaderboard.   Out: bands over the seeds; IoU per setting and photo.
Knows nothing of pages or pictures.      (A settings, N photos, K classes)
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.compare import Leaderboard
from bench.journal import list_folders, read_counts, read_history

METRICS = ("val/miou", "val/loss", "train/loss")  # that are drawn per epoch

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A metric of one setting per epoch: the mean over its seeds, the least and the most of them."""

    epochs: tuple[int, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """Of the settings in the order of the leaderboard, the first ones of it."""

    bands: tuple[dict[str, Band], ...]  # by metric, for each setting
    photos: tuple[str, ...]  # names of the validation photos
    iou_AN: Float64  # the mean over the seeds; NaN: no class occurs in the photo


def load_curves(experiment_folder: Path, board: Leaderboard, num_settings: int) -> Curves:
    """Read what the first `num_settings` of a leaderboard did; files that are gone leave gaps, not errors."""
    folders = list_folders(experiment_folder)
    rows = [[folders.get(result.key) for result in row.results] for row in board.rows[:num_settings]]
    bands = tuple(_make_bands([folder for folder in row if folder]) for row in rows)
    counts = [[load_counts(folder) for folder in row if folder] for row in rows]
    photos = next((tuple(of_seed) for row in counts for of_seed in row if of_seed), ())
    ious = np.full((len(rows), len(photos)), np.nan)
    for index, of_setting in enumerate(counts):
        same = [of_seed for of_seed in of_setting if of_seed.keys() == set(photos)]
        if same and photos:
            ious[index] = np.mean([[compute_iou(of_seed[name]) for name in photos] for of_seed in same], axis=0)
    return Curves(bands, photos, ious)


def load_counts(folder: Path) -> dict[str, Sequence[Sequence[int]]]:
    """Hits, false alarms and misses of one trial per photo and class; nothing where the file is not whole."""
    counts = read_counts(folder)
    return dict(zip(counts.photos, counts.counts_NK3.tolist(), strict=True)) if counts else {}


def compute_iou(counts_K3: Sequence[Sequence[int]]) -> float:
    """IoU of one photo, the mean over the classes that occur in it, as in val/miou_per_photo; NaN: none does."""
    ious = [hits / (hits + false_alarms + misses) for hits, false_alarms, misses in counts_K3 if hits + misses]
    return statistics.fmean(ious) if ious else float("nan")


def _make_bands(folders: list[Path]) -> dict[str, Band]:
    """Each metric over the seeds; of a seed that stopped early the others go on alone."""
    values: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in METRICS}
    for folder in folders:
        for line in read_history(folder).epochs:
            for name in METRICS:
                if name in line["metrics"]:
                    values[name][line["epoch"]].append(line["metrics"][name])
    return {
        name: Band(
            tuple(sorted(by_epoch)),
            *(tuple(fold(by_epoch[epoch]) for epoch in sorted(by_epoch)) for fold in (statistics.fmean, min, max)),
        )
        for name, by_epoch in values.items()
        if by_epoch
    }
