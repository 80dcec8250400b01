"""Label map -> outlines, as a file that Labelme opens: the way back.

In:  labels_HW, class names.   Out: polygons with x, y in pixels; Labelme's JSON.
Knows nothing of photos or models.

Labelme knows no holes: a polygon covers all it encloses, and what was drawn later lies on top. So
each region (of one label, hanging together by its sides) is outlined without its holes, large ones
first, and a hole is one more polygon, labelled `_background_`, over it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import contourpy
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from shapely.geometry import LineString, Polygon

from catseg.labelme import make_label_ids
from catseg.photo import UInt8

FORMAT_VERSION = "6.3.1"  # of Labelme, whose keys these files have; 3 to 7 read them
TOLERANCE_PX = 1.0  # how far a simplified outline may lie from the true one
MIN_IOU = 0.992  # of a simplified region with the true one; below it the tolerance is halved, at last dropped
MAX_VALIDATED = 10_000  # corners of an outline up to which shapely is asked first whether it crosses itself
MAX_GAPS = 20  # in an outline that crosses itself: the largest are looked at

Point = tuple[float, float]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """A part of one label that hangs together: its pixels, its holes filled, in a box of the label map."""

    label_id: int
    top: int
    left: int
    part: Bools
    filled: Bools


def trace_outlines(labels_HW: UInt8, tolerance_px: float = TOLERANCE_PX) -> list[tuple[int, list[Point]]]:
    """labels_HW -> (label id, corners) per polygon, to be drawn in this order; tolerance 0 is exact.

    Corners are pixel centres of the region's rim, which belongs to a polygon in Labelme.
    """
    height, width = labels_HW.shape
    canvas = Image.new("L", (width, height), 0)
    outlines = []
    for region in sorted(_list_regions(labels_HW), key=lambda region: -np.count_nonzero(region.filled)):
        rows, columns = region.part.shape
        box = (region.left, region.top, region.left + columns, region.top + rows)
        there = np.asarray(canvas.crop(box))[region.part] == region.label_id
        if there.all() or (tolerance_px and there.mean() > 0.5):
            continue  # background that nothing covers; or but its rim, by a simplified outline beside it
        corners = [(x + region.left, y + region.top) for x, y in _trace(region.filled, tolerance_px)]
        ImageDraw.Draw(canvas).polygon(corners, outline=region.label_id, fill=region.label_id)
        outlines.append((region.label_id, corners))
    return outlines


def count_left_out(points: Sequence[Point], height: int, width: int) -> int:
    """How many pixels of a photo stay unpainted though an outline that crosses itself goes around them twice.

    Around a hole that a slit leads to it goes not at all: that is on purpose.
    """
    if len(points) <= MAX_VALIDATED and Polygon(points).is_valid:
        return 0
    canvas = Image.new("1", (width, height), 0)
    ImageDraw.Draw(canvas).polygon(list(points), outline=1, fill=1)
    gaps_HW, _ = ndimage.label(np.pad(~np.asarray(canvas), 1, constant_values=True))  # 1 is what lies outside
    sizes = np.bincount(gaps_HW.ravel())[2:]
    largest = np.argsort(-sizes)[:MAX_GAPS] + 2
    corners = np.asarray(points)
    return sum(int(sizes[gap - 2]) for gap in largest if _compute_winding(corners, *_find_pixel(gaps_HW, gap)))


def _find_pixel(gaps_HW: npt.NDArray[np.int32], gap: int) -> tuple[float, float]:
    row, column = np.argwhere(gaps_HW == gap)[0].tolist()
    return column - 1.0, row - 1.0


def _compute_winding(corners: npt.NDArray[np.float64], x: float, y: float) -> int:
    """How often a polygon goes around a point: upward crossings of the ray to its right less downward ones."""
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
    upward, downward = (y0 <= y) & (y1 > y) & (side > 0), (y0 > y) & (y1 <= y) & (side < 0)
    return int(np.count_nonzero(upward) - np.count_nonzero(downward))


def make_annotation(
    labels_HW: UInt8, image_name: str, classes: tuple[str, ...], tolerance_px: float = TOLERANCE_PX
) -> str:
    """The JSON that Labelme would have saved, had somebody drawn these labels on the photo `image_name` beside it."""
    names = {label_id: name for name, label_id in make_label_ids(classes).items()}
    height, width = labels_HW.shape
    content = {
        "version": FORMAT_VERSION,
        "flags": {},
        "shapes": [
            {
                "label": names[label_id],
                "points": [list(corner) for corner in corners],
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for label_id, corners in trace_outlines(labels_HW, tolerance_px)
        ],
        "imagePath": image_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json.dumps(content, indent=2)


def _list_regions(labels_HW: UInt8) -> Iterator[Region]:
    for label_id in np.unique(labels_HW).tolist():
        numbered_HW, _ = ndimage.label(labels_HW == label_id)  # neighbours share a side, not a corner
        for number, box in enumerate(ndimage.find_objects(numbered_HW), 1):
            part = numbered_HW[box] == number
            # what is cut off by corners only is cut off: no polygon that keeps to the rim would cover it
            filled = ndimage.binary_fill_holes(part, structure=np.ones((3, 3)))
            yield Region(label_id, box[0].start, box[1].start, part, filled)


def _trace(filled: Bools, tolerance_px: float) -> list[Point]:
    """The corners of one region without holes, x, y in its box; at least three, as Labelme wants."""
    exact = _trace_rim(filled)
    while tolerance_px > 0.1 and len(exact) > 3:
        simple = LineString([*exact, exact[0]]).simplify(tolerance_px, preserve_topology=False).coords[:-1]
        corners = [(float(x), float(y)) for x, y in simple]
        if len(corners) >= 3 and _compute_iou(corners, filled) >= MIN_IOU:
            return corners
        tolerance_px /= 2
    return exact + exact[-1:] * (3 - len(exact))


def _trace_rim(filled: Bools) -> list[Point]:
    """Every corner on the way along the centres of the rim's pixels.

    The contour at 0.99 between 0 outside and 1 inside runs a hundredth of a pixel outside the
    centres: rounded, it is on them. A pixel's corner is no bridge at that level, as in `_list_regions`.
    """
    padded = np.pad(filled, 1).astype(np.float64)
    lines = contourpy.contour_generator(z=padded).lines(0.99)
    assert len(lines) == 1, "one region, no holes: one rim"
    points = np.round(np.asarray(lines[0])) - 1
    steps = np.any(points != np.roll(points, 1, axis=0), axis=1)  # the first of equal ones in a row
    if not steps.any():  # a single pixel
        return [(float(points[0, 0]), float(points[0, 1]))]
    points = points[steps]
    straight = np.all(points - np.roll(points, 1, axis=0) == np.roll(points, -1, axis=0) - points, axis=1)
    return [(float(x), float(y)) for x, y in points[~straight]]


def _compute_iou(corners: list[Point], filled: Bools) -> float:
    height, width = filled.shape
    canvas = Image.new("1", (width, height), 0)
    ImageDraw.Draw(canvas).polygon(corners, outline=1, fill=1)
    drawn = np.asarray(canvas)
    return float(np.count_nonzero(drawn & filled) / np.count_nonzero(drawn | filled))
