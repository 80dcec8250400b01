"""Pairs of photo and mask -> uint8 arrays in memory, split in two.

In:  DataConfig, or pairs.   Out: PhotoSet, one for training, one for validation.
Knows nothing of models or tensors, nor of how folders are laid out.
(N photos, S side, H height, W width in pixels)
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from catseg.duplicates import Bits, compute_hashes, find_near, make_groups
from catseg.errors import InputError
from catseg.folder import Pair, list_pairs, map_pairs
from catseg.labelme import make_label_ids
from catseg.photo import VOID, UInt8, fit_mask, fit_photo, fit_size
from catseg.sample import SAMPLE

SAME_AS_TRAIN = "train"  # data.val: validate on the training photos; shows what was memorised, not skill
NUM_SHOWN, SHOWN_SIDE = 4, 256  # photos shown as overlays, and the most their longer side may measure


@dataclass(frozen=True)
class DataConfig:
    train: str | None = None  # `sample`, a Labelme folder, a VOC folder or one of its ImageSets lists
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
    used_N2: npt.NDArray[np.int64]  # height and width that each photo takes of its square


@dataclass(frozen=True)
class Leak:
    """One photo in two roles, nearly the same: what is learnt of the first is known of the second."""

    first: str  # "train cat-1"
    second: str  # "val cat-7"
    distance: int  # bits of 144


@dataclass(frozen=True)
class Data:
    """All that a grid needs: one (training, validation) pair of sets for each image size."""

    sets: dict[int, tuple[PhotoSet, PhotoSet]]
    fingerprint: str  # of all pixels and classes: equal data, equal fingerprint, whatever the file format
    val_is_train: bool
    leaks: tuple[Leak, ...] = ()

    @property
    def num_photos(self) -> tuple[int, int]:
        """Photos to train on and to validate on."""
        train, val = next(iter(self.sets.values()))
        return len(train.names), len(val.names)


@dataclass(frozen=True)
class Decoded:
    """What is kept of one photo when its pixels are dropped."""

    pair: Pair
    fits: dict[int, tuple[UInt8, UInt8]]  # image size -> photo_SS3, mask_SS
    native_mask: UInt8
    digest: str  # of its pixels and its mask
    hashes: Bits | None  # None: not looked for among the others


def load_data(config: DataConfig, image_sizes: Iterable[int]) -> Data:
    """Read, check and fit everything once; InputError lists all problems of all files."""
    if config.train is None:
        raise InputError("data.train: no training photos named; give --train DIR or set it in the experiment file")
    sizes = sorted(set(image_sizes))
    same = config.val == SAME_AS_TRAIN or _is_same(config.val, config.train)
    sources = {"train": config.train, "val": None if same else config.val, "test": config.test}
    hashed = any(source not in (None, SAMPLE) for source in sources.values())  # drawn cats are unlike each other
    photos: dict[str, list[Decoded]] = {}
    problems: list[str] = []
    for role, source in sources.items():
        if source is None:
            continue
        if source != SAMPLE and not Path(source).exists():
            problems.append(_format_absent(source))
            continue
        try:  # the others are read, too: all problems at once
            # the test photos are read now and dropped: a bad file must not turn up when the grid is done
            photos[role] = decode(list_pairs(source, config.classes), sizes[: 1 if role == "test" else None], hashed)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    if same:
        photos["val"] = photos["train"]
    elif config.val is None:
        photos["train"], photos["val"] = split(photos["train"], config.val_fraction)
    for role, decoded in photos.items():
        _check_objects(f"data.{role}", decoded, config.classes)
    digests = [_digest(photo.digest for photo in photos[role]) for role in ("train", "val")]
    # nothing is scored on or shown of the training photos: what that takes need not travel to the workers
    shown = _make_shown(photos["val"])
    sets = {}
    for size in sizes:
        val = make_photo_set(photos["val"], size, shown=shown)
        train = make_photo_set(photos["train"], size, scored=False) if not same else _strip(val)
        sets[size] = train, val
    # the two sides of a hold-out have none
    leaks = () if config.val is None and config.test is None else find_leaks(photos)
    return Data(sets, _digest((*config.classes, *digests))[:16], same, leaks)


def _format_absent(source: str) -> str:
    return f"{source}: no such folder; check the path (in an experiment file it starts there)"


def _check_objects(where: str, photos: list[Decoded], classes: tuple[str, ...]) -> None:
    if not any(np.any((photo.native_mask > 0) & (photo.native_mask != VOID)) for photo in photos):
        raise InputError(
            f"{where}: no pixel of {', '.join(classes)} in {len(photos)} photos; masks hold "
            "label ids (1 for the first class, 255 for void), check them and `classes`"
        )


def _strip(photos: PhotoSet) -> PhotoSet:
    """The same arrays, held once, without what only scoring and showing take."""
    return replace(photos, native_masks=(), shown=())


def _is_same(val: str | None, train: str) -> bool:
    return val is not None and Path(val).resolve() == Path(train).resolve()


def load_test_set(source: str, classes: tuple[str, ...], image_size: int) -> tuple[PhotoSet, str]:
    """All photos of one source at one size, and the fingerprint of their pixels and classes, whatever the size."""
    if source != SAMPLE and not Path(source).exists():
        raise InputError(_format_absent(source))
    photos = decode(list_pairs(source, classes), [image_size], hashed=False)
    _check_objects(source, photos, classes)
    return make_photo_set(photos, image_size), _digest((*classes, _digest(photo.digest for photo in photos)))[:16]


def read_pairs(pairs: list[Pair], image_sizes: list[int]) -> dict[int, PhotoSet]:
    """Decode every pair once and fit it to each size."""
    photos = decode(pairs, image_sizes, hashed=False)
    shown = _make_shown(photos)
    return {size: make_photo_set(photos, size, shown=shown) for size in image_sizes}


def decode(pairs: list[Pair], image_sizes: list[int], hashed: bool) -> list[Decoded]:
    """Read every pair once, in threads; InputError lists all problems. `hashed`: to be compared with each other."""
    problems: list[str] = []
    photos: list[Decoded] = []

    def decode_one(pair: Pair) -> Decoded:
        photo, mask = pair.read()
        digest = hashlib.sha256(repr(photo.shape).encode())
        for pixels in (photo, mask):
            digest.update(np.ascontiguousarray(pixels).data)
        return Decoded(
            pair,
            {size: (fit_photo(photo, size), fit_mask(mask, size)) for size in image_sizes},
            mask,
            digest.hexdigest(),
            compute_hashes(photo) if hashed else None,
        )

    with closing(map_pairs(decode_one, pairs)) as results:
        for result in results:
            if isinstance(result, InputError):
                problems += result.problems
            else:
                photos.append(result)
    if problems:
        raise InputError(problems)
    return photos


def make_photo_set(
    photos: list[Decoded], image_size: int, scored: bool = True, shown: tuple[Shown, ...] = ()
) -> PhotoSet:
    """One set at one size; the masks at native size only where it is scored."""
    return PhotoSet(
        tuple(photo.pair.name for photo in photos),
        np.stack([photo.fits[image_size][0] for photo in photos]),
        np.stack([photo.fits[image_size][1] for photo in photos]),
        tuple(photo.native_mask for photo in photos) if scored else (),
        shown,
        np.array([fit_size(photo.native_mask.shape[0], photo.native_mask.shape[1], image_size) for photo in photos]),
    )


def split(photos: list[Decoded], val_fraction: float) -> tuple[list[Decoded], list[Decoded]]:
    """Hold out a share of the photos, at least one, the same ones every time, near-duplicates on one side.

    By the order of the names' hashes: it does not follow the files' numbers, and when photos are
    added or removed only those near the border change sides. A group that does not fit into the
    share any more stays in training.
    """
    if len(photos) < 2:
        raise InputError(
            f"data: {len(photos)} photo cannot be split; add photos, or set data.val (`train` to learn by heart)"
        )
    groups = make_groups(len(photos), find_near([photo.hashes for photo in photos if photo.hashes is not None]))
    if len(groups) < 2:
        raise InputError(
            f"data: {len(photos)} photos, all nearly the same, cannot be split; add others, or set data.val"
        )
    by_hash = sorted(groups, key=lambda group: min(_hash_name(photos[number]) for number in group))
    num_val = min(len(photos) - 1, max(1, round(len(photos) * val_fraction)))
    held_out: set[int] = set()
    for group in by_hash:
        if len(held_out) + len(group) <= num_val:
            held_out.update(group)
    held_out = held_out or set(sorted(by_hash, key=len)[0])
    return (
        [photo for number, photo in enumerate(photos) if number not in held_out],
        [photo for number, photo in enumerate(photos) if number in held_out],
    )


def _hash_name(photo: Decoded) -> bytes:
    return hashlib.sha256(os.fsencode(photo.pair.name)).digest()


def find_leaks(photos: dict[str, list[Decoded]]) -> tuple[Leak, ...]:
    """Photos of one role that are nearly the same as one of another, nearest first."""
    listed = [
        (role, photo)
        for role, decoded in photos.items()
        if role == "train" or decoded is not photos["train"]
        for photo in decoded
        if photo.hashes is not None
    ]
    near = find_near([photo.hashes for _, photo in listed if photo.hashes is not None])
    names = [f"{role} {photo.pair.name}" for role, photo in listed]
    return tuple(
        Leak(names[pair.first], names[pair.second], pair.distance)
        for pair in near
        if listed[pair.first][0] != listed[pair.second][0]
    )


def _make_shown(photos: list[Decoded]) -> tuple[Shown, ...]:
    """The first photos with something on them, read once more: to keep all would take too much memory."""
    indices = [
        index for index, photo in enumerate(photos) if np.any((photo.native_mask > 0) & (photo.native_mask != VOID))
    ]
    return tuple(_shrink(index, *photos[index].pair.read()) for index in indices[:NUM_SHOWN])


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _shrink(index: int, photo_HW3: UInt8, mask_HW: UInt8) -> Shown:
    scale = min(1.0, SHOWN_SIDE / max(mask_HW.shape))
    size = (max(1, round(mask_HW.shape[1] * scale)), max(1, round(mask_HW.shape[0] * scale)))
    photo = Image.fromarray(photo_HW3).resize(size, Image.Resampling.BILINEAR)
    mask = Image.fromarray(mask_HW).resize(size, Image.Resampling.NEAREST)
    return Shown(index, np.asarray(photo), np.asarray(mask))
