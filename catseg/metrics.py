"""Score predictions against masks: first count, then divide.

In:  logits or label maps, and masks at their own size.   Out: integer counts, then plain floats 0..1.
Knows nothing of models, files or training.

Counts are kept per photo and class, int64: counts_NK3 = true positives, false positives, false
negatives. Every metric is derived from them alone, so none depends on batch size or order.
      (N photos, K classes, H height, W width in pixels)
"""

import numpy as np
import numpy.typing as npt
import torch

from catseg.photo import VOID

Counts = npt.NDArray[np.int64]  # counts_NK3


def choose_labels(logits_BKHW: torch.Tensor) -> torch.Tensor:
    """labels_BHW uint8: the class of the highest logit where that exceeds 0 (probability one half), else background."""
    if logits_BKHW.shape[1] == 1:  # a twentieth of the time of the maximum
        return (logits_BKHW[:, 0] > 0).to(torch.uint8)
    best_BHW, index_BHW = logits_BKHW.max(dim=1)
    return torch.where(best_BHW > 0, index_BHW + 1, 0).to(torch.uint8)


def count_pixels(labels_HW: torch.Tensor, mask_HW: torch.Tensor, num_classes: int) -> torch.Tensor:
    """counts_K3 of one photo; pixels whose mask is void are in none of the three."""
    rows = []
    for label in range(1, num_classes + 1):
        predicted, true = (labels_HW == label) & (mask_HW != VOID), mask_HW == label
        hits = (predicted & true).sum()
        rows.append(torch.stack((hits, predicted.sum() - hits, true.sum() - hits)))
    return torch.stack(rows)


def compute_metrics(counts_NK3: Counts) -> dict[str, float]:
    """Every metric by its name without the split. What is undefined (0 / 0) is left out, never 0 or 1.

    miou: pooled over the photos per class, mean over the classes: the tutorial's, the field's
    mIoU without background, and the one that selects. miou_per_photo: IoU per photo and class,
    mean over those in which the class occurs; a small cat weighs as much as a large one.
    dice, precision, recall: pooled as miou is. false_alarm_photos: share of the photos without
    a class in which some of it was predicted. undefined_classes: how many classes occur neither
    in truth nor in prediction.
    """
    hit_NK, false_NK, missed_NK = (counts_NK3[..., index].astype(np.float64) for index in range(3))
    hit_K, false_K, missed_K = hit_NK.sum(0), false_NK.sum(0), missed_NK.sum(0)
    occurs_NK = hit_NK + missed_NK > 0
    metrics = {
        "miou": _mean_ratio(hit_K, hit_K + false_K + missed_K),
        "miou_per_photo": _mean_ratio(hit_NK[occurs_NK], (hit_NK + false_NK + missed_NK)[occurs_NK]),
        "dice": _mean_ratio(2 * hit_K, 2 * hit_K + false_K + missed_K),
        "precision": _mean_ratio(hit_K, hit_K + false_K),
        "recall": _mean_ratio(hit_K, hit_K + missed_K),
        "false_alarm_photos": _mean_ratio(
            (false_NK > 0)[~occurs_NK].astype(np.float64), np.ones(np.count_nonzero(~occurs_NK))
        ),
        "undefined_classes": float(np.count_nonzero(hit_K + false_K + missed_K == 0)),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def _mean_ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> float | None:
    """The mean of the ratios that are defined; None where none is."""
    defined = below > 0
    return float((above[defined] / below[defined]).mean()) if defined.any() else None
