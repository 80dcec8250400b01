"""Outlines of label maps: drawn back by the rules of Labelme they are the same map, exactly or nearly."""

import itertools
import json
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from catseg.labelme import draw_mask, format_labels, load_annotation, load_labels
from catseg.outline import count_left_out, make_annotation, trace_outlines
from catseg.photo import VOID
from catseg.sample import NUM_PHOTOS, draw_photo

CLASSES = ("cat", "dog", "cow")
LABELS = np.array([0, 1, 2, 3, VOID], np.uint8)


def parse(text: str) -> np.ndarray:
    """A label map as it looks: `.` background, digits, `v` void."""
    ids = {".": 0, "v": VOID}
    return np.array(
        [[ids.get(letter) or int(letter.replace(".", "0")) for letter in row] for row in text.split()]
    ).astype(np.uint8)


@pytest.fixture(scope="module")
def draw_back(tmp_path_factory):
    """draw_back(labels_HW, tolerance_px): written as Labelme's file, read again, drawn."""
    path = tmp_path_factory.mktemp("annotation") / "cat.json"

    def draw(labels: np.ndarray, *tolerance_px: float) -> np.ndarray:
        path.write_text(make_annotation(labels, "cat.jpg", CLASSES, *tolerance_px), "utf-8")
        return draw_mask(load_annotation(path), *labels.shape, CLASSES)

    return draw


def make_smooth_map(seed: int, num_labels: int, height: int, width: int, sigma: float) -> np.ndarray:
    """Blobs: of several smoothed noises, which is the highest."""
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=(height, width)), sigma) for _ in range(num_labels)]
    return LABELS[np.argmax(noise, axis=0)]


def compute_ious(labels: np.ndarray, drawn: np.ndarray) -> dict[int, float]:
    return {
        label: np.count_nonzero((labels == label) & (drawn == label))
        / np.count_nonzero((labels == label) | (drawn == label))
        for label in np.unique(labels).tolist()
        if label
    }


def list_shapes(labels: np.ndarray, *tolerance_px: float) -> list[tuple[int, set]]:
    """Label and corners of each polygon, whichever of them comes first."""
    return [(label, set(corners)) for label, corners in trace_outlines(labels, *tolerance_px)]


# --- by hand -------------------------------------------------------------------------------------------------------

MAPS = {
    "nothing": "...... ...... ......",
    "one pixel": ".... .1.. ....",
    "one pixel in a photo of one": "1",
    "two pixels": ".... .11. ....",
    "two pixels at a corner": "1... .1.. ....",
    "a row": "11111",
    "a column": "1 1 1 1",
    "a ring": "..... .111. .1.1. .111. .....",
    "a ring open at a corner": ".111. .1.1. .11..",
    "a ring with an island": "1111111 1.....1 1.111.1 1.111.1 1.....1 1111111",
    "an island in an island": "1111111 1.....1 1.111.1 1.1.1.1 1.111.1 1.....1 1111111",
    "an island of another class": "11111 1...1 1.2.1 1...1 11111",
    "a class in a class": "11111 12221 12321 12221 11111",
    "two classes that touch": "1122 1122 ..22",
    "void around a cat": "vvvvv v111v v1.1v v111v vvvvv",
    "void in a cat": "11111 11v11 11111",
    "void everywhere": "vv vv",
    "a chessboard": "1.1. .1.1 1.1. .1.1",
    "a chessboard of classes": "12v1 v12v 1v12 21v1",
    "at all borders": "1..1 .... 1..1",
    "the whole photo": "111 111",
    "a neck of one pixel": "11..11 111111 11..11",
    "a comb": "1.1.1.1 1.1.1.1 1111111",
    "a spiral": "1111111 ......1 11111.1 1...1.1 1.111.1 1.....1 1111111",
    "a diagonal band": "11.... 111... .111.. ..111. ...111 ....11",
}


@pytest.mark.parametrize("text", MAPS.values(), ids=MAPS)
def test_map_drawn_by_hand_comes_back_exactly(draw_back, text):
    labels = parse(text)
    np.testing.assert_array_equal(draw_back(labels, 0), labels)


def test_map_without_labels_has_no_shapes():
    assert trace_outlines(np.zeros((5, 7), np.uint8)) == []


def test_single_pixel_has_the_three_corners_that_labelme_wants():
    assert trace_outlines(parse("..... ...1. .....")) == [(1, [(3, 1)] * 3)]


def test_two_pixels_have_three_corners_on_their_centres():
    ((label, corners),) = trace_outlines(parse(".... .22. ...."))
    assert (label, len(corners), set(corners)) == (2, 3, {(1, 1), (2, 1)})


def test_rectangle_has_its_four_corner_pixels_only():
    assert list_shapes(parse("...... .1111. .1111. ......")) == [(1, {(1, 1), (4, 1), (4, 2), (1, 2)})]


def test_whole_photo_of_one_class_is_one_rectangle():
    assert list_shapes(np.full((40, 30), 1, np.uint8)) == [(1, {(0, 0), (29, 0), (29, 39), (0, 39)})]


def test_hole_is_one_more_polygon_of_background_after_what_it_is_in():
    shapes = list_shapes(parse("11111 1...1 1...1 1...1 11111"), 0)
    assert shapes == [(1, {(0, 0), (4, 0), (4, 4), (0, 4)}), (0, {(1, 1), (3, 1), (3, 3), (1, 3)})]


def test_what_is_within_is_drawn_after_what_is_around_it():
    labels = [label for label, _ in trace_outlines(parse("1111111 1.....1 1.222.1 1.2v2.1 1.222.1 1.....1 1111111"), 0)]
    assert labels == [1, 0, 2, VOID]


def test_pixels_that_touch_at_a_corner_only_are_two_shapes():
    assert list_shapes(parse("11. 11. ..1"), 0) == [(1, {(0, 0), (1, 0), (1, 1), (0, 1)}), (1, {(2, 2)})]


def test_hole_that_is_open_at_a_corner_is_no_hole_but_a_bay():
    assert [label for label, _ in trace_outlines(parse(".111. .1.1. .11.."), 0)] == [1]


def test_straight_and_diagonal_edges_have_no_corners_in_between():
    triangle = np.tril(np.ones((9, 9), np.uint8))
    assert list_shapes(triangle, 0) == [(1, {(0, 0), (0, 8), (8, 8)})]


# --- any map -------------------------------------------------------------------------------------------------------


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from(LABELS.tolist())))
def test_any_map_comes_back_exactly_with_tolerance_0(draw_back, labels):
    np.testing.assert_array_equal(draw_back(labels, 0), labels)


@given(
    st.integers(0, 10**6),
    st.integers(2, len(LABELS)),
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0.4, 5),
)
def test_any_blobs_come_back_exactly_with_tolerance_0(draw_back, seed, num_labels, height, width, sigma):
    labels = make_smooth_map(seed, num_labels, height, width, sigma)
    np.testing.assert_array_equal(draw_back(labels, 0), labels)


@given(st.integers(0, 10**6), st.integers(2, len(LABELS)), st.integers(1, 60), st.integers(1, 60), st.floats(0.4, 5))
def test_any_blobs_come_back_nearly_with_the_usual_tolerance(draw_back, seed, num_labels, height, width, sigma):
    labels = make_smooth_map(seed, num_labels, height, width, sigma)
    ious = compute_ious(labels, draw_back(labels))
    assert min(ious.values(), default=1) >= 0.99, ious


@given(st.integers(0, 10**6), st.integers(2, len(LABELS)), st.floats(0.4, 4), st.sampled_from([0, 0.3, 1, 3, 100]))
def test_any_polygon_has_three_corners_and_lies_in_the_photo(seed, num_labels, sigma, tolerance_px):
    labels = make_smooth_map(seed, num_labels, 24, 40, sigma)
    for label, corners in trace_outlines(labels, tolerance_px):
        assert label in labels
        assert len(corners) >= 3
        assert all(0 <= x <= 39 and 0 <= y <= 23 for x, y in corners)


@pytest.mark.parametrize("tolerance_px", [2, 10, 1000])
def test_no_tolerance_however_large_spoils_a_region(draw_back, tolerance_px):
    """It is halved until the simplified region is nearly the true one."""
    labels = make_smooth_map(0, 3, 100, 120, 6)
    assert min(compute_ious(labels, draw_back(labels, tolerance_px)).values()) >= 0.99


# --- drawn cats ----------------------------------------------------------------------------------------------------


def test_every_drawn_cat_comes_back_nearly_and_with_fewer_corners(draw_back):
    num_corners = Counter()
    for number in range(NUM_PHOTOS):
        labels = draw_photo(number)[1]
        assert min(compute_ious(labels, draw_back(labels)).values(), default=1) >= 0.99, number
        num_corners["exact"] += sum(len(corners) for _, corners in trace_outlines(labels, 0))
        num_corners["usual"] += sum(len(corners) for _, corners in trace_outlines(labels))
    assert (
        num_corners["usual"] < 0.8 * num_corners["exact"]
    )  # at 192 px a corner fewer is soon half a per cent of the cat


def test_drawn_cat_without_a_single_pixel_has_a_file_without_shapes():
    number = next(number for number in range(NUM_PHOTOS) if not draw_photo(number)[1].any())
    assert json.loads(make_annotation(draw_photo(number)[1], "cat.jpg", ("cat",)))["shapes"] == []


def test_outline_in_a_large_photo_has_far_fewer_corners():
    labels = make_smooth_map(0, 2, 1000, 1200, 60)
    exact, simple = (sum(len(corners) for _, corners in trace_outlines(labels, *px)) for px in ((0,), ()))
    assert simple < exact / 5


def test_time_follows_the_number_of_regions_and_not_its_square():
    """Noise has thousands: four times as many take about four times as long, sixteen times were the square."""

    def measure_seconds(side: int) -> float:
        labels = np.random.default_rng(0).integers(0, 2, (side, side)).astype(np.uint8)
        start = time.perf_counter()
        trace_outlines(labels)
        return time.perf_counter() - start

    seconds = {side: min(measure_seconds(side) for _ in range(3)) for side in (64, 128)}
    assert seconds[128] < 10 * seconds[64]


# --- the file ------------------------------------------------------------------------------------------------------


def test_file_holds_what_labelme_writes_with_names_for_ids(tmp_path):
    labels = parse("1111. 1111. .2222 vvvvv")
    content = json.loads(make_annotation(labels, "кошка.jpg", ("猫", "dog")))
    assert (content["imagePath"], content["imageData"]) == ("кошка.jpg", None)
    assert (content["imageHeight"], content["imageWidth"], content["flags"]) == (4, 5, {})
    assert {shape["label"] for shape in content["shapes"]} == {"猫", "dog", "__ignore__"}
    for shape in content["shapes"]:
        assert (shape["shape_type"], shape["group_id"], shape["flags"]) == ("polygon", None, {})
        assert all(isinstance(value, float) for value in itertools.chain(*shape["points"]))


def test_hole_is_labelled_as_background_in_the_file():
    shapes = json.loads(make_annotation(parse("111 1.1 111"), "cat.jpg", ("cat",)))["shapes"]
    assert [shape["label"] for shape in shapes] == ["cat", "_background_"]


def test_labels_file_names_the_ids_that_the_file_was_written_with(tmp_path):
    (tmp_path / "labels.txt").write_text(format_labels(CLASSES), "utf-8")
    assert load_labels(tmp_path / "labels.txt") == CLASSES


# --- outlines that cross themselves --------------------------------------------------------------------------------

SQUARE = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
INNER = [(3.0, 3.0), (7.0, 3.0), (7.0, 7.0), (3.0, 7.0)]


def test_simple_polygon_leaves_nothing_out():
    assert count_left_out(SQUARE, 12, 12) == 0
    assert count_left_out([(0.5, 0.5), (5.2, 0), (5, 5.7)], 12, 12) == 0


def test_bow_tie_crosses_itself_and_yet_leaves_nothing_out():
    assert count_left_out([(0, 0), (10, 10), (10, 0), (0, 10)], 12, 12) == 0


def test_square_gone_around_twice_leaves_out_the_inner_one_but_for_its_outline():
    assert count_left_out([*SQUARE, SQUARE[0], *INNER, INNER[0]], 12, 12) == 9  # 4 to 6 in x and y


def test_hole_that_a_slit_leads_to_is_on_purpose():
    assert count_left_out([*SQUARE, SQUARE[0], INNER[0], *INNER[::-1]], 12, 12) == 0


@pytest.mark.parametrize("turn", [1, -1])
def test_pentagram_leaves_out_its_pentagon_whichever_way_it_is_drawn(turn):
    radius = 40
    angles = [turn * 4 * math.pi * k / 5 for k in range(5)]
    star = [(50 + radius * math.sin(angle), 50 - radius * math.cos(angle)) for angle in angles]
    inner_radius = radius * math.cos(2 * math.pi / 5) / math.cos(math.pi / 5)
    pentagon = 5 / 2 * inner_radius**2 * math.sin(2 * math.pi / 5)
    assert pentagon - 5 * inner_radius * 1.5 < count_left_out(star, 100, 100) < pentagon


def test_what_lies_outside_the_photo_is_not_counted():
    twice = [*SQUARE, SQUARE[0], *INNER, INNER[0]]
    assert count_left_out([(x - 5000, y + 30000) for x, y in twice], 12, 12) == 0
    assert count_left_out(twice, 6, 12) == 0  # cut open, the inner square is a bay


def test_scribble_does_not_hang():
    """Its crossings, exactly, would take hours and gigabytes."""
    corners = [(x, y) for x, y in np.random.default_rng(0).uniform(0, 320, (20_000, 2)).tolist()]
    count_left_out(corners, 320, 320)
    count_left_out(corners[:9_000], 320, 320)


@pytest.mark.parametrize("points", [[(2, 3)] * 3, [(0, 0), (5, 0), (9, 0)], [(0, 0), (5, 5), (0, 0)]])
def test_polygon_without_area_leaves_nothing_out(points):
    assert count_left_out(points, 12, 12) == 0
