"""Labelme's JSON -> a label map, pixel for pixel as Labelme's own converter draws it.

In:  a .json file as Labelme 3 to 7 writes it; labels.txt.   Out: mask_HW of label ids.
Knows nothing of the photo's pixels; never imports labelme (GPL, and it switches off Pillow's
guard against decompression bombs).
"""

import base64
import io
import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from catseg.errors import InputError
from catseg.photo import MAX_PIXELS, VOID, UInt8

BACKGROUND_LABEL, VOID_LABEL = "_background_", "__ignore__"
MAX_JSON_BYTES = 200_000_000  # a 64-megapixel photo embedded in base64 fits
MAX_POINTS = 100_000  # of a shape; to paint a scribble takes as many steps as it has crossings
MAX_LABELS_BYTES = 1_000_000
NUM_KNOWN = 10  # known labels named in a line; the rest as a number
MAX_LABELS = 254  # ids 1 to 254; 0 is background, 255 void
LINE_WIDTH_PX, POINT_RADIUS_PX = 10, 5  # labelme/utils/shape.py

# How many points each shape has: the least, and the most (None: any number).
NUM_POINTS: dict[str, tuple[int, int | None]] = {
    "polygon": (3, None),
    "oriented_rectangle": (4, 4),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, None),
    "point": (1, 1),
    "points": (1, None),
    "mask": (2, 2),
}


@dataclass(frozen=True)
class Shape:
    """One outlined object; `bitmap` is set for shapes of type mask only (True inside)."""

    label: str
    shape_type: str
    points: tuple[tuple[float, float], ...]  # x, y in pixels of the photo as shown
    bitmap: npt.NDArray[np.bool_] | None = None
    group_id: int | None = None  # shapes of one label and group are one object in several parts


@dataclass(frozen=True)
class Annotation:
    """What one Labelme file says. `image_path` is as written: trust it only after a check."""

    path: Path
    image_path: str
    image_data: str | None  # the photo itself in base64; where it is there, Labelme shows it and no other
    height: int | None
    width: int | None
    shapes: tuple[Shape, ...]


def make_label_ids(classes: tuple[str, ...]) -> dict[str, int]:
    """Label -> id: background 0, the classes 1..K in their order, `__ignore__` void."""
    return {BACKGROUND_LABEL: 0, VOID_LABEL: VOID} | {name: index for index, name in enumerate(classes, 1)}


def load_labels(path: Path) -> tuple[str, ...]:
    """The classes of a labels.txt, in order: one label a line, after `__ignore__` and `_background_`.

    Either may be missing, and so a class_names.txt is read as well: the ids are the same.
    """
    try:
        if path.exists() and not path.is_dir() and not (path.is_file() and path.stat().st_size <= MAX_LABELS_BYTES):
            raise InputError(f"{path}: no text file of labels; write one label a line: __ignore__, _background_, cat")
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write one label a line: __ignore__, _background_, cat") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); save it as UTF-8 text, one label a line") from None
    labels = [line for line in lines if line]
    for special in (VOID_LABEL, BACKGROUND_LABEL):
        if labels[:1] == [special]:
            del labels[0]
    if not 1 <= len(labels) <= MAX_LABELS:
        raise InputError(f"{path}: {len(labels)} classes; write 1 to {MAX_LABELS}, one a line")
    for label in labels:
        if label in (VOID_LABEL, BACKGROUND_LABEL):
            raise InputError(f"{path}: {label} must stand before the classes; first __ignore__, then _background_")
        if labels.count(label) > 1:
            raise InputError(f"{path}: {reprlib.repr(label)} stands there twice; keep one")
    return tuple(labels)


def format_labels(classes: tuple[str, ...]) -> str:
    """The text of a labels.txt, as Labelme and labelme2voc want it."""
    return "".join(f"{label}\n" for label in (VOID_LABEL, BACKGROUND_LABEL, *classes))


def load_annotation(path: Path) -> Annotation:
    """Read one Labelme file strictly; InputError lists all its problems: file, shape, remedy."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: over {MAX_JSON_BYTES // 10**6} MB; save it in Labelme without image data")
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        # not UTF-8, 5,000 brackets, not JSON, a number of 5,000 digits
        raise InputError(f"{path}: not a JSON file ({error}); save it again in Labelme") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}: no list `shapes`; this is not a Labelme file")
    problems: list[str] = []
    shapes: list[Shape] = []
    for index, raw in enumerate(content["shapes"]):
        try:
            shapes.append(_read_shape(f"{path}: shapes[{index}]", raw))
        except InputError as error:
            problems += error.problems
    image_path, image_data = content.get("imagePath"), content.get("imageData")
    if not isinstance(image_path, str) or not image_path:
        problems.append(f"{path}: no text `imagePath`; save it again in Labelme")
    if image_data is not None and not isinstance(image_data, str):
        problems.append(f"{path}: imageData is no text; save it again in Labelme")
    for key in ("imageHeight", "imageWidth"):
        value = content.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            problems.append(f"{path}: {key} is {reprlib.repr(value)}, not a number of pixels; save it again in Labelme")
    if problems:
        raise InputError(problems)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return Annotation(path, str(image_path), image_data, height, width, tuple(shapes))


def decode_image_data(annotation: Annotation) -> bytes:
    """The bytes of the photo that stands inside an annotation."""
    assert annotation.image_data is not None
    try:
        return base64.b64decode("".join(annotation.image_data.split()), validate=True)
    except ValueError as error:
        raise InputError(f"{annotation.path}: imageData is not base64 ({error}); save it again in Labelme") from None


def draw_mask(annotation: Annotation, height: int, width: int, classes: tuple[str, ...]) -> UInt8:
    """Annotation -> mask_HW: shapes in file order, later over earlier, what lies outside is cut off.

    `height` and `width` are those of the photo as shown (EXIF applied), and must agree with what
    the annotation says of itself. Group and description change nothing.
    """
    said = (annotation.height or height, annotation.width or width)
    problems = []
    if said != (height, width):
        problems.append(
            f"{annotation.path}: outlined on a photo of {reprlib.repr(said[1])} x {reprlib.repr(said[0])}, "
            f"but the photo is {width} x {height}; open it in Labelme and outline it again"
        )
    problems += list_unknown_labels(annotation, classes)
    if problems:
        raise InputError(problems)
    label_ids = make_label_ids(classes)
    return draw_shapes(annotation.shapes, [label_ids[shape.label] for shape in annotation.shapes], height, width)


def list_unknown_labels(annotation: Annotation, classes: tuple[str, ...]) -> list[str]:
    """A line for each label that is not among the known ones, with the first shape that has it."""
    known = tuple(make_label_ids(classes))
    more = f" and {len(known) - NUM_KNOWN} more" if len(known) > NUM_KNOWN else ""
    found: dict[str, list[int]] = {}
    for index, shape in enumerate(annotation.shapes):
        if shape.label not in known:
            found.setdefault(shape.label, []).append(index)
    return [
        f"{annotation.path}: shapes[{indices[0]}]{f' and {len(indices) - 1} more' if len(indices) > 1 else ''}: "
        f"unknown label {reprlib.repr(label)}; known are {', '.join(known[:NUM_KNOWN])}{more}; "
        "add it to the labels or rename it in Labelme"
        for label, indices in found.items()
    ]


def draw_shapes(shapes: Sequence[Shape], values: Sequence[int], height: int, width: int) -> npt.NDArray[Any]:
    """Each shape painted with its value on zeros, in order, later over earlier; uint8 up to 255, else int32."""
    canvas = Image.new("L" if max(values, default=0) <= 255 else "I", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for shape, value in zip(shapes, values, strict=True):
        _draw_shape(canvas, draw, shape, value)
    return np.asarray(canvas)


def _draw_shape(canvas: Image.Image, draw: ImageDraw.ImageDraw, shape: Shape, label_id: int) -> None:
    """Paint one shape as labelme/utils/shape.py does: outlines belong to the shape."""
    points = list(shape.points)
    match shape.shape_type:
        case "polygon" | "oriented_rectangle":
            draw.polygon(points, outline=label_id, fill=label_id)
        case "rectangle":
            (x0, y0), (x1, y1) = points  # may be drawn from any corner
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=label_id, fill=label_id)
        case "circle":
            (x, y), rim = points
            _draw_disc(draw, x, y, math.dist((x, y), rim), label_id)
        case "line" | "linestrip":
            draw.line(points, fill=label_id, width=LINE_WIDTH_PX)
        case "point" | "points":
            for x, y in points:
                _draw_disc(draw, x, y, POINT_RADIUS_PX, label_id)
        case "mask":
            assert shape.bitmap is not None
            left, top = (round(value) for value in points[0])
            canvas.paste(label_id, (left, top), Image.fromarray(shape.bitmap))


def _draw_disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, label_id: int) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=label_id, fill=label_id)


def _read_shape(where: str, raw: Any) -> Shape:
    if not isinstance(raw, dict) or not isinstance(raw.get("label"), str):
        raise InputError(f"{where}: no text `label`; delete the shape in Labelme and draw it again")
    shape_type = raw.get("shape_type") or "polygon"  # files of version 3 have none
    if not isinstance(shape_type, str) or shape_type not in NUM_POINTS:
        raise InputError(f"{where}: unknown shape_type {reprlib.repr(shape_type)}; known are {', '.join(NUM_POINTS)}")
    raw_points, group_id = raw.get("points"), raw.get("group_id")
    least, most = NUM_POINTS[shape_type]
    if not isinstance(raw_points, list) or len(raw_points) < least or (most is not None and len(raw_points) > most):
        got = len(raw_points) if isinstance(raw_points, list) else "none"
        wanted = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{where}: a {shape_type} has {wanted} points, got {got}; delete or redraw it in Labelme")
    if group_id is not None and (isinstance(group_id, bool) or not isinstance(group_id, int)):
        raise InputError(f"{where}: group_id is {reprlib.repr(group_id)}, not a whole number; set it in Labelme")
    if len(raw_points) > MAX_POINTS:
        raise InputError(f"{where}: {len(raw_points):,} points, over {MAX_POINTS:,}; draw it again in Labelme")
    points = tuple(_read_point(where, point) for point in raw_points)
    bitmap = _read_bitmap(where, raw, points) if shape_type == "mask" else None
    return Shape(raw["label"], shape_type, points, bitmap, group_id)


def _read_point(where: str, raw: Any) -> tuple[float, float]:
    if isinstance(raw, list) and len(raw) == 2:
        x, y = raw
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in raw)
        if numbers and abs(x) < 1e6 and abs(y) < 1e6:  # false for NaN and infinity
            return float(x), float(y)
    raise InputError(
        f"{where}: {reprlib.repr(raw)} is not a point [x, y] in pixels; delete or redraw the shape in Labelme"
    )


def _read_bitmap(where: str, raw: dict[str, Any], points: tuple[tuple[float, float], ...]) -> npt.NDArray[np.bool_]:
    """The base64 PNG of a mask shape, True inside, as large as the box between its two corners says.

    Labelme takes fractional corners as approximate, whole ones as exact: these cut the bitmap.
    """
    try:
        image = Image.open(io.BytesIO(base64.b64decode(raw["mask"], validate=True)), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        bitmap = np.asarray(image.convert("L")) > 0
    except Image.DecompressionBombError:
        raise InputError(f"{where}: its mask cannot be decoded (over {MAX_PIXELS:,} pixels); draw it again") from None
    except Exception as error:  # as in photo.open_checked
        raise InputError(f"{where}: its mask cannot be decoded ({error}); draw it again in Labelme") from None
    (x0, y0), (x1, y1) = points
    width, height = round(x1) - round(x0) + 1, round(y1) - round(y0) + 1
    whole = all(value.is_integer() for value in (x0, y0, x1, y1))
    spare = (bitmap.shape[1] - width, bitmap.shape[0] - height)
    if min(width, height) < 1 or min(spare) < (0 if whole else -1) or (max(spare) > 1 and not whole):
        raise InputError(
            f"{where}: its mask is {bitmap.shape[1]} x {bitmap.shape[0]}, its corners say {width} x {height}; "
            "draw it again in Labelme"
        )
    return bitmap[:height, :width] if whole else bitmap
