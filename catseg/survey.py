"""A folder of annotated photos, looked through once: what is wrong, what is odd, what is in it.

In:  a source, class names.   Out: facts of each photo; a Survey; pairs of photos that are nearly the same.
Knows nothing of terminals or of what is done about it.

A problem keeps a photo from being used; a warning is for the user to decide on.
"""

import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catseg.duplicates import Bits, Near, compute_hashes, find_near, make_groups
from catseg.errors import InputError
from catseg.folder import Pair, find_files, find_source, find_voc_of_list, is_voc, load_class_names
from catseg.labelme import (
    BACKGROUND_LABEL,
    MAX_LABELS,
    VOID_LABEL,
    Annotation,
    draw_shapes,
    load_annotation,
    make_label_ids,
)
from catseg.outline import count_left_out
from catseg.photo import VOID, read_header

MAX_OUTSIDE_PX = 2  # Labelme keeps points inside; further out, the photo was cropped or scaled after outlining
MAX_LINES = 10  # odd shapes named of a file
MAX_LISTED = 50  # classes named though no photo shows them
MIN_LEFT_OUT = 0.01  # share of a photo's pixels that a self-crossing outline must lose to be named


@dataclass(frozen=True)
class PhotoFacts:
    """What a survey keeps of one photo; `width` x `height` as shown."""

    path: str
    mode: str  # Pillow's, of the file: RGB, L, P, RGBA, CMYK, ...
    turned: bool  # by EXIF
    width: int
    height: int
    pixels: dict[int, int]  # label id -> pixels
    warnings: tuple[str, ...]
    hashes: Bits


@dataclass(frozen=True)
class Survey:
    """What is in one folder. Shares are of all pixels of the photos that could be read, 0..1."""

    source: str
    num_photos: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    photos: dict[str, int]  # label -> photos it is on
    shares: dict[str, float]  # label -> share of pixels, background and void too
    sizes: dict[str, int]  # "320 x 320", as shown -> photos
    orientations: dict[str, int]  # landscape, portrait, square -> photos
    modes: dict[str, int]  # Pillow's -> photos
    num_turned: int  # by EXIF


@dataclass(frozen=True)
class NearPhotos:
    """Two photos that are nearly the same; across: they stand in two folders, and leak from one to the other."""

    first: str
    second: str
    distance: int  # bits of 144
    across: bool


def find_classes(source: str) -> tuple[str, ...]:
    """The classes a folder itself speaks of: its class_names.txt, or all labels of its annotations; else the ids."""
    path = Path(source)
    folder = find_voc_of_list(path) or path
    named = load_class_names(folder)
    if named is not None:
        return named
    if is_voc(folder):
        return tuple(f"id {label_id}" for label_id in range(1, MAX_LABELS + 1))
    labels: set[str] = set()
    if not folder.is_dir():  # `sample`; or nothing, which is said when it is read
        return ("cat",)
    for annotation_path in find_files(folder, (".json",))[0].values():
        try:
            labels |= {shape.label for shape in load_annotation(annotation_path).shapes}
        except InputError:
            continue  # said again when the photo is read
    labels -= {BACKGROUND_LABEL, VOID_LABEL}
    if len(labels) > MAX_LABELS:
        raise InputError(f"{folder}: {len(labels)} labels, over {MAX_LABELS}; name the right ones by --labels")
    return tuple(sorted(labels)) or ("cat",)


def survey_pair(pair: Pair) -> PhotoFacts:
    """Decode one photo and look at it; InputError lists all that keeps it from being used."""
    photo_HW3, mask_HW = pair.read()
    height, width = mask_HW.shape
    path, mode, turned, warnings = str(pair.photo_path or pair.name), "RGB", False, []
    source: Path | bytes | None = pair.photo_path
    if pair.annotation_path is not None:
        annotation = load_annotation(pair.annotation_path)
        source = find_source(pair.annotation_path.parent, annotation)
        path = str(source if isinstance(source, Path) else pair.annotation_path)
        warnings += _find_odd_shapes(annotation, height, width)
    if source is not None:  # not drawn
        header = read_header(source, path)
        mode, turned = header.mode, header.turned and isinstance(source, Path)
    values, counts = np.unique(mask_HW, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if set(pixels) == {VOID}:
        warnings.append(f"{path}: all of it is void; it is neither learnt from nor scored, remove it")
    elif set(pixels) <= {0, VOID}:
        warnings.append(f"{path}: nothing outlined; right if it shows none of the classes, else outline it")
    return PhotoFacts(path, mode, turned, width, height, pixels, tuple(warnings), compute_hashes(photo_HW3))


def summarize(source: str, classes: tuple[str, ...], photos: Sequence[PhotoFacts], problems: Sequence[str]) -> Survey:
    """What all photos of a folder come to."""
    pixels = sum((Counter(facts.pixels) for facts in photos), Counter[int]())
    total = max(1, pixels.total())
    names = {
        name: label_id
        for name, label_id in make_label_ids(classes).items()
        if pixels[label_id] or (name in classes and len(classes) <= MAX_LISTED)
    }
    lookalikes = [
        f"{source}: labels {first!r} and {second!r} differ by case or spaces alone; rename one in Labelme"
        for first, second in _find_lookalikes(classes)
    ]
    return Survey(
        source=source,
        num_photos=len(photos),
        problems=tuple(problems),
        warnings=(*lookalikes, *(line for facts in photos for line in facts.warnings)),
        photos={name: sum(label_id in facts.pixels for facts in photos) for name, label_id in names.items()},
        shares={name: pixels[label_id] / total for name, label_id in names.items()},
        sizes=_count(f"{facts.width} x {facts.height}" for facts in photos),
        orientations=_count(_name_orientation(facts) for facts in photos),
        modes=_count(facts.mode for facts in photos),
        num_turned=sum(facts.turned for facts in photos),
    )


def find_near_photos(folders: Sequence[Sequence[PhotoFacts]]) -> list[NearPhotos]:
    """Pairs that are nearly the same within a folder and across folders, nearest first."""
    owners = [number for number, photos in enumerate(folders) for _ in photos]
    listed = [facts for photos in folders for facts in photos]
    return [
        NearPhotos(
            listed[near.first].path, listed[near.second].path, near.distance, owners[near.first] != owners[near.second]
        )
        for near in find_near([facts.hashes for facts in listed])
    ]


def group_twins(near: Sequence[NearPhotos]) -> list[tuple[int, list[str]]]:
    """Photos of one folder that hang together by pairs, with the least distance among them; nearest first."""
    pairs = [pair for pair in near if not pair.across]
    paths = sorted({path for pair in pairs for path in (pair.first, pair.second)})
    numbers = {path: number for number, path in enumerate(paths)}
    links = [Near(numbers[pair.first], numbers[pair.second], pair.distance) for pair in pairs]
    least: dict[int, int] = {}
    for link in reversed(links):  # the nearest come first, and so have the last word
        least[link.first] = least[link.second] = link.distance
    return sorted(
        (min(least[number] for number in group), [paths[number] for number in group])
        for group in make_groups(len(paths), links)
    )


def _find_odd_shapes(annotation: Annotation, height: int, width: int) -> list[str]:
    """Shapes that are valid and yet hardly what somebody meant."""
    shapes, lines = annotation.shapes, []
    seen = set(np.unique(draw_shapes(shapes, range(1, len(shapes) + 1), height, width)).tolist())
    for number, shape in enumerate(shapes, 1):
        where = f"{annotation.path}: shapes[{number - 1}] ({reprlib.repr(shape.label)})"
        outside = max(max(-x, -y, x - width, y - height) for x, y in shape.points)
        if number not in seen:
            lines.append(f"{where}: not a pixel of it is seen, outside or under later shapes; delete or move it")
        elif outside > MAX_OUTSIDE_PX and shape.shape_type in ("polygon", "rectangle", "mask"):
            lines.append(f"{where}: reaches {outside:.0f} px beyond the photo; if that was cropped, outline it again")
        if shape.shape_type != "polygon":
            continue
        if count_left_out(shape.points, height, width) > MIN_LEFT_OUT * height * width:
            lines.append(f"{where}: its outline crosses itself, and what it encloses twice is left out; draw it again")
    more = [f"{annotation.path}: and {len(lines) - MAX_LINES} more odd shapes"] if len(lines) > MAX_LINES else []
    return lines[:MAX_LINES] + more


def _find_lookalikes(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Labels that differ by case or spaces alone: one of them is a slip of the keyboard."""
    first: dict[str, str] = {}
    return [
        (first[key], label)
        for label in labels
        if first.setdefault(key := "".join(label.split()).casefold(), label) != label
    ]


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _name_orientation(facts: PhotoFacts) -> str:
    if facts.width == facts.height:
        return "square"
    return "landscape" if facts.width > facts.height else "portrait"
