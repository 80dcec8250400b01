"""The real Labelme (6.x) as judge: its converter's pixels, its window's shapes, its command line.

Skipped where it is not installed (`pip install -c constraints.txt -e '.[label]' 'labelme<7'`; version 7
has no Python side). It runs in processes of its own: see labelme_window.py.
"""

import base64
import io
import json
import os
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import write_sample
from bench.label import choose_options
from catseg.labelme import draw_mask, load_annotation, make_label_ids
from catseg.outline import make_annotation
from catseg.photo import VOID, read_photo

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("labelme_window.py")
SECONDS = 120  # measured: 3 for the longest
CLASSES = ("cat", "dog")


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """run_python(argument, ...): a Python without a screen, whose home is empty; its standard output."""
    home = tmp_path_factory.mktemp("home")
    own = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "QT_QPA_PLATFORM": "offscreen",
    }

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, env=os.environ | own, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-3_000:])
        return done.stdout

    return run


@pytest.fixture(scope="session")
def labelme(run_python):
    """labelme(command, argument, ...): what labelme_window.py prints, parsed."""
    try:
        version = metadata.version("labelme")
    except metadata.PackageNotFoundError:
        pytest.skip("Labelme is not installed")
    if not version.startswith("6."):
        pytest.skip(f"Labelme {version} has no Python side that tests could ask; 6.x has")
    try:
        run_python("-c", "import labelme.app")
    except RuntimeError as error:
        pytest.skip(f"Labelme cannot be imported: {str(error).splitlines()[-1]}")
    return lambda command, *arguments: json.loads(run_python(DRIVER, command, *arguments))


# Its converter


def make_random_shape(shape_type: str, rng: random.Random, width: int, height: int) -> dict:
    """A shape with whole, half or any coordinates, often partly outside; a mask inside, where Labelme wants it."""
    label = rng.choice((*CLASSES, *CLASSES, "_background_", "__ignore__"))
    shape = {"label": label, "shape_type": shape_type, "group_id": rng.choice((None, 1, 2)), "flags": {}}
    if shape_type == "mask":
        columns, rows = rng.randint(1, width), rng.randint(1, height)
        left, top = rng.randint(0, width - columns), rng.randint(0, height - rows)
        bitmap = np.frombuffer(rng.randbytes(rows * columns), np.uint8).reshape(rows, columns) > 100
        buffer = io.BytesIO()
        Image.fromarray(bitmap.astype(np.uint8) * rng.choice((1, 255))).save(buffer, "PNG")
        corners = [[left, top], [left + columns - 1, top + rows - 1]]
        return shape | {"points": corners, "mask": base64.b64encode(buffer.getvalue()).decode()}
    digits = rng.choice((0, 0, 1, 15))
    num_points = {"rectangle": 2, "circle": 2, "line": 2, "point": 1, "oriented_rectangle": 4}.get(shape_type)
    points = [
        [round(rng.uniform(-0.3, 1.3) * width, digits), round(rng.uniform(-0.3, 1.3) * height, digits)]
        for _ in range(num_points or rng.randint(3, 9))
    ]
    return shape | {"points": points}


SHAPE_TYPES = ("polygon", "rectangle", "oriented_rectangle", "circle", "line", "linestrip", "point", "mask")


@pytest.fixture(scope="session")
def random_files(tmp_path_factory) -> list[Path]:
    """200 annotations of one to five shapes each, of every type, on 8 photos of different sizes."""
    folder = tmp_path_factory.mktemp("random")
    rng = random.Random(20)
    sizes = [(rng.randint(1, 90), rng.randint(1, 90)) for _ in range(8)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "white").save(folder / f"{number}.png")
    for number in range(200):
        photo = number % len(sizes)
        width, height = sizes[photo]
        first = SHAPE_TYPES[number // len(sizes) % len(SHAPE_TYPES)]
        types = (first, *rng.choices(SHAPE_TYPES, k=rng.randint(0, 4)))
        content = {
            "version": "6.3.1",
            "shapes": [make_random_shape(shape_type, rng, width, height) for shape_type in types],
            "imagePath": f"{photo}.png",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        (folder / f"file-{number:03d}.json").write_text(json.dumps(content), "utf-8")
    return sorted(folder.glob("*.json"))


def test_masks_equal_those_of_labelmes_converter_pixel_for_pixel(labelme, random_files):
    label_ids = make_label_ids(CLASSES) | {"__ignore__": -1}  # labelme2voc's, which later becomes 255
    assert labelme("masks", json.dumps(label_ids), *random_files) == {}
    num_labels = np.zeros(256, int)
    for path in random_files:
        cls = np.load(path.with_suffix(".cls.npy"))
        mask = draw_mask(load_annotation(path), *cls.shape, CLASSES)
        np.testing.assert_array_equal(mask, np.where(cls == -1, VOID, cls), err_msg=path.name)
        num_labels += np.bincount(mask.ravel(), minlength=256)
    assert np.flatnonzero(num_labels > 10_000).tolist() == [0, 1, 2, VOID]


# Its window


def check_canvas(labelme, folder: Path, *flags: str) -> list[dict]:
    """Labelme opens the folder without a complaint, at each photo's size, with the shapes of its file."""
    views = labelme("show", folder, *flags)
    assert sorted(view["photo"] for view in views) == sorted(
        str(path)
        for path in folder.rglob("*")
        if path.suffix in (".jpg", ".png") and path.suffixes[:1] == [path.suffix]
    )
    for view in views:
        assert view["errors"] == []
        photo = Path(view["photo"])
        assert (view["height"], view["width"]) == read_photo(photo).shape[:2]
        annotation = photo.with_suffix(".json")
        shapes = json.loads(annotation.read_text("utf-8"))["shapes"] if annotation.exists() else []
        keys = ("label", "shape_type", "points", "group_id")
        assert [[shape[key] for key in keys] for shape in view["shapes"]] == [
            [shape.get(key) for key in keys] for shape in shapes
        ]
    return views


def test_folder_opens_with_the_shapes_of_its_files(labelme, labelme_folder):
    views = check_canvas(labelme, labelme_folder)
    assert [len(view["shapes"]) for view in views] == [1] * 6


def test_photo_without_shapes_opens_empty(labelme, labelme_folder):
    path = labelme_folder / "cat-0.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"shapes": []}), "utf-8")
    assert [len(view["shapes"]) for view in check_canvas(labelme, labelme_folder)] == [0] + [1] * 5


def test_what_labelme_saves_is_what_we_read(labelme, labelme_folder, random_files):
    """Every type of shape through Labelme's own reader, canvas and writer: the mask stays the same."""
    before = {}
    for path in random_files[:40]:
        copy = labelme_folder / path.name
        copy.write_bytes(path.read_bytes())
        photo = load_annotation(path).image_path
        (labelme_folder / photo).write_bytes((path.parent / photo).read_bytes())
        size = read_photo(labelme_folder / photo).shape[:2]
        before[copy] = draw_mask(load_annotation(copy), *size, CLASSES)
        copy.write_text(json.dumps(json.loads(copy.read_text("utf-8")) | {"seen": "before"}), "utf-8")
    views = labelme("show", *before, "--save")
    assert [view["errors"] for view in views] == [[]] * len(before)
    for path, mask in before.items():
        assert '\n  "seen": "before"' in path.read_text("utf-8"), "saved by Labelme, which indents"
        np.testing.assert_array_equal(draw_mask(load_annotation(path), *mask.shape, CLASSES), mask, err_msg=path.name)


def test_drawn_sample_opens_as_it_is_written(labelme, tmp_path):
    write_sample(tmp_path / "cats", 4, 0)
    assert all(view["shapes"] for view in check_canvas(labelme, tmp_path / "cats"))


def test_exact_outlines_are_drawn_by_labelme_as_the_labels_they_came_from(labelme, tmp_path):
    rng = np.random.default_rng(3)
    labels = {}
    for number in range(20):
        coarse = rng.choice(np.array([0, 0, 1, 2, VOID], np.uint8), (6, 7))
        labels_HW = np.asarray(Image.fromarray(coarse).resize((35, 24), Image.Resampling.NEAREST))
        Image.new("RGB", (35, 24), "white").save(tmp_path / f"{number}.png")
        path = tmp_path / f"{number}.json"
        path.write_text(make_annotation(labels_HW, f"{number}.png", CLASSES, tolerance_px=0), "utf-8")
        labels[path] = labels_HW
    check_canvas(labelme, tmp_path)
    assert labelme("masks", json.dumps(make_label_ids(CLASSES)), *labels) == {}
    for path, labels_HW in labels.items():
        np.testing.assert_array_equal(np.load(path.with_suffix(".cls.npy")), labels_HW, err_msg=path.name)


def paint_corners(width: int, height: int) -> Image.Image:
    """Another colour in each corner: what is turned or mirrored shows."""
    photo = Image.new("RGB", (width, height), "white")
    photo.paste("red", (0, 0, width // 2, height // 2))
    photo.paste("blue", (0, height // 2, width // 2, height))
    photo.paste("green", (width // 2, height // 2, width, height))
    return photo


def test_photos_of_every_exif_orientation_are_shown_as_they_are_read(labelme, tmp_path):
    photos = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in (".jpg", ".png", ".webp", ".tiff"):
            photos.append(tmp_path / f"{orientation}{suffix[1:]}{suffix}")
            paint_corners(120, 90).save(photos[-1], exif=exif)
    views = labelme("show", tmp_path, "--pixels")
    assert sorted(view["photo"] for view in views) == sorted(map(str, photos))
    assert [view["errors"] for view in views] == [[]] * len(photos)
    for photo in photos:
        shown, read = read_photo(photo.with_suffix(".shown.png")).astype(int), read_photo(photo)
        assert shown.shape == read.shape, photo.name
        assert np.abs(shown - read).mean() < 3, photo.name  # Labelme encodes what it turned anew


def embed(photo: Image.Image, orientation: int) -> str:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo.save(buffer, "JPEG", exif=exif, quality=95)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_embedded_photo_goes_before_the_file_and_is_shown_as_stored(labelme, labelme_folder, orientation):
    """Labelme's own embedded photos are upright and without the tag; what others embed it does not turn."""
    path = labelme_folder / "cat-0.json"
    stored = paint_corners(120, 90)
    content = {"imageData": embed(stored, orientation), "imageHeight": 90, "imageWidth": 120}
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | content), "utf-8")
    (view,) = labelme("show", path, "--pixels")
    assert view["errors"] == [] and view["photo"] == str(labelme_folder / "cat-0.jpg")
    shown = read_photo(labelme_folder / "cat-0.shown.png").astype(int)
    assert shown.shape == (90, 120, 3)
    assert np.abs(shown - np.asarray(stored)).mean() < 3


def test_file_that_labelme_refuses_is_told_by_its_dialog(labelme, labelme_folder):
    """The tests above would see a complaint."""
    path = labelme_folder / "cat-0.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"imageHeight": 7}), "utf-8")
    (view,) = labelme("show", path)
    assert "imageHeight mismatch" in view["errors"][0]


# Its command line


def test_options_chosen_from_the_real_help_make_the_real_window(labelme, run_python, labelme_folder, tmp_path):
    """In a home where Labelme 5 left its settings, which Labelme 6 would rather follow than its options."""
    home = Path(run_python("-c", "print(__import__('os').environ['HOME'])").strip())
    (home / ".labelmerc").write_text(
        "auto_save: false\nstore_data: true\ncanvas: {crosshair: {ai_polygon: false}}\n", "utf-8"
    )
    labels = tmp_path / "labels.txt"
    labels.write_text("__ignore__\n_background_\ndog\ncat\n", "utf-8")
    options = choose_options(run_python("-m", "labelme", "--help"), labels)
    assert "--validate-label" in options
    view = labelme("start", *options, labelme_folder)
    assert view["errors"] == [] and view["photo"] == str(labelme_folder / "cat-0.jpg")
    assert view["config"] == {
        "auto_save": True,
        "with_image_data": False,
        "sort_labels": False,
        "validate_label": "exact",
        "labels": ["__ignore__", "_background_", "dog", "cat"],
    }
    assert view["num_listed"] == 4
