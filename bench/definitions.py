"""What other tools would print for the same predictions, so that nobody compares unlike numbers.

In:  what a model hit and missed in each photo.   Out: numbers by name, whose they are, what each one is; a table.
Knows nothing of models, files or how the counts came about.      (N photos, K foreground classes)

Compared with segmentation-models-pytorch 0.6 and torchmetrics 1.9 themselves in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt
from rich.table import Table

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

SMP, TORCHMETRICS = "segmentation-models-pytorch", "torchmetrics"
NOT_KEPT = "not kept"  # results from before valid pixels were counted
NOT_COUNTED = "not from these counts"  # which pixels several classes leave to the background
UNDEFINED = "undefined"  # 0 / 0


@dataclass(frozen=True)
class Definition:
    """One number under one of its names."""

    name: str  # as one calls it there
    whose: str
    value: float | None
    meaning: str  # one sentence
    why_not: str = ""  # there is no value


def list_definitions(counts_NK3: Int64, pixels_N: Int64 | None, split: str = "val") -> list[Definition]:
    """Every definition of the overlap, from counts (true positives, false positives, false negatives) and valid pixels.

    `pixels_N` is None where nobody counted them: what needs the background is then said not to be
    kept. With several classes it cannot be had from counts per class at all.
    """
    exact_NK3 = counts_NK3.astype(np.float64)
    return [
        *_list_ours(exact_NK3, split),
        *_list_smp(exact_NK3),
        *_list_torchmetrics(exact_NK3, pixels_N),
        *_list_with_background(exact_NK3, pixels_N),
    ]


def average(definitions: Sequence[Sequence[Definition]]) -> list[Definition]:
    """The mean over seeds of each number; where one seed lacks it, so does the mean."""
    averaged = []
    for each in zip(*definitions, strict=True):
        values = [definition.value for definition in each if definition.value is not None]
        if len(values) == len(each):
            averaged.append(replace(each[0], value=fmean(values)))
        else:
            averaged.append(next(definition for definition in each if definition.value is None))
    return averaged


def make_definitions_table(definitions: Sequence[Definition]) -> Table:
    """For a terminal: number, name and whose it is, what it is."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("what prints it", ratio=1)
    table.add_column("what it is", ratio=1)
    for number, definition in enumerate(definitions):
        shown = definition.why_not if definition.value is None else f"{definition.value:.3f}"
        name = f"{definition.name}  ({definition.whose})"
        table.add_row(shown.replace(" ", "\n"), name, definition.meaning, style="bold" if number == 0 else None)
    return table


def _list_ours(counts_NK3: Float64, split: str) -> list[Definition]:
    iou_NK, iou_K = _compute_iou(counts_NK3), _compute_iou(counts_NK3.sum(0))
    occurs_NK = (counts_NK3[..., 0] + counts_NK3[..., 2]) > 0
    return [
        _make(f"{split}/miou", "ours", _mean(iou_K), "Pixels of all photos together, for each class, then their mean."),
        _make(
            f"{split}/miou_per_photo",
            "ours",
            _mean(iou_NK[occurs_NK]),
            "The mean over the photos in which the class is; false alarms in the others do not count.",
        ),
        _make(
            f"{split}/dice",
            f"ours; F1 and Dice of {SMP} (micro) and {TORCHMETRICS} for one class",
            _mean(_compute_dice(counts_NK3.sum(0))),
            "2 x hits / (truth + prediction), pooled as the first: always the higher number of the two.",
        ),
    ]


def _list_smp(counts_NK3: Float64) -> list[Definition]:
    iou_N = _compute_iou(counts_NK3.sum(1))
    definitions = [
        _make(
            'iou_score(reduction="micro")',
            SMP,
            _mean(_compute_iou(counts_NK3.sum((0, 1)))),
            "Pixels of all photos and classes together; a large class outweighs a small one.",
        ),
        _make(
            'iou_score(reduction="micro-imagewise")',
            SMP,
            _mean(np.where(np.isnan(iou_N), 1.0, iou_N)),
            "The mean over all photos; one with nothing there and nothing found counts as 1 (zero_division), "
            "a false alarm as 0.",
        ),
    ]
    iou_K = _compute_iou(counts_NK3.sum(0))
    if counts_NK3.shape[1] > 1:  # for one class it is the first
        macro = _make(
            'iou_score(reduction="macro")',
            SMP,
            _mean(np.where(np.isnan(iou_K), 1.0, iou_K)),
            "As ours, but a class that is neither there nor found counts as 1.",
        )
        definitions.insert(1, macro)
    return definitions


def _list_torchmetrics(counts_NK3: Float64, pixels_N: Int64 | None) -> list[Definition]:
    num_classes = counts_NK3.shape[1]
    iou_NK = _compute_iou(counts_NK3)
    definitions = []
    if num_classes == 1:
        iou = _compute_iou(counts_NK3.sum((0, 1)))
        definitions.append(
            _make(
                'JaccardIndex(task="binary")',
                TORCHMETRICS,
                float(np.nan_to_num(iou)),
                "Pixels of all photos together; 0 where nothing is there and nothing found.",
            )
        )
    background_N = _count_background(counts_NK3, pixels_N)
    per_class = np.append(_compute_iou(counts_NK3.sum(0)), _pool_background(background_N))
    per_photo = np.append(iou_NK, [] if background_N is None else _compute_iou(background_N))
    multiclass = _make(
        f'JaccardIndex(task="multiclass", num_classes={num_classes + 1})',
        TORCHMETRICS,
        _mean(per_class),
        "Pixels of all photos together, for each class and the background, then their mean.",
    )
    mean_iou = _make(
        f'segmentation.MeanIoU({num_classes + 1}, input_format="index")',
        TORCHMETRICS,
        _mean(per_photo),
        "The mean over photos and classes, background included, that are there or found.",
    )
    foreground = _make(
        f'segmentation.MeanIoU({num_classes + 1}, include_background=False, input_format="index")',
        TORCHMETRICS,
        _mean(iou_NK),
        "The mean over photos in which a class is there or found: a false alarm is a photo with 0.",
    )
    missing = _explain_missing(counts_NK3, pixels_N)
    return [*definitions, _withhold(multiclass, missing), _withhold(mean_iou, missing), foreground]


def _list_with_background(counts_NK3: Float64, pixels_N: Int64 | None) -> list[Definition]:
    background = _pool_background(_count_background(counts_NK3, pixels_N))
    with_background = np.append(_compute_iou(counts_NK3.sum(0)), background)
    missing = _explain_missing(counts_NK3, pixels_N)
    alone = _make(
        "IoU of the background",
        "a class like others in PASCAL VOC",
        _mean(background),
        "What is no class and was called none: high as soon as most of a photo is background.",
    )
    mean = _make(
        "mIoU with background",
        "PASCAL VOC, and who follows it",
        _mean(with_background),
        "The mean of each class and the background, pooled: up to one half for a model that finds nothing.",
    )
    return [_withhold(alone, missing), _withhold(mean, missing)]


def _make(name: str, whose: str, value: float | None, meaning: str) -> Definition:
    return Definition(name, whose, value, meaning, UNDEFINED if value is None else "")


def _withhold(definition: Definition, why_not: str) -> Definition:
    return replace(definition, value=None, why_not=why_not) if why_not else definition


def _explain_missing(counts_NK3: Float64, pixels_N: Int64 | None) -> str:
    """Why nothing can be said of the background, or ""."""
    if counts_NK3.shape[1] > 1:
        return NOT_COUNTED  # a pixel of one class called another is in the counts of both
    return NOT_KEPT if pixels_N is None else ""


def _count_background(counts_NK3: Float64, pixels_N: Int64 | None) -> Float64 | None:
    """background_N3: the same three counts of what is no class; its false positives are the class's misses."""
    if pixels_N is None or _explain_missing(counts_NK3, pixels_N):
        return None
    _, false_N, missed_N = counts_NK3[:, 0].T
    return np.stack((pixels_N - counts_NK3[:, 0].sum(1), missed_N, false_N), axis=1)


def _pool_background(background_N3: Float64 | None) -> Float64:
    return np.array([np.nan if background_N3 is None else _compute_iou(background_N3.sum(0))])


def _compute_iou(counts_X3: Float64) -> Float64:
    """iou_X; nan where nothing is there and nothing found."""
    union_X = counts_X3.sum(-1)
    iou_X: Float64 = np.divide(counts_X3[..., 0], union_X, out=np.full(union_X.shape, np.nan), where=union_X > 0)
    return iou_X


def _compute_dice(counts_X3: Float64) -> Float64:
    iou_X = _compute_iou(counts_X3)
    return 2 * iou_X / (1 + iou_X)


def _mean(values: Float64) -> float | None:
    """Of those that are defined; None where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
