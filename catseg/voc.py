"""A VOC folder, written: photos, masks, class names; from a folder of Labelme files what labelme2voc would make.

In:  a Labelme folder, classes.   Out: JPEGImages/, SegmentationClass/, SegmentationObject/, overlays, class_names.txt.
Knows nothing of training.      (H height, W width in pixels)

Other than labelme2voc's, photos that EXIF turns are upright and so under their masks, transparency is laid on
white, palettes are resolved, and plain JPEG files are copied as they are, not encoded anew.
"""

import io
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from catseg.errors import InputError
from catseg.files import new_folder
from catseg.folder import VOC_CLASS_NAMES, VOC_MASKS, VOC_PHOTOS, Pair, list_labelme, map_pairs, read_annotated
from catseg.labelme import BACKGROUND_LABEL, MAX_LABELS, Annotation, draw_shapes
from catseg.photo import VOC_PALETTE, VOID, UInt8, encode_png, paint_overlay, read_header

MASKS, OBJECTS, OVERLAYS = VOC_MASKS[0], "SegmentationObject", "SegmentationClassVisualization"
JPEG_QUALITY = 95


def convert(folder: Path, out: Path, classes: tuple[str, ...]) -> Generator[tuple[int, int], None, None]:
    """Write the VOC folder of a Labelme folder; yields (photos done, photos in all). Whole or not at all.

    InputError lists all problems of all files; then, and when the generator is closed, nothing is left.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    pairs = list_labelme(folder, classes)
    problems: list[str] = []
    with new_folder(out) as begun:
        make_folders(begun, classes)
        for name in (OBJECTS, OVERLAYS):
            (begun / name).mkdir()
        with closing(map_pairs(partial(_convert_pair, folder, begun, classes), pairs)) as results:
            for number, result in enumerate(results, 1):
                problems += result.problems if isinstance(result, InputError) else ()
                yield number, len(pairs)
        if problems:
            raise InputError(problems)


def make_folders(out: Path, classes: tuple[str, ...]) -> None:
    """JPEGImages/, SegmentationClass/ and class_names.txt, which says what the ids mean."""
    for name in (VOC_PHOTOS, MASKS):
        (out / name).mkdir()
    (out / VOC_CLASS_NAMES).write_text("\n".join((BACKGROUND_LABEL, *classes)), "utf-8")


def write_photo(out: Path, name: str, source: Path | bytes, photo_HW3: UInt8) -> None:
    """JPEGImages/<name>.jpg: the file itself where it is a plain upright JPEG, else its pixels encoded anew."""
    header = read_header(source, name)
    if header.kind == "JPEG" and header.mode in ("RGB", "L") and not header.turned:
        data = source.read_bytes() if isinstance(source, Path) else source
    else:
        data = _encode_jpeg(photo_HW3)
    (out / VOC_PHOTOS / f"{name}.jpg").write_bytes(data)


def write_mask(out: Path, name: str, mask_HW: UInt8) -> None:
    """SegmentationClass/<name>.png: label ids as palette indices in VOC's colours, void 255."""
    (out / MASKS / f"{name}.png").write_bytes(encode_png(mask_HW, VOC_PALETTE))


def draw_objects(annotation: Annotation, mask_HW: UInt8) -> UInt8:
    """Which object each pixel belongs to, from 1: shapes of one label and group are one.

    0 where void or never outlined; a `_background_` hole is an object, too, as in labelme2voc.
    """
    numbers: dict[object, int] = {}
    values = [
        numbers.setdefault(index if shape.group_id is None else (shape.label, shape.group_id), len(numbers) + 1)
        for index, shape in enumerate(annotation.shapes)
    ]
    if len(numbers) > MAX_LABELS:
        raise InputError(
            f"{annotation.path}: {len(numbers)} objects, a VOC mask holds {MAX_LABELS}; give parts of one a group_id"
        )
    objects_HW = draw_shapes(annotation.shapes, values, *mask_HW.shape)
    return np.where(mask_HW == VOID, np.uint8(0), objects_HW)


def _convert_pair(folder: Path, out: Path, classes: tuple[str, ...], pair: Pair) -> None:
    if pair.annotation_path is None:
        pair.read()  # says what is missing
        return
    annotation, source, photo, mask = read_annotated(folder, pair.annotation_path, pair.photo_path, classes)
    write_photo(out, pair.name, source, photo)
    write_mask(out, pair.name, mask)
    (out / OBJECTS / f"{pair.name}.png").write_bytes(encode_png(draw_objects(annotation, mask), VOC_PALETTE))
    (out / OVERLAYS / f"{pair.name}.jpg").write_bytes(_encode_jpeg(paint_overlay(photo, mask)))


def _encode_jpeg(photo_HW3: UInt8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo_HW3).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
