"""What a model hit and missed in each photo, as it is kept beside its result.

In:  names and counts, or what a file of ours holds.   Out: JSON's words, or arrays.
Knows nothing of models, of scores or of who asks.      (N photos, K classes)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

COLUMNS = ("true_positives", "false_positives", "false_negatives")


@dataclass(frozen=True)
class PhotoCounts:
    """Pixels of each photo, counted at its own size."""

    photos: tuple[str, ...]
    counts_NK3: Int64  # true positives, false positives, false negatives
    pixels_N: Int64 | None  # all that are not void; None: results from before they were counted


def format_counts(photos: Sequence[str], counts_NK3: Sequence[Any], pixels_N: Sequence[int]) -> dict[str, Any]:
    """The words of per_photo.json."""
    return {
        "columns": list(COLUMNS),
        "counts_per_class": dict(zip(photos, counts_NK3, strict=True)),
        "valid_pixels": dict(zip(photos, pixels_N, strict=True)),
    }


def parse_counts(content: Any) -> PhotoCounts | None:
    """The way back; None where there are none, or not whole."""
    try:
        photos = tuple(content["counts_per_class"])
        counts_NK3 = np.array([content["counts_per_class"][name] for name in photos], dtype=np.int64)
        valid = content.get("valid_pixels")
        pixels_N = None if valid is None else np.array([valid[name] for name in photos], dtype=np.int64)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
    is_whole = counts_NK3.ndim == 3 and counts_NK3.shape[2] == len(COLUMNS)
    return PhotoCounts(photos, counts_NK3, pixels_N) if is_whole else None
