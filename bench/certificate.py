"""Each file of a model scored anew in its own runtime, beside torch's float32.

In:  networks, validation photos.   Out: scores, what is refused, the words of certificate.json and per_photo.csv.
Knows nothing of folders, clocks or how files are made.      (N photos, K classes)
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from catseg.dataset import PhotoSet
from catseg.inference import Predictor, compute_logits, restore_labels
from catseg.metrics import Counts, compute_metrics, count_pixels
from catseg.runtimes import RUNTIMES

REFERENCE = "torch"
# How much val/miou a file may lose to torch's float32; more than the first is a mistake, not rounding.
MAX_LOSS = {"float32": 0.0005, "bfloat16": 0.005, "int8": 0.005}


@dataclass
class Score:
    """What one runtime made of the photos."""

    counts: list[np.ndarray[Any, Any]] = field(default_factory=list)  # counts_K3 of each photo
    max_difference: float = 0.0  # of any probability from torch's, 0..1
    num_different: int = 0  # pixels of the masks at the photos' own sizes
    num_pixels: int = 0

    @property
    def counts_NK3(self) -> Counts:
        return np.stack(self.counts)

    @property
    def miou(self) -> float:
        return compute_metrics(self.counts_NK3)["miou"]

    @property
    def disagreement_ppm(self) -> float:
        return 1e6 * self.num_different / self.num_pixels


def score_photos(predictors: Mapping[str, Predictor], photos: PhotoSet, scores: dict[str, Score]) -> Iterator[None]:
    """Fill `scores`, a photo at a time. `predictors` are by the names of RUNTIMES, torch's among them."""
    scores |= {name: Score() for name in predictors}
    photo_NSS3 = torch.tensor(photos.photo_NSS3)
    for index, native_mask in enumerate(photos.native_masks):
        photo_1SS3 = photo_NSS3[index : index + 1]
        logits = {name: compute_logits(predictor, photo_1SS3)[0] for name, predictor in predictors.items()}
        height, width = photos.used_N2[index].tolist()
        expected = restore_labels(logits[REFERENCE], *native_mask.shape)
        for name, score in scores.items():
            labels_HW = restore_labels(logits[name], *native_mask.shape)
            counts_K3 = count_pixels(labels_HW, torch.tensor(native_mask), len(logits[name]))
            score.counts.append(counts_K3.numpy().astype(np.int64))
            difference_KSS = (logits[name].sigmoid() - logits[REFERENCE].sigmoid()).abs()
            score.max_difference = max(score.max_difference, float(difference_KSS[:, :height, :width].max()))
            score.num_different += int((labels_HW != expected).sum())
            score.num_pixels += labels_HW.numel()
        yield


def find_losses(scores: Mapping[str, Score]) -> dict[str, str]:
    """What loses more than it may, by runtime: a line each."""
    best = scores[REFERENCE].miou
    lines = {}
    for name, score in scores.items():
        limit = MAX_LOSS[RUNTIMES[name].precision]
        if best - score.miou > limit:
            lines[name] = f"{name}: val/miou {score.miou:.4f} where torch has {best:.4f}; {limit} may be lost"
    return lines


def format_scores(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """The part of certificate.json that was measured."""
    best = scores[REFERENCE].miou
    return {
        name: {
            "file": RUNTIMES[name].file,
            "library": RUNTIMES[name].library,
            "precision": RUNTIMES[name].precision,
            "miou": score.miou,
            "loses": best - score.miou,
            "may_lose": MAX_LOSS[RUNTIMES[name].precision],
            "max_probability_difference": score.max_difference,
            "mask_disagreement_ppm": score.disagreement_ppm,
        }
        for name, score in scores.items()
    }


def format_per_photo(scores: Mapping[str, Score], photos: PhotoSet, classes: tuple[str, ...]) -> bytes:
    """A line per runtime, photo and class; pixels at the photo's own size."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("runtime", "photo", "class", "true_positives", "false_positives", "false_negatives"))
    for name, score in scores.items():
        for photo, counts_K3 in zip(photos.names, score.counts, strict=True):
            writer.writerows((name, photo, label, *row) for label, row in zip(classes, counts_K3.tolist(), strict=True))
    return text.getvalue().encode("utf-8", "surrogateescape")
