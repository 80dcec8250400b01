"""A folder of annotated photos -> pairs of photo and mask, found but not yet read.

In:  `sample`, a Labelme folder, a VOC folder or one of its ImageSets lists; class names.   Out: Pairs.
Knows nothing of sizes, splits or arrays in memory.      (H height, W width in pixels)
"""

import os
import unicodedata
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import TypeVar

import numpy as np

from catseg.errors import InputError
from catseg.labelme import (
    VOID_LABEL,
    Annotation,
    decode_image_data,
    draw_mask,
    list_unknown_labels,
    load_annotation,
    load_labels,
    make_label_ids,
)
from catseg.photo import PHOTO_SUFFIXES, VOID, UInt8, read_mask, read_photo
from catseg.sample import NUM_PHOTOS, SAMPLE, draw_photo, name_photo

VOC_PHOTOS, VOC_MASKS, VOC_LISTS = "JPEGImages", ("SegmentationClass", "SegmentationClassPNG"), "ImageSets"
VOC_CLASS_NAMES = "class_names.txt"
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """A photo and its mask, not yet read. `read` gives (photo_HW3, mask_HW) or raises InputError."""

    name: str
    read: Callable[[], tuple[UInt8, UInt8]]
    photo_path: Path | None = None  # None: drawn, or inside its annotation
    annotation_path: Path | None = None  # Labelme's, where there is one


def list_pairs(source: str, classes: tuple[str, ...]) -> list[Pair]:
    """Find photos and their masks by the folder's layout, sorted by name; every one must have its other half."""
    if source == SAMPLE:
        return [Pair(name_photo(number), partial(draw_photo, number)) for number in range(NUM_PHOTOS)]
    path = Path(source)
    voc = find_voc_of_list(path)
    if voc is not None:
        return _list_image_set(path, voc, classes)
    if not path.is_dir():
        raise InputError(f"{source}: no such folder; check the path")
    return _list_voc(path, classes) if is_voc(path) else list_labelme(path, classes)


def find_voc_of_list(path: Path) -> Path | None:
    """The VOC folder that a list ImageSets/.../*.txt belongs to; None: it is no such list."""
    if path.suffix != ".txt":
        return None
    return next((parent.parent for parent in path.parents if parent.name == VOC_LISTS), None)


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as PASCAL VOC: photos in JPEGImages/."""
    return (folder / VOC_PHOTOS).is_dir()


def load_class_names(folder: Path) -> tuple[str, ...] | None:
    """What the ids in a VOC folder mean, 1..K in order; None: it does not say."""
    path = folder / VOC_CLASS_NAMES
    return load_labels(path) if path.is_file() else None


def map_pairs(work: Callable[[Pair], T], pairs: Sequence[Pair]) -> Generator[T | InputError, None, None]:
    """`work` done for all pairs in threads, in order; close it to stop early. A refusal is a result, too.

    Pillow decodes and scales outside the interpreter's lock, so that all cores are busy.
    """

    def work_or_refuse(pair: Pair) -> T | InputError:
        try:
            return work(pair)
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(work_or_refuse, pairs)
    finally:
        pool.shutdown(cancel_futures=True)


def list_labelme(folder: Path, classes: tuple[str, ...]) -> list[Pair]:
    """Photos and Labelme's .json files side by side, or files that hold their photo."""
    annotations, doubles = find_files(folder, (".json",))
    if not annotations and is_voc(folder):
        raise InputError(f"{folder}: a VOC folder already, no annotations (*.json); name the folder that was outlined")
    if not annotations:
        raise InputError(
            f"{folder}: neither Labelme annotations (*.json) nor {VOC_PHOTOS}/; outline the cats in Labelme first"
        )
    photos, more_doubles = find_files(folder, PHOTO_SUFFIXES)
    remedy = "outline it in Labelme (no shapes: no cat), or remove it"
    bare = [f"{path}: photo without annotation; {remedy}" for stem, path in photos.items() if stem not in annotations]
    return [
        Pair(stem, partial(_read_labelme, folder, path, photos.get(stem), classes), photos.get(stem), path)
        for stem, path in annotations.items()
    ] + _make_refusals(doubles + more_doubles + bare)


def find_source(folder: Path, annotation: Annotation) -> Path | bytes:
    """The photo that Labelme shows for an annotation: the bytes inside it, or the file it names, in the same folder.

    Bytes are shown as they lie: Labelme writes them upright, and where another program left EXIF
    in them, Labelme does not turn them either.
    """
    if annotation.image_data is not None:
        return decode_image_data(annotation)
    return find_annotated_photo(folder, annotation)


def find_annotated_photo(folder: Path, annotation: Annotation) -> Path:
    """Where the photo lies that an annotation names; never outside the folder, never another's."""
    name = annotation.image_path
    photo_path = folder / name.replace("\\", "/")
    if PureWindowsPath(name).is_absolute() or not _is_inside(folder, photo_path):
        how = "is a link that leaves" if name == photo_path.name else "leaves"
        raise InputError(f"{annotation.path}: imagePath {name!r:.200} {how} the folder; put the photo beside the file")
    if _make_key(photo_path) != _make_key(annotation.path):
        raise InputError(
            f"{annotation.path}: imagePath {name!r:.200} is another photo's name; "
            f"call photo and annotation the same, and name the photo {annotation.path.stem!r} in imagePath"
        )
    try:
        there = photo_path.is_file()
    except OSError:  # a name too long
        there = False
    if not there:
        raise InputError(f"{annotation.path}: no photo {name!r:.200} beside it; add it or remove this file")
    return photo_path


def read_annotated(
    folder: Path, path: Path, photo_path: Path | None, classes: tuple[str, ...]
) -> tuple[Annotation, Path | bytes, UInt8, UInt8]:
    """One Labelme file -> annotation, source of its photo, photo_HW3, mask_HW; InputError has the problems of both."""
    check_inside(folder, path)
    try:
        annotation = load_annotation(path)
    except InputError as error:
        raise InputError((*error.problems, *_list_photo_problems(folder, photo_path))) from None
    try:
        source = find_source(folder, annotation)
        photo = read_photo(source, f"{path}: imageData", upright=isinstance(source, bytes))
    except InputError as error:
        raise InputError((*error.problems, *list_unknown_labels(annotation, classes))) from None
    return annotation, source, photo, draw_mask(annotation, photo.shape[0], photo.shape[1], classes)


def _read_labelme(folder: Path, path: Path, photo_path: Path | None, classes: tuple[str, ...]) -> tuple[UInt8, UInt8]:
    _, _, photo, mask = read_annotated(folder, path, photo_path, classes)
    return photo, mask


def _list_photo_problems(folder: Path, photo_path: Path | None) -> tuple[str, ...]:
    """Of a photo whose annotation cannot be read: it is looked at all the same, to say all at once."""
    if photo_path is None:
        return ()
    try:
        check_inside(folder, photo_path)
        read_photo(photo_path)
    except InputError as error:
        return error.problems
    return ()


def _make_key(path: Path) -> str:
    """What a photo and its annotation have in common; NFC, for file systems differ in how they spell an umlaut."""
    return unicodedata.normalize("NFC", path.stem)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these kinds in a folder, sorted; hidden ones, pipes and folders are none."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    return [path for path in paths if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file()]


def find_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Files by their stem, and a line for each that shares its stem: their masks could not be told apart."""
    found: dict[str, Path] = {}
    problems = []
    for path in list_files(folder, suffixes):
        first = found.setdefault(_make_key(path), path)
        if first is not path:
            problems.append(f"{path}: {first.name} has the same name; rename one of them")
    return found, problems


def _make_refusals(problems: list[str]) -> list[Pair]:
    """Files without their other half: pairs that cannot be read, and say why."""
    return [Pair(line, partial(_refuse, line)) for line in problems]


def _refuse(problem: str) -> tuple[UInt8, UInt8]:
    raise InputError(problem)


def _list_image_set(path: Path, folder: Path, classes: tuple[str, ...]) -> list[Pair]:
    """The photos of a VOC folder that ImageSets/.../trainval.txt names, one a line."""
    if not path.is_file() or not is_voc(folder):
        raise InputError(f"{path}: no such list of a VOC folder; check the path")
    try:
        text = unicodedata.normalize("NFC", path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: not UTF-8 text; save it as one name a line") from None
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: names no photo; write one name a line")
    pairs = {pair.name: pair for pair in _list_voc(folder, classes)}
    missing = [f"{path}: {name!r} is no photo with a mask; remove the line" for name in names if name not in pairs]
    return [pairs[name] for name in dict.fromkeys(names) if name in pairs] + _make_refusals(missing)


def _list_voc(folder: Path, classes: tuple[str, ...]) -> list[Pair]:
    """JPEGImages/ beside SegmentationClass/ or SegmentationClassPNG/; class_names.txt, if there, names the ids."""
    mask_folder = next((folder / name for name in VOC_MASKS if (folder / name).is_dir()), None)
    if mask_folder is None:
        raise InputError(
            f"{folder}: {VOC_PHOTOS}/ but neither {' nor '.join(VOC_MASKS)}; convert the annotations first"
        )
    photos, doubles = find_files(folder / VOC_PHOTOS, PHOTO_SUFFIXES)
    if not photos:
        raise InputError(f"{folder / VOC_PHOTOS}: no photos ({', '.join(PHOTO_SUFFIXES)}); check the path")
    masks, more_doubles = find_files(mask_folder, (".png",))
    remedy = "outline and convert it, or remove the photo"
    bare = [
        f"{path}: photo without mask in {mask_folder.name}/; {remedy}"
        for stem, path in photos.items()
        if stem not in masks
    ]
    orphans = [
        f"{path}: no photo of this name; add it or remove this file"
        for stem, path in masks.items()
        if stem not in photos
    ]
    named = load_class_names(folder) or classes
    return [
        Pair(stem, partial(_read_voc, folder, photo, masks[stem], named, classes), photo)
        for stem, photo in photos.items()
        if stem in masks
    ] + _make_refusals(doubles + more_doubles + bare + orphans)


def _read_voc(
    folder: Path, photo_path: Path, mask_path: Path, named: tuple[str, ...], classes: tuple[str, ...]
) -> tuple[UInt8, UInt8]:
    """`named`: the classes as the folder numbers them; `classes`: as they are wanted."""
    check_inside(folder, photo_path)
    check_inside(folder, mask_path)
    try:
        raw_mask = read_mask(mask_path)
    except InputError as error:
        raise InputError((*_list_photo_problems(folder, photo_path), *error.problems)) from None
    photo = read_photo(photo_path)
    problems = []
    if raw_mask.shape != photo.shape[:2]:
        height, width = raw_mask.shape
        problems.append(
            f"{mask_path}: the mask is {width} x {height}, its photo {photo.shape[1]} x {photo.shape[0]}; "
            "make it anew from the photo's annotation"
        )
    label_ids = make_label_ids(classes)
    name_of = {label_id: name for name, label_id in make_label_ids(named).items()} | {VOID: VOID_LABEL}
    new_ids = np.zeros(256, np.uint8)
    for value in np.unique(raw_mask).tolist():
        name = name_of.get(value, f"id {value}")
        if name not in label_ids:
            problems.append(f"{mask_path}: unknown label {name!r}; known are {', '.join(label_ids)}")
        else:
            new_ids[value] = label_ids[name]
    if problems:
        raise InputError(problems)
    return photo, new_ids[raw_mask]


def check_inside(folder: Path, path: Path) -> None:
    """Refuse a link to somewhere else."""
    if not _is_inside(folder, path):
        raise InputError(f"{path}: a link that leaves the folder; copy the file into it")


def _is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, all its links followed, ends in the folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # no such name, links in a circle, a NUL
        return False
