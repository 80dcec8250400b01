"""A thousand random files of each shape type against an independent rasterisation, by geometry in whole numbers.

Pillow, and so Labelme, cuts coordinates to whole pixels, towards zero. Where the corners are whole,
exact answers are asked for, in integer arithmetic. Else the true outline lies less than sqrt(2) from
the drawn one, which rounds to half a pixel: nothing deeper than BAND may be missing, nothing farther set.
"""

import base64
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.labelme import draw_mask, load_annotation

HEIGHT, WIDTH = 32, 40
NUM_FILES = 1000
BAND = 2  # px, more than sqrt(2) + 1/2
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def save(path: Path, shapes: list[dict]) -> None:
    path.unlink(missing_ok=True)  # what is written over is flushed to disk, a thousand times
    path.write_text(json.dumps({"shapes": shapes, "imagePath": "cat.jpg"}), "utf-8")


@pytest.fixture
def draw(tmp_path):
    """draw(shape_type, points): what the file of this one shape covers."""
    path = tmp_path / "cat.json"

    def draw_one(shape_type: str, points: np.ndarray) -> np.ndarray:
        shape = {"label": "cat", "shape_type": shape_type, "points": points.tolist()}
        save(path, [shape])
        return draw_mask(load_annotation(path), HEIGHT, WIDTH, ("cat",)) == 1

    return draw_one


def check(mask: np.ndarray, must: np.ndarray, may: np.ndarray, points: np.ndarray) -> None:
    """All that must be set is set, and nothing that may not be."""
    assert not np.any(must & ~mask), f"missing at row, column {np.argwhere(must & ~mask)[0]}: {points.tolist()}"
    assert not np.any(mask & ~may), f"too much at row, column {np.argwhere(mask & ~may)[0]}: {points.tolist()}"


def pair_up(points: np.ndarray, closed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The edges of a polygon or the pieces of a line."""
    return list(itertools.pairwise([*points, points[0]] if closed else points))


def is_near(points: np.ndarray, reach: int, closed: bool) -> np.ndarray:
    """Pixel centres at most `reach` from the line through the points; exact for whole numbers."""
    near = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in pair_up(points, closed):
        dx, dy, px, py = x1 - x0, y1 - y0, COLUMNS - x0, ROWS - y0
        along, across, length2 = px * dx + py * dy, px * dy - py * dx, dx * dx + dy * dy
        to_start, to_end = px**2 + py**2, (COLUMNS - x1) ** 2 + (ROWS - y1) ** 2
        near |= np.where((along > 0) & (along < length2), across**2 <= reach**2 * length2, False)
        near |= (to_start <= reach**2) | (to_end <= reach**2)
    return near


def is_inside(points: np.ndarray) -> np.ndarray:
    """Pixel centres inside a polygon by the even-odd rule; exact for whole numbers, for nothing is divided."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in pair_up(points, closed=True):
        crosses = (y0 <= ROWS) != (y1 <= ROWS)
        side = (x1 - x0) * (ROWS - y0) - (y1 - y0) * (COLUMNS - x0)
        inside ^= crosses & (side * np.sign(y1 - y0) > 0)
    return inside


def draw_corners(rng: np.random.Generator, num: int) -> np.ndarray:
    """Corners within the photo, around it, or far away: (num, 2), x and y."""
    low, high = [(0, 32), (-25, 65), (-3000, 3000)][rng.choice(3, p=[0.45, 0.45, 0.1])]
    return rng.uniform(low, high, (num, 2))


def draw_star(rng: np.random.Generator) -> np.ndarray:
    """Corners in the order of their angle around a middle: no edge crosses another."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    radii = rng.uniform(1, 30, len(angles))
    return rng.uniform(-10, 45, 2) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def draw_turned_rectangle(rng: np.random.Generator) -> np.ndarray:
    angle, (right, down) = rng.uniform(0, 2 * np.pi), rng.uniform(1, 20, 2)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return rng.uniform(-10, 45, 2) + np.array([[right, down], [-right, down], [-right, -down], [right, -down]]) @ turn


@pytest.mark.parametrize("shape_type", ["polygon", "oriented_rectangle"])
def test_outline_of_whole_corners_takes_in_all_that_is_inside_or_on_it(draw, shape_type):
    rng = np.random.default_rng(1)
    for _ in range(NUM_FILES // 2):
        corners = draw_star(rng) if shape_type == "polygon" else draw_turned_rectangle(rng)
        points = np.round(corners).astype(int)
        inside = is_inside(points)
        check(
            draw(shape_type, points),
            inside | is_near(points, 0, closed=True),
            inside | is_near(points, 1, closed=True),
            points,
        )


@pytest.mark.parametrize("shape_type", ["polygon", "oriented_rectangle"])
def test_outline_of_any_corners_is_drawn_to_within_a_band(draw, shape_type):
    rng = np.random.default_rng(2)
    for _ in range(NUM_FILES // 2):
        points = draw_corners(rng, rng.integers(3, 9)) if shape_type == "polygon" else draw_turned_rectangle(rng)
        inside, band = is_inside(points), is_near(points, BAND, closed=True)
        check(draw(shape_type, points), inside & ~band, inside | band, points)


def test_outline_that_crosses_itself_is_filled_by_the_even_odd_rule(draw):
    rng = np.random.default_rng(3)
    for _ in range(NUM_FILES // 2):
        points = np.round(draw_corners(rng, rng.integers(4, 10))).astype(int)
        inside, band = is_inside(points), is_near(points, 1, closed=True)
        check(draw("polygon", points), (inside & ~band) | is_near(points, 0, closed=True), inside | band, points)


def test_rectangle_takes_in_both_its_corners(draw):
    rng = np.random.default_rng(4)
    for index in range(NUM_FILES):
        points = draw_corners(rng, 2)
        if index % 2:
            points = np.round(points)
        (x0, y0), (x1, y1) = np.sort(np.trunc(points), axis=0)
        expected = (x0 <= COLUMNS) & (x1 >= COLUMNS) & (y0 <= ROWS) & (y1 >= ROWS)
        check(draw("rectangle", points), expected, expected, points)


def measure_to(middle: np.ndarray) -> np.ndarray:
    return np.hypot(COLUMNS - middle[0], ROWS - middle[1])


def test_circle_of_whole_radius_is_a_disc_of_half_a_pixel_more(draw):
    """Its rim is drawn, too, one pixel wide: within r is set, beyond r + 1/2 nothing is, counted in quarters."""
    rng = np.random.default_rng(5)
    for _ in range(NUM_FILES // 2):
        middle, radius = rng.integers(-20, 55, 2), int(rng.integers(1, 40))
        turns = [(radius, 0), (0, -radius)] + ([(3 * radius // 5, 4 * radius // 5)] if radius % 5 == 0 else [])
        points = np.stack([middle, middle + turns[rng.integers(len(turns))]])
        distance2 = (COLUMNS - middle[0]) ** 2 + (ROWS - middle[1]) ** 2
        check(draw("circle", points), distance2 <= radius**2, 4 * distance2 <= (2 * radius + 1) ** 2, points)


def test_any_circle_is_drawn_to_within_a_band(draw):
    rng = np.random.default_rng(6)
    for _ in range(NUM_FILES // 2):
        points = draw_corners(rng, 2)
        distance = measure_to(points[0]) - math.dist(*points)
        check(draw("circle", points), distance < -BAND, distance <= BAND, points)


@pytest.mark.parametrize(("shape_type", "most"), [("point", 1), ("points", 5)])
def test_points_are_discs_of_five_pixels(draw, shape_type, most):
    rng = np.random.default_rng(7)
    for index in range(NUM_FILES):
        points = draw_corners(rng, rng.integers(1, most + 1))
        if index % 2:
            points = np.round(points).astype(int)
            expected = np.any([4 * ((COLUMNS - x) ** 2 + (ROWS - y) ** 2) <= 11**2 for x, y in points], axis=0)
            check(draw(shape_type, points), expected, expected, points)
        else:
            distance = np.min([measure_to(point) for point in points], axis=0)
            check(draw(shape_type, points), distance < 5 - BAND, distance <= 5 + BAND, points)


def is_well_within_line(points: np.ndarray) -> np.ndarray:
    """Pixel centres BAND or more within the 5 px beside a piece and within its ends; exact for whole numbers."""
    within = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in pair_up(points, closed=False):
        dx, dy, px, py = x1 - x0, y1 - y0, COLUMNS - x0, ROWS - y0
        length2, along, across = dx * dx + dy * dy, px * dx + py * dy, px * dy - py * dx
        past_start, before_end = (along >= 0) & (along**2 >= BAND**2 * length2), along <= length2
        before_end &= (length2 - along) ** 2 >= BAND**2 * length2
        within |= past_start & before_end & (across**2 <= (5 - BAND) ** 2 * length2) & (length2 > 0)
    return within


@pytest.mark.parametrize(("shape_type", "most"), [("line", 2), ("linestrip", 6)])
def test_lines_are_ten_pixels_wide(draw, shape_type, most):
    """Ends are flat, and within 5 px of the end all the same; a short piece turns when its ends are cut to pixels."""
    rng = np.random.default_rng(8)
    for index in range(NUM_FILES):
        points = draw_corners(rng, rng.integers(2, most + 1))
        whole = np.trunc(points).astype(int)
        if index % 2:
            check(draw(shape_type, whole), is_well_within_line(whole), is_near(whole, 6, closed=False), points)
        else:
            may = is_near(points, 5 + BAND, closed=False)
            check(draw(shape_type, points), is_well_within_line(whole), may, points)


def test_bitmaps_lie_where_their_corners_say(tmp_path):
    rng = np.random.default_rng(10)
    path = tmp_path / "cat.json"
    for _ in range(NUM_FILES):
        (left, top), (width, height) = rng.integers(-30, 50, 2), rng.integers(1, 50, 2)
        bitmap = rng.random((height, width)) < 0.5
        buffer = io.BytesIO()
        Image.fromarray(bitmap).save(buffer, "PNG")
        points = [[int(left), int(top)], [int(left + width - 1), int(top + height - 1)]]
        data = base64.b64encode(buffer.getvalue()).decode()
        save(path, [{"label": "cat", "shape_type": "mask", "points": points, "mask": data}])
        canvas = np.zeros((HEIGHT + 150, WIDTH + 150), bool)
        canvas[50 + top :, 50 + left :][:height, :width] = bitmap
        mask = draw_mask(load_annotation(path), HEIGHT, WIDTH, ("cat",))
        np.testing.assert_array_equal(mask, canvas[50 : 50 + HEIGHT, 50 : 50 + WIDTH])


def test_later_rectangles_lie_over_earlier_ones(tmp_path):
    """Stacks of one to twelve, of three classes, background and void."""
    rng = np.random.default_rng(9)
    ids = {"cat": 1, "dog": 2, "bird": 3, "_background_": 0, "__ignore__": 255}
    path = tmp_path / "cat.json"
    for _ in range(NUM_FILES):
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        shapes = []
        for _ in range(rng.integers(1, 13)):
            label = list(ids)[rng.integers(len(ids))]
            points = np.round(rng.uniform(-15, 50, (2, 2))).astype(int)
            shapes.append({"label": label, "shape_type": "rectangle", "points": points.tolist()})
            (x0, y0), (x1, y1) = np.clip(np.sort(points, axis=0), -1, 99)
            expected[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = ids[label]
        save(path, shapes)
        mask = draw_mask(load_annotation(path), HEIGHT, WIDTH, ("cat", "dog", "bird"))
        np.testing.assert_array_equal(mask, expected)
