"""Validation photos and what each setting's model sees in them, as small files.

In:  the journal's folders, the photos they were validated on.   Out: JPEG and PNG bytes, each photo once.
Knows nothing of pages.      (H height, W width in pixels of a photo as it is shown)

Which photos: some spread evenly from the hardest to the easiest for all settings together, so that nobody picks
them, and the worst ones of the best setting. Which model: of each setting the seed whose score is nearest the mean.
"""

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.compare import Leaderboard, Row
from bench.curves import Curves, compute_iou, load_counts
from bench.journal import list_folders, read_settings
from catseg.errors import InputError, first_line
from catseg.folder import Pair, list_pairs
from catseg.photo import VOID, UInt8, fit_photo, fit_size

NUM_SAME, NUM_WORST = 8, 4
SIDE = 256  # px, the longer one of a photo as it is shown, at the most
JPEG_QUALITY = 82
MAX_DEVIATION = 0.1  # of a photo's IoU from what the journal says, the median; scaling down explains a tenth of it


@dataclass(frozen=True)
class Photo:
    """A photo as it is shown, and its truth: a PNG whose grey values are label ids, 255 is void."""

    name: str
    width: int
    height: int
    jpeg: bytes
    truth_png: bytes


@dataclass(frozen=True)
class Seen:
    """What the model of one setting sees in the photos."""

    seed: int
    pngs: tuple[bytes, ...]  # grey values are label ids, at the photos' sizes
    ious: tuple[float, ...]  # of this seed, at the photos' own sizes; NaN: no class occurs there


@dataclass(frozen=True)
class Gallery:
    photos: tuple[Photo, ...]
    same: tuple[int, ...]  # indices of the photos that are shown for every setting, hardest first
    worst: tuple[int, ...]  # and of those that the best setting does worst on
    seen: tuple[Seen | None, ...]  # by setting, in the leaderboard's order; None: its model is gone
    missing: str = ""  # why there are no pictures


def make_gallery(experiment_folder: Path, board: Leaderboard, curves: Curves) -> Gallery:
    """Read the photos, let the models look; where photos are gone or are others, a gallery that says so."""
    same, worst = choose_photos(curves)
    names = list(dict.fromkeys(curves.photos[index] for index in same + worst))
    folders = list_folders(experiment_folder)
    try:
        originals, num_classes = _read_photos(folders[board.rows[0].results[0].key], names)
        shown = [_shrink(name, *original) for name, original in zip(names, originals, strict=True)]
        seen = tuple(_look(row, folders, names, originals, shown) for row in board.rows[: len(curves.bands)])
        if not any(seen):
            raise InputError("no setting's best.safetensors can be read")
        if _deviates(seen, shown, num_classes):
            raise InputError("not the photos that the settings were validated on, though their names are the same")
    except (InputError, OSError) as error:
        return Gallery((), (), (), (), first_line(error))
    place = {name: index for index, name in enumerate(names)}
    same_places, worst_places = (tuple(place[curves.photos[index]] for index in some) for some in (same, worst))
    return Gallery(tuple(shown), same_places, worst_places, seen)


def choose_photos(curves: Curves) -> tuple[list[int], list[int]]:
    """Indices of those for every setting, spread from hardest to easiest, and of the worst of the best setting."""
    if not curves.iou_AN.size:
        return [], []
    is_known_AN = ~np.isnan(curves.iou_AN)
    known = [index for index in range(len(curves.photos)) if is_known_AN[:, index].any()]
    mean_iou = {index: float(np.nanmean(curves.iou_AN[:, index])) for index in known}
    by_ease = sorted(known, key=lambda index: (mean_iou[index], index))
    places = np.linspace(0, len(by_ease) - 1, min(NUM_SAME, len(by_ease)))
    of_best = [index for index in known if is_known_AN[0, index]]
    worst = sorted(of_best, key=lambda index: (curves.iou_AN[0, index], index))[:NUM_WORST]
    return [by_ease[round(place)] for place in places], worst


def _read_photos(folder: Path, names: Sequence[str]) -> tuple[list[tuple[UInt8, UInt8]], int]:
    """(photo_HW3, mask_HW) of each name, with the masks that a trial was scored against; and how many classes."""
    settings, counts = read_settings(folder), load_counts(folder)
    if settings is None or not names:
        raise InputError(f"{folder}: nothing is known there of single photos")
    originals = [pair.read() for pair in _find_pairs(settings["data"], names)]
    num_classes = len(settings["data"]["classes"])
    for name, (_, mask_HW) in zip(names, originals, strict=True):
        if _count_truth(mask_HW, num_classes) != [hits + misses for hits, _, misses in counts[name]]:
            raise InputError(f"{name}: not the mask that the settings were validated on")
    return originals, num_classes


def _find_pairs(data: dict[str, Any], names: Sequence[str]) -> list[Pair]:
    """The named photos, in that order, from where validation photos were taken; held-out ones are in `train`."""
    source = data["train"] if data["val"] is None or data["val_is_train"] else data["val"]
    pairs = {pair.name: pair for pair in list_pairs(source, tuple(data["classes"]))}
    absent = [name for name in names if name not in pairs]
    if absent:
        raise InputError(f"{source}: {absent[0]} is not there any more")
    return [pairs[name] for name in names]


def _count_truth(mask_HW: UInt8, num_classes: int) -> list[int]:
    """Pixels of each class."""
    return [int((mask_HW == label).sum()) for label in range(1, num_classes + 1)]


def _shrink(name: str, photo_HW3: UInt8, mask_HW: UInt8) -> Photo:
    height, width = fit_size(mask_HW.shape[0], mask_HW.shape[1], min(SIDE, max(mask_HW.shape)))
    photo = Image.fromarray(photo_HW3).resize((width, height), Image.Resampling.LANCZOS)
    mask = Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return Photo(name, width, height, buffer.getvalue(), encode_labels(np.asarray(mask)))


def encode_labels(labels_HW: UInt8) -> bytes:
    """A PNG of as few bits a pixel as hold the labels; grey value i is label i once it is decoded."""
    image = Image.fromarray(labels_HW)
    highest = int(labels_HW.max())
    bits = next(bits for bits in (1, 2, 4, 8) if highest < 2**bits)
    image.putpalette([label for label in range(2**bits) for _ in range(3)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=bits, optimize=True)
    return buffer.getvalue()


def _look(
    row: Row,
    folders: dict[str, Path],
    names: Sequence[str],
    originals: Sequence[tuple[UInt8, UInt8]],
    shown: Sequence[Photo],
) -> Seen | None:
    """What one setting's model sees, or None: the model is not there."""
    from catseg.checkpoint import load_model
    from catseg.device import choose_device
    from catseg.inference import make_predictor, predict_fitted

    mean = statistics.fmean(row.mious)
    result = min(row.results, key=lambda result: abs(result.metrics["val/miou"] - mean))
    counts = load_counts(folders[result.key])
    try:
        model, card = load_model(folders[result.key] / "best.safetensors")
    except InputError:
        return None
    if not counts.keys() >= set(names):
        return None
    device = choose_device("auto")
    predictor = make_predictor(model, _choose_precision(result.settings["precision"], device.type), device)
    pngs = tuple(
        encode_labels(predict_fitted(predictor, fit_photo(photo_HW3, card.image_size), (photo.height, photo.width)))
        for (photo_HW3, _), photo in zip(originals, shown, strict=True)
    )
    return Seen(int(result.settings["seed"]), pngs, tuple(compute_iou(counts[name]) for name in names))


def _choose_precision(precision: str, device_type: str) -> str:
    """A trial may have run on a GPU and its page be made without one, whose float16 a CPU refuses."""
    return "auto" if device_type == "cpu" and precision == "float16" else precision


def _deviates(seen: Sequence[Seen | None], shown: Sequence[Photo], num_classes: int) -> bool:
    """Whether what the models see now scores otherwise than the journal says, more than scaling down explains."""
    differences = []
    for of_setting in seen:
        for photo, png, iou in zip(shown, of_setting.pngs, of_setting.ious, strict=True) if of_setting else ():
            truth_HW, labels_HW = decode_labels(photo.truth_png), decode_labels(png)
            counts = []
            for label in range(1, num_classes + 1):
                true, predicted = truth_HW == label, (labels_HW == label) & (truth_HW != VOID)
                counts.append(
                    [int((true & predicted).sum()), int((~true & predicted).sum()), int((true & ~predicted).sum())]
                )
            differences.append(abs(compute_iou(counts) - iou))
    known = [difference for difference in differences if not np.isnan(difference)]
    return bool(known) and statistics.median(known) > MAX_DEVIATION


def decode_labels(png: bytes) -> UInt8:
    """labels_HW of a picture of labels: back from its grey values."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))
