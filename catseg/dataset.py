"""Folders of annotated photos -> checked pairs -> uint8 arrays in memory, split in two.

In:  `sample`, a Labelme folder or a VOC folder.   Out: PhotoSet, one for training, one for validation.
Knows nothing of models or tensors.      (N photos, S side, H height, W width in pixels)
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from catseg.errors import InputError
from catseg.labelme import VOID_LABEL, draw_mask, load_annotation, make_label_ids
from catseg.photo import PHOTO_SUFFIXES, VOID, UInt8, fit_mask, fit_photo, read_mask, read_photo
from catseg.sample import NUM_PHOTOS, draw_photo

SAMPLE = "sample"
SAME_AS_TRAIN = "train"  # data.val: validate on the training photos; shows what was memorised, not skill
VOC_PHOTOS, VOC_MASKS = "JPEGImages", ("SegmentationClass", "SegmentationClassPNG")
NUM_SHOWN, SHOWN_SIDE = 4, 256  # photos shown as overlays, and the most their longer side may measure


@dataclass(frozen=True)
class DataConfig:
    train: str | None = None  # `sample`, a Labelme folder or a VOC folder
    val: str | None = None  # the same, or `train`; null: hold out val_fraction of the training photos
    val_fraction: float = 0.25  # share of photos, 0..1
    test: str | None = None  # scored once, with the winner
    classes: tuple[str, ...] = ("cat",)  # foreground classes; their label ids are 1..K

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: must lie between 0 and 1, got {self.val_fraction}")
        if not self.classes or len(set(make_label_ids(self.classes))) != len(self.classes) + 2:
            raise ValueError(f"classes: must be different names of objects, got {list(self.classes)}")


@dataclass(frozen=True)
class Pair:
    """A photo and its mask, not yet read. `read` gives (photo_HW3, mask_HW) or raises InputError."""

    name: str
    read: Callable[[], tuple[UInt8, UInt8]]


@dataclass(frozen=True)
class Shown:
    """A photo that every run shows as an overlay, with its mask, scaled down to at most SHOWN_SIDE."""

    index: int  # in the PhotoSet
    photo_HW3: UInt8
    mask_HW: UInt8


@dataclass(frozen=True)
class PhotoSet:
    """Photos decoded once, fitted into squares of one size, with the masks they are scored against."""

    names: tuple[str, ...]
    photo_NSS3: UInt8  # top left, black beyond
    mask_NSS: UInt8  # the same, void beyond
    native_masks: tuple[UInt8, ...]  # at the photos' own sizes; none for photos that are only trained on
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Data:
    """All that a grid needs: one (training, validation) pair of sets for each image size."""

    sets: dict[int, tuple[PhotoSet, PhotoSet]]
    fingerprint: str  # of all pixels and classes: equal data, equal fingerprint, whatever the file format
    val_is_train: bool

    @property
    def num_photos(self) -> tuple[int, int]:
        """Photos to train on and to validate on."""
        train, val = next(iter(self.sets.values()))
        return len(train.names), len(val.names)


def load_data(config: DataConfig, image_sizes: Iterable[int]) -> Data:
    """Read, check and fit everything once; InputError lists all problems of all files."""
    if config.train is None:
        raise InputError("data.train: no training photos named; give --train DIR or set it in the experiment file")
    train = list_pairs(config.train, config.classes)
    if config.val is None:
        train, val = split_pairs(train, config.val_fraction)
    elif config.val == SAME_AS_TRAIN or Path(config.val).resolve() == Path(config.train).resolve():
        val = train
    else:
        val = list_pairs(config.val, config.classes)
    sizes = sorted(set(image_sizes))
    problems: list[str] = []

    def read(pairs: list[Pair], sizes: list[int]) -> tuple[dict[int, PhotoSet], str]:
        try:
            return read_pairs(pairs, sizes)
        except InputError as error:  # the others are read, too: all problems at once
            problems.extend(error.problems)
            return {}, ""

    train_sets, train_digest = read(train, sizes)
    val_sets, val_digest = (train_sets, train_digest) if val is train else read(val, sizes)
    if config.test is not None:  # read now and dropped: a bad file must not turn up when the grid is done
        test_sets, _ = read(list_pairs(config.test, config.classes), sizes[:1])
    if problems:
        raise InputError(problems)
    roles = {"train": train_sets, "val": val_sets} | ({"test": test_sets} if config.test is not None else {})
    for role, by_size in roles.items():
        sets = by_size[sizes[0]]
        if not any(np.any((mask > 0) & (mask != VOID)) for mask in sets.native_masks):
            raise InputError(
                f"data.{role}: no pixel of {', '.join(config.classes)} in {len(sets.names)} photos; masks hold "
                "label ids (1 for the first class, 255 for void), check them and `classes`"
            )
    digest = hashlib.sha256("\n".join((*config.classes, train_digest, val_digest)).encode()).hexdigest()
    # nothing is scored on or shown of the training photos: what that takes need not travel to the workers
    trained = {size: replace(train_sets[size], native_masks=(), shown=()) for size in sizes}
    return Data({size: (trained[size], val_sets[size]) for size in sizes}, digest[:16], val is train)


def load_photo_set(source: str, classes: tuple[str, ...], image_size: int) -> PhotoSet:
    """All photos of one source at one size: what a test set is read with."""
    return read_pairs(list_pairs(source, classes), [image_size])[0][image_size]


def list_pairs(source: str, classes: tuple[str, ...]) -> list[Pair]:
    """Find photos and their masks by the folder's layout, sorted by name; every one must have its other half."""
    if source == SAMPLE:
        return [Pair(f"sample-{number:04d}", partial(draw_photo, number)) for number in range(NUM_PHOTOS)]
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"{source}: no such folder; check the path (relative paths start at the experiment file)")
    if (folder / VOC_PHOTOS).is_dir():
        return _list_voc(folder, classes)
    return _list_labelme(folder, classes)


def split_pairs(pairs: list[Pair], val_fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Hold out a share of the photos, at least one, the same ones every time.

    By the order of the names' hashes: it does not follow the files' numbers, and when photos are
    added or removed only those near the border change sides.
    """
    if len(pairs) < 2:
        raise InputError(
            f"data: {len(pairs)} photo cannot be split; add photos, or set data.val (`train` to learn by heart)"
        )
    by_hash = sorted(pairs, key=lambda pair: hashlib.sha256(os.fsencode(pair.name)).digest())
    num_val = min(len(pairs) - 1, max(1, round(len(pairs) * val_fraction)))
    held_out = {pair.name for pair in by_hash[:num_val]}
    return [p for p in pairs if p.name not in held_out], [p for p in pairs if p.name in held_out]


def read_pairs(pairs: list[Pair], image_sizes: list[int]) -> tuple[dict[int, PhotoSet], str]:
    """Decode every pair once, fit it to each size, and take the digest of the pixels."""
    problems: list[str] = []
    fitted: dict[int, list[tuple[UInt8, UInt8]]] = {size: [] for size in image_sizes}
    native_masks: list[UInt8] = []
    shown: list[Shown] = []
    digest = hashlib.sha256()

    def read_one(pair: Pair) -> tuple[UInt8, UInt8, list[tuple[UInt8, UInt8]]] | InputError:
        try:
            photo, mask = pair.read()
        except InputError as error:
            return error
        return photo, mask, [(fit_photo(photo, size), fit_mask(mask, size)) for size in image_sizes]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and scales outside the interpreter's lock
        for read in pool.map(read_one, pairs):
            if isinstance(read, InputError):
                problems += read.problems
                continue
            photo, mask, fits = read
            digest.update(repr(photo.shape).encode() + photo.tobytes() + mask.tobytes())
            if len(shown) < NUM_SHOWN and np.any((mask > 0) & (mask != VOID)):
                shown.append(_shrink(len(native_masks), photo, mask))
            native_masks.append(mask)
            for size, fit in zip(image_sizes, fits, strict=True):
                fitted[size].append(fit)
    if problems:
        raise InputError(problems)
    names = tuple(pair.name for pair in pairs)
    sets = {
        size: PhotoSet(
            names,
            np.stack([photo for photo, _ in fits]),
            np.stack([mask for _, mask in fits]),
            tuple(native_masks),
            tuple(shown),
        )
        for size, fits in fitted.items()
    }
    return sets, digest.hexdigest()


def _shrink(index: int, photo_HW3: UInt8, mask_HW: UInt8) -> Shown:
    scale = min(1.0, SHOWN_SIDE / max(mask_HW.shape))
    size = (max(1, round(mask_HW.shape[1] * scale)), max(1, round(mask_HW.shape[0] * scale)))
    photo = Image.fromarray(photo_HW3).resize(size, Image.Resampling.BILINEAR)
    mask = Image.fromarray(mask_HW).resize(size, Image.Resampling.NEAREST)
    return Shown(index, np.asarray(photo), np.asarray(mask))


def _find_photos(folder: Path) -> dict[str, Path]:
    """Photos by their stem; two photos of one stem could not be told apart by their masks."""
    photos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith("."):
            if path.stem in photos:
                raise InputError(f"{path}: {photos[path.stem].name} has the same name; rename one of them")
            photos[path.stem] = path
    if not photos:
        raise InputError(f"{folder}: no photos ({', '.join(PHOTO_SUFFIXES)}); check the path")
    return photos


def _list_halves(photos: dict[str, Path], others: dict[str, Path], missing_half: str, remedy: str) -> list[Pair]:
    """Photos without their other half and the other way round: pairs that cannot be read, and say why."""
    problems = [f"{photos[stem]}: photo without {missing_half}; {remedy}" for stem in photos if stem not in others]
    problems += [
        f"{others[stem]}: no photo of this name; add it or remove this file" for stem in others if stem not in photos
    ]
    return [Pair(line, partial(_refuse, line)) for line in problems]


def _refuse(problem: str) -> tuple[UInt8, UInt8]:
    raise InputError(problem)


def _list_voc(folder: Path, classes: tuple[str, ...]) -> list[Pair]:
    """JPEGImages/ beside SegmentationClass/ or SegmentationClassPNG/; class_names.txt, if there, names the ids."""
    mask_folder = next((folder / name for name in VOC_MASKS if (folder / name).is_dir()), None)
    if mask_folder is None:
        raise InputError(
            f"{folder}: {VOC_PHOTOS}/ but neither {' nor '.join(VOC_MASKS)}; convert the annotations first"
        )
    photos = _find_photos(folder / VOC_PHOTOS)
    masks = {path.stem: path for path in sorted(mask_folder.glob("[!.]*.png"))}
    halves = _list_halves(photos, masks, f"mask in {mask_folder.name}/", "outline and convert it, or remove the photo")
    label_names = _read_class_names(folder / "class_names.txt") or ["_background_", *classes]
    return [
        Pair(stem, partial(_read_voc, folder, photo, masks[stem], label_names, classes))
        for stem, photo in photos.items()
        if stem in masks
    ] + halves


def _read_class_names(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as one class name a line") from None


def _read_voc(
    folder: Path, photo_path: Path, mask_path: Path, label_names: list[str], classes: tuple[str, ...]
) -> tuple[UInt8, UInt8]:
    _check_inside(folder, photo_path)
    _check_inside(folder, mask_path)
    photo, raw_mask = read_photo(photo_path), read_mask(mask_path)
    if raw_mask.shape != photo.shape[:2]:
        height, width = raw_mask.shape
        raise InputError(
            f"{mask_path}: the mask is {width} x {height}, its photo {photo.shape[1]} x {photo.shape[0]}; "
            "make it anew from the photo's annotation"
        )
    label_ids = make_label_ids(classes)
    name_of = dict(enumerate(label_names)) | {VOID: VOID_LABEL}
    new_ids = np.zeros(256, np.uint8)
    for value in np.unique(raw_mask).tolist():
        name = name_of.get(value, f"id {value}")
        if name not in label_ids:
            raise InputError(f"{mask_path}: unknown label {name!r}; known are {', '.join(label_ids)}")
        new_ids[value] = label_ids[name]
    return photo, new_ids[raw_mask]


def _check_inside(folder: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: a link that leaves the folder; copy the file into it")


def _list_labelme(folder: Path, classes: tuple[str, ...]) -> list[Pair]:
    """Photos and Labelme's .json files side by side."""
    annotations = {path.stem: path for path in sorted(folder.glob("[!.]*.json"))}
    if not annotations:
        raise InputError(
            f"{folder}: neither Labelme annotations (*.json) nor {VOC_PHOTOS}/; outline the cats in Labelme first"
        )
    photos = _find_photos(folder)
    halves = _list_halves(photos, annotations, "annotation", "outline it in Labelme (no shapes: no cat), or remove it")
    return [
        Pair(stem, partial(_read_labelme, folder, path, classes))
        for stem, path in annotations.items()
        if stem in photos
    ] + halves


def _read_labelme(folder: Path, path: Path, classes: tuple[str, ...]) -> tuple[UInt8, UInt8]:
    _check_inside(folder, path)
    annotation = load_annotation(path)
    photo_path = folder / annotation.image_path.replace("\\", "/")
    try:
        inside = photo_path.resolve().is_relative_to(folder.resolve())
    except ValueError:  # a NUL, or no Unicode
        inside = False
    if not inside:
        raise InputError(
            f"{path}: imagePath {annotation.image_path!r} leaves the folder; put the photo beside the file"
        )
    photo = read_photo(photo_path)
    return photo, draw_mask(annotation, photo.shape[0], photo.shape[1], classes)
