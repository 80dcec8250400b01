"""Labelme's JSON -> a label map, pixel for pixel as Labelme's own converter draws it.

In:  a .json file as Labelme 3 to 7 writes it; class names.   Out: mask_HW of label ids.
Knows nothing of the photo's pixels; never imports labelme (GPL, and it switches off Pillow's
guard against decompression bombs).
"""

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from catseg.errors import InputError
from catseg.photo import MAX_PIXELS, VOID, UInt8

BACKGROUND_LABEL, VOID_LABEL = "_background_", "__ignore__"
MAX_JSON_BYTES = 200_000_000  # a 64-megapixel photo embedded in base64 fits
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
    bitmap: np.ndarray[Any, np.dtype[np.bool_]] | None = None


@dataclass(frozen=True)
class Annotation:
    """What one Labelme file says. `image_path` is as written: trust it only after a check."""

    path: Path
    image_path: str
    height: int | None
    width: int | None
    shapes: tuple[Shape, ...]


def make_label_ids(classes: tuple[str, ...]) -> dict[str, int]:
    """Label -> id: background 0, the classes 1..K in their order, `__ignore__` void."""
    return {BACKGROUND_LABEL: 0, VOID_LABEL: VOID} | {name: index for index, name in enumerate(classes, 1)}


def load_annotation(path: Path) -> Annotation:
    """Read one Labelme file strictly; InputError names the file, the shape and the remedy."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path}: over {MAX_JSON_BYTES // 10**6} MB; save it in Labelme without image data")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, 5,000 brackets
        raise InputError(f"{path}: not a JSON file ({error}); save it again in Labelme") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}: no list `shapes`; this is not a Labelme file")
    image_path = content.get("imagePath")
    if not isinstance(image_path, str) or not image_path:
        raise InputError(f"{path}: no text `imagePath`; save it again in Labelme")
    shapes = tuple(_read_shape(f"{path}: shapes[{index}]", raw) for index, raw in enumerate(content["shapes"]))
    height, width = (_read_size(path, content, key) for key in ("imageHeight", "imageWidth"))
    return Annotation(path, image_path, height, width, shapes)


def draw_mask(annotation: Annotation, height: int, width: int, classes: tuple[str, ...]) -> UInt8:
    """Annotation -> mask_HW: shapes in file order, later over earlier, what lies outside is cut off.

    `height` and `width` are those of the photo as shown (EXIF applied), and must agree with what
    the annotation says of itself.
    """
    said = (annotation.height or height, annotation.width or width)
    if said != (height, width):
        raise InputError(
            f"{annotation.path}: outlined on a photo of {said[1]} x {said[0]}, but {annotation.image_path} is "
            f"{width} x {height}; open it in Labelme and outline it again"
        )
    label_ids = make_label_ids(classes)
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for index, shape in enumerate(annotation.shapes):
        if shape.label not in label_ids:
            raise InputError(
                f"{annotation.path}: shapes[{index}]: unknown label {shape.label!r}; known are {', '.join(label_ids)}"
            )
        _draw_shape(canvas, draw, shape, label_ids[shape.label])
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
            left, top = (int(value) for value in points[0])
            canvas.paste(label_id, (left, top), Image.fromarray(shape.bitmap))


def _draw_disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, label_id: int) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=label_id, fill=label_id)


def _read_size(path: Path, content: dict[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: {key} is {value!r}, not a number of pixels; save it again in Labelme")
    return value


def _read_shape(where: str, raw: Any) -> Shape:
    if not isinstance(raw, dict) or not isinstance(raw.get("label"), str):
        raise InputError(f"{where}: no text `label`; delete the shape in Labelme and draw it again")
    shape_type = raw.get("shape_type") or "polygon"  # files of version 3 have none
    if not isinstance(shape_type, str) or shape_type not in NUM_POINTS:
        raise InputError(f"{where}: unknown shape_type {shape_type!r}; known are {', '.join(NUM_POINTS)}")
    points = raw.get("points")
    least, most = NUM_POINTS[shape_type]
    if not isinstance(points, list) or len(points) < least or (most is not None and len(points) > most):
        got = len(points) if isinstance(points, list) else "none"
        wanted = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{where}: a {shape_type} has {wanted} points, got {got}; delete or redraw it in Labelme")
    return Shape(
        label=raw["label"],
        shape_type=shape_type,
        points=tuple(_read_point(where, point) for point in points),
        bitmap=_read_bitmap(where, raw) if shape_type == "mask" else None,
    )


def _read_point(where: str, raw: Any) -> tuple[float, float]:
    if isinstance(raw, list) and len(raw) == 2:
        x, y = raw
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in raw)
        if numbers and abs(x) < 1e6 and abs(y) < 1e6:  # false for NaN and infinity
            return float(x), float(y)
    raise InputError(f"{where}: {raw!r} is not a point [x, y] in pixels; delete or redraw the shape in Labelme")


def _read_bitmap(where: str, raw: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The base64 PNG of a mask shape, True inside."""
    try:
        image = Image.open(io.BytesIO(base64.b64decode(raw["mask"], validate=True)))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        return np.asarray(image.convert("L")) > 0
    except Exception as error:  # as in photo.open_checked
        raise InputError(f"{where}: its mask cannot be decoded ({error}); draw it again in Labelme") from None
