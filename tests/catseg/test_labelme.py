"""Annotations against pixels counted by hand, Labelme's own converter as oracle, and files that lie."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from catseg.labelme import NUM_POINTS, Annotation, Shape, draw_mask, load_annotation, make_label_ids
from catseg.photo import VOID, read_mask, read_photo

SIDE = 64


def encode_bitmap(bitmap: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(bitmap).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def make_shape(shape_type: str | None, points: list, label: str = "cat", **more) -> dict:
    return {"label": label, "shape_type": shape_type, "points": points, **more}


@pytest.fixture
def write(tmp_path):
    """write(shapes, ...): an annotation file with these shapes and top-level keys."""

    def write_file(shapes: object, **keys) -> Path:
        path = tmp_path / "cat.json"
        path.write_text(json.dumps({"shapes": shapes, "imagePath": "cat.jpg", **keys}), "utf-8")
        return path

    return write_file


@pytest.fixture
def draw(write):
    """draw(shape, ...): the mask of an annotation file with these shapes, SIDE x SIDE."""

    def draw_shapes(*shapes: dict, classes: tuple[str, ...] = ("cat",)) -> np.ndarray:
        return draw_mask(load_annotation(write(list(shapes))), SIDE, SIDE, classes)

    return draw_shapes


def make_disc(x: int, y: int) -> np.ndarray:
    """What a disc of radius 5 covers: 11 pixels across, 97 in all."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= 5.5**2


@pytest.mark.parametrize(
    ("shape_type", "points", "num_pixels"),
    [
        ("rectangle", [[10, 10], [19, 14]], 50),  # both corners belong to it: 10 x 5
        ("rectangle", [[19, 14], [10, 10]], 50),  # drawn from right to left, upwards
        ("rectangle", [[19, 10], [10, 14]], 50),
        ("rectangle", [[-5, -5], [3, 3]], 16),  # 4 x 4 of it are inside
        ("rectangle", [[60, 62], [90, 90]], 8),
        ("rectangle", [[70, 70], [90, 90]], 0),
        ("polygon", [[10, 10], [19, 10], [19, 14], [10, 14]], 50),  # the boundary belongs to it
        ("polygon", [[10, 10], [14, 10], [10, 14]], 15),  # 5 + 4 + 3 + 2 + 1
        (None, [[10, 10], [14, 10], [10, 14]], 15),  # Labelme 3 writes null for polygons
        ("oriented_rectangle", [[10, 5], [15, 10], [10, 15], [5, 10]], 61),  # |dx| + |dy| <= 5
        ("circle", [[20, 20], [25, 20]], 97),  # centre and a point on the rim
        ("circle", [[20, 20], [20, 15]], 97),
        ("point", [[20, 20]], 97),  # a disc of radius 5
        ("points", [[20, 20], [40, 40]], 2 * 97),
        ("line", [[20, 20], [29, 20]], 100),  # 10 wide
        ("linestrip", [[20, 20], [29, 20], [29, 40]], 100 + 210 - 30),  # 10 x 10 and 10 x 21 share 6 x 5
    ],
)
def test_shape_covers_as_many_pixels_as_counted_by_hand(draw, shape_type, points, num_pixels):
    mask = draw(make_shape(shape_type, points))
    assert mask.dtype == np.uint8 and mask.shape == (SIDE, SIDE)
    assert np.count_nonzero(mask == 1) == num_pixels
    assert np.count_nonzero(mask) == num_pixels


def test_rectangle_lies_where_its_corners_say(draw):
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[10:15, 30:40] = 1  # points are x, y; arrays are rows, columns
    np.testing.assert_array_equal(draw(make_shape("rectangle", [[30, 10], [39, 14]])), expected)


@pytest.mark.parametrize(("shape_type", "points"), [("circle", [[30, 20], [33, 24]]), ("point", [[30, 20]])])
def test_circle_and_point_are_the_disc_of_radius_five(draw, shape_type, points):
    np.testing.assert_array_equal(draw(make_shape(shape_type, points)) == 1, make_disc(30, 20))


def test_shape_without_a_type_is_a_polygon(draw):
    assert draw({"label": "cat", "points": [[10, 10], [14, 10], [10, 14]]}).sum() == 15


def test_later_shape_lies_over_earlier_one(draw):
    cat = make_shape("rectangle", [[10, 10], [29, 29]])
    hole = make_shape("rectangle", [[15, 15], [19, 19]], "_background_")
    assert draw(cat, hole).sum() == 400 - 25
    assert draw(hole, cat).sum() == 400


def test_ignored_region_is_void(draw):
    mask = draw(
        make_shape("rectangle", [[0, 0], [9, 9]]), make_shape("rectangle", [[5, 0], [14, 9]], label="__ignore__")
    )
    assert np.count_nonzero(mask == VOID) == 100
    assert np.count_nonzero(mask == 1) == 50


def test_classes_are_numbered_in_the_order_given(draw):
    shapes = [make_shape("rectangle", [[10 * n, 0], [10 * n + 4, 4]], label) for n, label in enumerate(("猫", "dog"))]
    mask = draw(*shapes, classes=("dog", "cat", "猫"))
    assert [mask[0, 0], mask[0, 10], mask[0, 20]] == [3, 1, 0]
    assert make_label_ids(("dog", "猫")) == {"_background_": 0, "dog": 1, "猫": 2, "__ignore__": 255}


def test_annotation_without_shapes_is_a_photo_without_a_cat(draw):
    assert not draw().any()


def test_mask_shape_is_laid_at_its_corner_with_its_holes(draw):
    bitmap = np.ones((6, 8), bool)
    bitmap[2:4, 3:5] = False
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[20:26, 10:18] = bitmap
    shape = make_shape("mask", [[10, 20], [17, 25]], mask=encode_bitmap(bitmap))
    np.testing.assert_array_equal(draw(shape), expected)


def test_hole_in_a_mask_shape_shows_what_lies_below(draw):
    bitmap = np.ones((6, 6), bool)
    bitmap[2, 2] = False
    below = make_shape("rectangle", [[0, 0], [9, 9]], "dog")
    above = make_shape("mask", [[0, 0], [5, 5]], mask=encode_bitmap(bitmap))
    mask = draw(below, above, classes=("cat", "dog"))
    assert np.count_nonzero(mask == 1) == 35 and mask[2, 2] == 2


@pytest.mark.parametrize(
    ("corner", "num_pixels"), [((-3, -3), 9), ((60, 62), 8), ((-6, 0), 0), ((64, 64), 0), ((-2, 30), 24)]
)
def test_mask_shape_partly_outside_is_cut_off(draw, corner, num_pixels):
    left, top = corner
    shape = make_shape("mask", [[left, top], [left + 5, top + 5]], mask=encode_bitmap(np.ones((6, 6), bool)))
    assert draw(shape).sum() == num_pixels


LABELS = ("cat", "dog", "_background_", "__ignore__")
coordinate = st.floats(-100, 200) | st.integers(-10, 80).map(float)
shapes = st.sampled_from([name for name in NUM_POINTS if name != "mask"]).flatmap(
    lambda shape_type: st.builds(
        Shape,
        st.sampled_from(LABELS),
        st.just(shape_type),
        st.lists(
            st.tuples(coordinate, coordinate),
            min_size=NUM_POINTS[shape_type][0],
            max_size=NUM_POINTS[shape_type][1] or 8,
        ).map(tuple),
    )
)


def make_annotation(shapes) -> Annotation:
    return Annotation(Path("a.json"), "a.jpg", None, None, None, tuple(shapes))


annotations = st.lists(shapes, max_size=4).map(make_annotation)


@given(annotations, st.integers(1, 50), st.integers(1, 50))
def test_drawing_makes_no_label_that_no_shape_has(annotation, height, width):
    label_ids = make_label_ids(("cat", "dog"))
    mask = draw_mask(annotation, height, width, ("cat", "dog"))
    assert mask.shape == (height, width)
    assert set(np.unique(mask).tolist()) <= {0} | {label_ids[shape.label] for shape in annotation.shapes}


@given(annotations, st.integers(1, 50), st.integers(1, 50))
def test_what_lies_outside_does_not_change_what_lies_inside(annotation, height, width):
    small = draw_mask(annotation, height, width, ("cat", "dog"))
    large = draw_mask(annotation, height + 30, width + 30, ("cat", "dog"))
    np.testing.assert_array_equal(small, large[:height, :width])


@given(*[st.integers(-20, 80)] * 4)
def test_rectangle_is_the_clipped_product_of_its_sides(x0, y0, x1, y1):
    shape = Shape("cat", "rectangle", ((float(x0), float(y0)), (float(x1), float(y1))))
    mask = draw_mask(make_annotation([shape]), SIDE, SIDE, ("cat",))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = (columns >= min(x0, x1)) & (columns <= max(x0, x1)) & (rows >= min(y0, y1)) & (rows <= max(y0, y1))
    np.testing.assert_array_equal(mask, inside)


TRIANGLE = [[1, 1], [5, 1], [1, 5]]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (make_shape("polygon", [[1, 1], [float("nan"), 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [float("inf"), 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [1e300, 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [10**4000, 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], ["5", 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [True, 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [None, 1], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [5, 1, 7], [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], 5, [1, 5]]), "not a point"),
        (make_shape("polygon", [[1, 1], [5, 1]]), "at least 3 points, got 2"),
        (make_shape("polygon", []), "at least 3 points, got 0"),
        (make_shape("polygon", None), "at least 3 points, got none"),
        (make_shape("oriented_rectangle", TRIANGLE), "4 points, got 3"),
        (make_shape("rectangle", TRIANGLE), "2 points, got 3"),
        (make_shape("circle", [[1, 1]]), "2 points, got 1"),
        (make_shape("line", [[1, 1]]), "2 points, got 1"),
        (make_shape("linestrip", [[1, 1]]), "at least 2 points, got 1"),
        (make_shape("point", TRIANGLE), "1 points, got 3"),
        (make_shape("ellipse", TRIANGLE), "unknown shape_type 'ellipse'"),
        (make_shape(["polygon"], TRIANGLE), "unknown shape_type"),
        (make_shape({"polygon": 1}, TRIANGLE), "unknown shape_type"),
        (make_shape(7, TRIANGLE), "unknown shape_type 7"),
        (make_shape("polygon", TRIANGLE, label=None), "no text `label`"),
        ({"points": TRIANGLE}, "no text `label`"),
        ("cat", "no text `label`"),
        (None, "no text `label`"),
        (make_shape("mask", [[0, 0], [5, 5]]), "mask cannot be decoded"),
        (make_shape("mask", [[0, 0], [5, 5]], mask=None), "mask cannot be decoded"),
        (make_shape("mask", [[0, 0], [5, 5]], mask=["eA=="]), "mask cannot be decoded"),
        (make_shape("mask", [[0, 0], [5, 5]], mask="not base64 !"), "mask cannot be decoded"),
        (make_shape("mask", [[0, 0], [5, 5]], mask="猫"), "mask cannot be decoded"),
        (make_shape("mask", [[0, 0], [5, 5]], mask=base64.b64encode(b"no PNG").decode()), "mask cannot be decoded"),
    ],
)
def test_bad_shape_is_refused_by_file_and_number(write, refusal, shape, says):
    path = write([make_shape("polygon", TRIANGLE), shape])
    line = refusal(load_annotation, path)
    assert line.startswith(f"{path}: shapes[1]: ") and says in line


HUGE = "9" * 4_000  # Python takes 4,300 digits


@pytest.mark.parametrize(
    "point",
    [
        *("[1e400, 1]", "[1, -1e400]", "[NaN, 1]", "[1, Infinity]", "[-Infinity, 1]", f"[{HUGE}, 1]", f"[1, -{HUGE}]"),
        *("[1e6, 1]", "[1, -1000000]", "[true, 1]", "[1, false]", "[[1], 1]", "[[1, 1]]", "[[[1, 1]]]", "[]", "{}"),
        *('{"0": 1, "1": 1}', '"11"', '["1", "1"]', "[1, null]", "null", "1", "[1, 1, 1]", "[" * 500 + "]" * 500),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_point_of_the_plane_is_refused(tmp_path, refusal, point):
    path = tmp_path / "cat.json"
    path.write_text(f'{{"imagePath": "cat.jpg", "shapes": [{{"label": "cat", "points": [[1, 1], {point}, [1, 5]]}}]}}')
    line = refusal(load_annotation, path)
    assert line.startswith(f"{path}: shapes[0]: ") and "is not a point [x, y]" in line and len(line) < 1_000


@pytest.mark.parametrize("zero", ["-0.0", "-0", "0.0", "0e400", "1e-400"])
def test_zero_of_any_spelling_is_zero(tmp_path, zero):
    path = tmp_path / "cat.json"
    path.write_text(
        f'{{"imagePath": "a", "shapes": [{{"label": "cat", "points": [[{zero}, {zero}], [4, 0], [0, 4]]}}]}}'
    )
    assert draw_mask(load_annotation(path), SIDE, SIDE, ("cat",)).sum() == 15


@pytest.mark.parametrize("group_id", ["left", "1", 1.5, True, [1], {"id": 1}, float("nan")])
def test_group_that_is_no_number_is_refused(write, refusal, group_id):
    line = refusal(load_annotation, write([make_shape("polygon", TRIANGLE, group_id=group_id)]))
    assert "shapes[0]: group_id is" in line and "not a whole number" in line


@pytest.mark.parametrize("group_id", [None, 0, 3, -1, 10**30])
def test_group_is_read_and_changes_no_pixel(write, group_id):
    annotation = load_annotation(write([make_shape("polygon", TRIANGLE, group_id=group_id)]))
    assert annotation.shapes[0].group_id == group_id
    assert draw_mask(annotation, SIDE, SIDE, ("cat",)).sum() == 15


def test_truncated_mask_shape_is_refused(write, refusal):
    png = base64.b64decode(encode_bitmap(np.eye(60, dtype=bool)))
    shape = make_shape("mask", [[0, 0], [59, 59]], mask=base64.b64encode(png[: len(png) // 2]).decode())
    assert "mask cannot be decoded" in refusal(load_annotation, write([shape]))


@pytest.mark.parametrize("side", [9_000, 20_000, 60_000])
def test_mask_shape_that_claims_to_be_huge_is_refused(write, refusal, png_bomb, side):
    shape = make_shape("mask", [[0, 0], [5, 5]], mask=base64.b64encode(png_bomb(side, side)).decode())
    assert "mask cannot be decoded" in refusal(load_annotation, write([shape]))


def test_unknown_label_is_refused_with_the_known_ones(write, refusal):
    path = write([make_shape("polygon", TRIANGLE), make_shape("polygon", TRIANGLE, label="kat")])
    line = refusal(draw_mask, load_annotation(path), SIDE, SIDE, ("cat", "dog"))
    assert line.startswith(f"{path}: shapes[1]: unknown label 'kat'")
    assert "_background_, __ignore__, cat, dog" in line


@pytest.mark.parametrize("keys", [{"imageHeight": 63}, {"imageWidth": 65}, {"imageHeight": 10**4000}])
def test_annotation_of_a_photo_of_another_size_is_refused(write, refusal, keys):
    path = write([], **{"imageHeight": SIDE, "imageWidth": SIDE} | keys)
    line = refusal(draw_mask, load_annotation(path), SIDE, SIDE, ("cat",))
    assert line.startswith(f"{path}: ") and "64 x 64" in line


@pytest.mark.parametrize("value", [0, -5, 64.0, "64", True, [64], float("nan")])
def test_size_that_is_no_number_of_pixels_is_refused(write, refusal, value):
    line = refusal(load_annotation, write([], imageHeight=value, imageWidth=SIDE))
    assert "imageHeight" in line and "cat.json" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a JSON file"),
        (b"no JSON", "not a JSON file"),
        (b'{"shapes": []', "not a JSON file"),
        (b'{"shapes": [], "imagePath": "\xe9.jpg"}', "not a JSON file"),  # Latin-1
        (b"\x89PNG\r\n\x1a\n\0\0", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),  # nested beyond any recursion limit
        (b'{"a":' * 100_000, "not a JSON file"),
        (b'{"shapes": [], "imageHeight": ' + b"9" * 5_000 + b"}", "not a JSON file"),  # beyond Python's digits
        (b"[]", "no list `shapes`"),
        (b"null", "no list `shapes`"),
        (b'"shapes"', "no list `shapes`"),
        (b"{}", "no list `shapes`"),
        (b'{"shapes": {}, "imagePath": "cat.jpg"}', "no list `shapes`"),
        (b'{"shapes": []}', "no text `imagePath`"),
        (b'{"shapes": [], "imagePath": ""}', "no text `imagePath`"),
        (b'{"shapes": [], "imagePath": 5}', "no text `imagePath`"),
    ],
)
def test_file_that_labelme_did_not_write_is_refused(tmp_path, refusal, content, says):
    path = tmp_path / "cat.json"
    path.write_bytes(content)
    line = refusal(load_annotation, path)
    assert line.startswith(f"{path}: ") and says in line
    assert len(line) < 1_000


def test_missing_annotation_is_named(tmp_path, refusal):
    assert str(tmp_path / "gone.json") in refusal(load_annotation, tmp_path / "gone.json")


@pytest.mark.parametrize("name", ["2011_000003", "2011_000006", "2011_000025"])
def test_masks_equal_those_of_labelmes_own_converter(real_data, name):
    folder = real_data / "labelme-voc"
    classes = tuple((folder / "labels.txt").read_text().split("\n")[2:])
    assert len(classes) == 20
    annotation = load_annotation(folder / "data_annotated" / f"{name}.json")
    photo = read_photo(folder / "data_annotated" / annotation.image_path)
    mask = draw_mask(annotation, *photo.shape[:2], classes)
    written = np.load(folder / "data_dataset_voc" / "SegmentationClassNpy" / f"{name}.npy")
    written = np.where(written == -1, VOID, written)
    num_allowed = 1 if name == "2011_000006" else 0  # Pillow >= 11.3 draws one pixel otherwise
    assert np.count_nonzero(mask != written) <= num_allowed
    palette_mask = read_mask(folder / "data_dataset_voc" / "SegmentationClass" / f"{name}.png")
    assert np.count_nonzero(mask != palette_mask) <= num_allowed
    assert np.count_nonzero(mask) > 1_000
