"""The Oxford-IIIT Pets (37 breeds, a trimap each), written as a VOC folder of cats, dogs or both.

In:  a folder with its two archives.   Out: JPEGImages/, SegmentationClass/, ImageSets/, class_names.txt.
Knows nothing of terminals or training.      (H height, W width in pixels)

The archives are input like any other: of them reach the disk only photos that were decoded and masks
that were made. Of the 7,390 photos some are PNG or GIF files called .jpg, and some JPEGs are damaged:
what can be decoded is encoded anew where it must be, the rest is left out and named.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catseg.archive import read_members
from catseg.errors import InputError
from catseg.files import new_folder
from catseg.folder import VOC_LISTS
from catseg.photo import VOID, UInt8, open_checked, read_photo
from catseg.server import Archive, Source
from catseg.voc import make_folders, write_mask, write_photo

BASE_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"
LICENCE = 'CC BY-SA 4.0; Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012; photos remain their owners\''

CLASSES = {"cat": ("cat",), "dog": ("dog",), "both": ("cat", "dog")}  # what a user can ask for
SPECIES = {"1": "cat", "2": "dog"}  # as list.txt writes them
LISTS = ("trainval", "test")  # the official split; 41 photos are in neither

PLAIN = "[A-Za-z0-9_-]{1,100}"
PHOTO = re.compile(rf"images/({PLAIN})\.jpg")
ANNOTATION = re.compile(rf"annotations/((?:list|trainval|test)\.txt|trimaps/{PLAIN}\.png)")
MAX_LEFT_OUT = 0.01  # share of the photos; beyond it, the archives are not what they should be


OXFORD = Source(
    BASE_URL,
    Archive("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", 2_000_000_000),  # 792 MB packed
    Archive("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", 500_000_000),  # 19 MB packed
)


@dataclass(frozen=True)
class Pets:
    """What was written: classes, how many photos each list names, and a line for each photo that was left out."""

    classes: tuple[str, ...]
    num_photos: dict[str, int]
    left_out: tuple[str, ...]


def convert_pets(
    folder: Path, out: Path, species: str = "cat", border: str = "void", source: Source = OXFORD
) -> Generator[tuple[int, int], None, Pets]:
    """Write the VOC folder of the archives in `folder`; yields (photos done, photos in all). Whole or not at all.

    `species` is of CLASSES; by `border`, "void" or "class", the trimaps' band around an animal becomes
    void or part of the animal. A photo that cannot be decoded or has no trimap of its size is left
    out, for one bad file shall not cost the others; InputError lists them all if they are over 1 %.
    """
    classes, images = CLASSES[species], folder / source.images.name
    lists, trimaps = _read_annotations(folder / source.annotations.name, source.annotations.max_bytes, species)
    awaited = lists["trainval"] | lists["test"]
    num_awaited, left_out = len(awaited), dict[str, str]()
    with new_folder(out) as begun:
        make_folders(begun, classes)
        for name, data in read_members(images, PHOTO, source.images.max_bytes):
            if name not in awaited:
                continue
            label_id = classes.index(awaited.pop(name)) + 1
            try:
                _write_pet(begun, name, data, trimaps, label_id, VOID if border == "void" else label_id)
            except InputError as error:
                left_out[name] = str(error).rpartition("; ")[0]
            yield num_awaited - len(awaited), num_awaited
        left_out |= {name: f"{images.name}: no photo {name!r:.120}" for name in awaited}
        if len(left_out) > MAX_LEFT_OUT * num_awaited:
            verdict = f"{folder}: {len(left_out)} of {num_awaited} photos cannot be used; download the archives anew"
            raise InputError([*left_out.values(), verdict])
        names = {kind: [name for name in lists[kind] if name not in left_out] for kind in LISTS}
        pets = Pets(classes, {kind: len(names[kind]) for kind in LISTS}, tuple(left_out.values()))
        _write_texts(begun, names, f"species {species}, border {border}", pets)
    return pets


def _read_annotations(path: Path, max_bytes: int, species: str) -> tuple[dict[str, dict[str, str]], dict[str, bytes]]:
    """For each official list, what the photos of these species show; and all trimaps, still packed as PNG."""
    files = dict(read_members(path, ANNOTATION, max_bytes))
    for kind in ("list", *LISTS):
        if f"{kind}.txt" not in files:
            raise InputError(f"{path}: no annotations/{kind}.txt in it; download it anew")
    rows = {kind: _split_rows(files.pop(f"{kind}.txt")) for kind in ("list", *LISTS)}
    shown = {row[0]: SPECIES[row[2]] for row in rows["list"] if len(row) > 2 and row[2] in SPECIES}
    names = {kind: [row[0] for row in rows[kind]] for kind in LISTS}
    lists = {kind: {n: shown[n] for n in names[kind] if shown.get(n) in CLASSES[species]} for kind in LISTS}
    unknown = [name for kind in LISTS for name in names[kind] if name not in shown]
    problems = [f"{name!r:.120} of no species in list.txt" for name in unknown]
    problems += [f"{name!r:.120} in trainval.txt and test.txt" for name in set(names["trainval"]) & set(names["test"])]
    problems += [f"no photo of {species} in {kind}.txt" for kind in LISTS if not lists[kind]]
    if problems:
        raise InputError([f"{path}: {problem}; download it anew" for problem in problems])
    return lists, files


def _split_rows(text: bytes) -> list[list[str]]:
    """`name class species breed`, as words; `#` begins a comment."""
    return [line.split() for line in text.decode("utf-8", "replace").splitlines() if line.strip() and line[0] != "#"]


def _write_pet(out: Path, name: str, data: bytes, trimaps: dict[str, bytes], label_id: int, border_id: int) -> None:
    """Photo and mask; both as they lie in their files, for whoever drew the trimaps did not look at EXIF."""
    photo = read_photo(data, f"images/{name}.jpg", upright=True)
    mask = _read_trimap(trimaps, name, photo.shape[:2], [VOID, label_id, 0, border_id])
    write_photo(out, name, data, photo)
    write_mask(out, name, mask)


def _read_trimap(trimaps: dict[str, bytes], name: str, shape: tuple[int, ...], label_ids: list[int]) -> UInt8:
    """mask_HW of a trimap: 1 the animal, 2 around it, 3 the border between; `label_ids` says what each becomes."""
    where = f"annotations/trimaps/{name}.png"
    if f"trimaps/{name}.png" not in trimaps:
        raise InputError(f"{where}: not in the archive; left out")
    image = open_checked(trimaps[f"trimaps/{name}.png"], where, upright=True)
    values = np.asarray(image)
    if image.mode not in ("L", "P") or not np.isin(values, (1, 2, 3)).all():
        raise InputError(f"{where}: holds more than 1, 2 and 3; left out")
    if values.shape != shape:
        raise InputError(f"{where}: {image.width} x {image.height} pixels, its photo {shape[1]} x {shape[0]}; left out")
    mask: UInt8 = np.asarray(label_ids, np.uint8)[values]
    return mask


def _write_texts(out: Path, names: dict[str, list[str]], choice: str, pets: Pets) -> None:
    """ImageSets/Segmentation/*.txt, and in README.txt what the licence wants to travel with the photos."""
    folder = out / VOC_LISTS / "Segmentation"
    folder.mkdir(parents=True)
    for kind in LISTS:
        (folder / f"{kind}.txt").write_text("".join(f"{name}\n" for name in names[kind]), "utf-8")
    changes = (f"Changed: {choice}; masks from trimaps; photos that were no plain JPEG encoded anew.", "Left out:")
    lines = ("The Oxford-IIIT Pet Dataset", BASE_URL, LICENCE, "", *changes, *(pets.left_out or ("nothing",)))
    (out / "README.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
