"""Shapes that are bitmaps: where they lie, what is cut off, and when they contradict their corners."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from catseg.labelme import draw_mask, load_annotation

HEIGHT, WIDTH = 30, 40
BITMAP = np.random.default_rng(0).random((6, 8)) < 0.5


def encode(bitmap: np.ndarray, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(bitmap).save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def draw(tmp_path):
    """draw(corners, mask): the mask of a file with one mask shape."""

    def draw_one(corners: list, mask: object = None) -> np.ndarray:
        path = tmp_path / "cat.json"
        shape = {"label": "cat", "shape_type": "mask", "points": corners, "mask": mask or encode(BITMAP)}
        path.write_text(json.dumps({"shapes": [shape], "imagePath": "cat.jpg"}), "utf-8")
        return draw_mask(load_annotation(path), HEIGHT, WIDTH, ("cat",))

    return draw_one


def paste(bitmap: np.ndarray, left: int, top: int) -> np.ndarray:
    """The same by other means: on a canvas with a wide margin, cut out of it."""
    margin = 50
    canvas = np.zeros((HEIGHT + 2 * margin, WIDTH + 2 * margin), np.uint8)
    canvas[margin + top :, margin + left :][: bitmap.shape[0], : bitmap.shape[1]] = bitmap
    return canvas[margin:-margin, margin:-margin]


@pytest.mark.parametrize("left", [-30, -8, -7, -3, 0, 16, WIDTH - 8, WIDTH - 3, WIDTH - 1, WIDTH, 45])
@pytest.mark.parametrize("top", [-20, -6, -5, -2, 0, 12, HEIGHT - 6, HEIGHT - 2, HEIGHT - 1, HEIGHT, 35])
def test_bitmap_lies_at_its_corner_and_is_cut_off_at_every_side(draw, left, top):
    mask = draw([[left, top], [left + 7, top + 5]])
    np.testing.assert_array_equal(mask, paste(BITMAP, left, top))


def test_bitmap_larger_than_the_photo_is_cut_off_at_all_sides(draw):
    bitmap = np.random.default_rng(1).random((HEIGHT + 20, WIDTH + 20)) < 0.5
    mask = draw([[-10, -10], [WIDTH + 9, HEIGHT + 9]], encode(bitmap))
    np.testing.assert_array_equal(mask, bitmap[10:-10, 10:-10])


@pytest.mark.parametrize(
    ("corners", "left", "top"),
    [
        ([[10.2, 4.4], [17.3, 9.4]], 10, 4),
        ([[9.8, 3.6], [16.7, 8.6]], 10, 4),
        ([[9.7, 4.3], [17.4, 9.4]], 10, 4),
        ([[9.6, 4.0], [18.0, 9.0]], 10, 4),  # one corner between pixels: 9 x 6 asked for, 8 x 6 there
        ([[10.4, 4.4], [15.9, 8.4]], 10, 4),  # 7 x 5 asked for, 8 x 6 there
        ([[-3.4, -2.4], [3.6, 2.6]], -3, -2),
    ],
)
def test_fractional_corners_are_rounded_and_the_bitmap_is_kept_whole(draw, corners, left, top):
    np.testing.assert_array_equal(draw(corners), paste(BITMAP, left, top))


@pytest.mark.parametrize(("width", "height"), [(7, 6), (8, 5), (3, 2), (1, 1)])
def test_whole_corners_cut_a_larger_bitmap(draw, width, height):
    mask = draw([[10, 4], [10 + width - 1, 4 + height - 1]])
    np.testing.assert_array_equal(mask, paste(BITMAP[:height, :width], 10, 4))


def test_whole_corners_written_with_a_point_are_whole(draw):
    np.testing.assert_array_equal(draw([[10.0, 4.0], [16.0, 8.0]]), paste(BITMAP[:5, :7], 10, 4))


@pytest.mark.parametrize(
    ("corners", "says"),
    [
        ([[10, 4], [18, 9]], "corners say 9 x 6"),  # larger than the bitmap
        ([[10, 4], [17, 10]], "corners say 8 x 7"),
        ([[10.2, 4], [19.2, 9]], "corners say 10 x 6"),  # by two, where one is forgiven
        ([[10.2, 4], [17.2, 11]], "corners say 8 x 8"),
        ([[10.2, 4], [15.2, 9]], "corners say 6 x 6"),
        ([[17, 9], [10, 4]], "corners say -6 x -4"),  # drawn from right to left
        ([[17, 4], [10, 9]], "corners say -6 x 6"),
        ([[0, 0], [900_000, 900_000]], "corners say 900001 x 900001"),
    ],
)
def test_bitmap_that_contradicts_its_corners_is_refused(draw, refusal, corners, says):
    line = refusal(draw, corners)
    assert "shapes[0]: its mask is 8 x 6" in line and says in line and "draw it again" in line


@pytest.mark.parametrize("pixels", [BITMAP, BITMAP * np.uint8(255), BITMAP * np.uint8(1), BITMAP * np.uint8(7)])
def test_everything_but_zero_is_inside(draw, pixels):
    np.testing.assert_array_equal(draw([[10, 4], [17, 9]], encode(pixels)), paste(BITMAP, 10, 4))


@pytest.mark.parametrize(
    "corners",
    [
        [[float("nan"), 4], [17, 9]],
        [[10, 4], [17, float("inf")]],
        [[10, 4], ["17", 9]],
        [[10, 4], [17]],
        [[10, 4], None],
    ],
)
def test_corner_that_is_no_point_is_refused(draw, refusal, corners):
    assert "is not a point [x, y]" in refusal(draw, corners)


@pytest.mark.parametrize("form", ["ICO", "TIFF", "BMP"])
def test_bitmap_that_is_no_png_is_refused(draw, refusal, form):
    """An ICO is decoded before it tells its size."""
    bitmap = np.ones((16, 16), np.uint8)
    assert "its mask cannot be decoded" in refusal(draw, [[0, 0], [15, 15]], encode(bitmap, form))


@pytest.mark.parametrize("side", [9_000, 13_000, 30_000])  # below and above what Pillow itself takes
def test_bitmap_that_claims_to_be_huge_is_refused_before_it_is_decoded(draw, refusal, png_bomb, side):
    line = refusal(draw, [[0, 0], [5, 5]], base64.b64encode(png_bomb(side, side)).decode())
    assert "shapes[0]: its mask cannot be decoded" in line and "pixels" in line
