"""Labelme folder -> VOC folder: Labelme's masks, every photo as it is shown, objects, and all of it or nothing."""

import base64
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.errors import InputError
from catseg.folder import list_pairs
from catseg.labelme import load_labels
from catseg.photo import VOID, paint_overlay, read_photo
from catseg.voc import convert

CAT = ("cat",)
ROOT = Path(__file__).parent.parent.parent
ORIENTATION = 0x0112


def make_box(left: int, top: int, right: int, bottom: int, label: str = "cat", group_id: int | None = None) -> dict:
    corners = [[left, top], [right, bottom]]
    return {"label": label, "shape_type": "rectangle", "points": corners, "group_id": group_id}


def write_annotation(folder: Path, name: str, *shapes: dict, **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(name).stem}.json"
    path.write_text(json.dumps({"imagePath": name, "shapes": list(shapes)} | keys), "utf-8")
    return path


def write_pair(folder: Path, name: str, *shapes: dict, size: tuple[int, int] = (20, 10)) -> None:
    write_annotation(folder, name, *shapes)
    Image.new("RGB", size, "white").save(folder / name)


def run(folder: Path, out: Path, classes: tuple[str, ...] = CAT) -> list[tuple[int, int]]:
    return list(convert(folder, out, classes))


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def read(path: Path) -> np.ndarray:
    return np.asarray(open_image(path))


def list_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def check_refused(folder: Path, out: Path, classes: tuple[str, ...] = CAT) -> tuple[str, ...]:
    """Refused with printable lines, and nothing new lies where the folder would have come."""
    before = list_names(out.parent)
    with pytest.raises(InputError) as caught:
        run(folder, out, classes)
    assert list_names(out.parent) == before
    assert all(line.isprintable() for line in caught.value.problems)
    return caught.value.problems


# --- what is in it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelmes_example(tmp_path_factory, real_data):
    """Labelme's own example: what it wrote, and what is written here."""
    out, theirs = tmp_path_factory.mktemp("example") / "voc", real_data / "labelme-voc" / "data_dataset_voc"
    classes = load_labels(real_data / "labelme-voc" / "labels.txt")
    assert run(real_data / "labelme-voc" / "data_annotated", out, classes) == [(1, 3), (2, 3), (3, 3)]
    return out, theirs


@pytest.mark.parametrize("name", ["2011_000003", "2011_000006", "2011_000025"])
def test_labelmes_own_example_has_labelmes_own_masks(labelmes_example, name):
    out, theirs = labelmes_example
    ours, png = read(out / f"SegmentationClass/{name}.png"), read(theirs / f"SegmentationClass/{name}.png")
    npy = np.load(theirs / f"SegmentationClassNpy/{name}.npy").astype(int)
    num_allowed = 1 if name == "2011_000006" else 0  # Pillow >= 11.3 draws one pixel otherwise
    assert np.count_nonzero(ours != png) <= num_allowed
    assert np.count_nonzero(ours != np.where(npy == -1, VOID, npy)) <= num_allowed


def test_labelmes_own_example_has_labelmes_own_palette_and_class_names(labelmes_example):
    out, theirs = labelmes_example
    for path in sorted((theirs / "SegmentationClass").iterdir()):
        for folder in ("SegmentationClass", "SegmentationObject"):
            ours = open_image(out / folder / path.name)
            assert (ours.mode, ours.getpalette()) == ("P", open_image(path).getpalette())
    assert (out / "class_names.txt").read_text() == (theirs / "class_names.txt").read_text()


def test_folder_holds_a_photo_a_mask_objects_and_an_overlay_of_each_photo(tmp_path, labelme_folder):
    out = tmp_path / "deep" / "out"
    assert run(labelme_folder, out) == [(number, 6) for number in range(1, 7)]
    assert list_names(out.parent) == sorted(
        ["out", "out/class_names.txt"]
        + [
            f"out/{folder}{name}"
            for folder, suffix in {
                "JPEGImages": ".jpg",
                "SegmentationClass": ".png",
                "SegmentationObject": ".png",
                "SegmentationClassVisualization": ".jpg",
            }.items()
            for name in ("", *(f"/cat-{number}{suffix}" for number in range(6)))
        ]
    )


def test_converted_folder_has_the_pixels_and_masks_of_the_labelme_folder(tmp_path, labelme_folder):
    run(labelme_folder, tmp_path / "out")
    pairs = list_pairs(str(labelme_folder), CAT)
    converted = list_pairs(str(tmp_path / "out"), CAT)
    assert [pair.name for pair in pairs] == [pair.name for pair in converted]
    for pair, other in zip(pairs, converted, strict=True):
        for ours, theirs in zip(pair.read(), other.read(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_mask_has_each_class_void_and_later_shapes_on_top(tmp_path):
    shapes = (
        make_box(0, 0, 3, 3),
        make_box(2, 2, 3, 3, "dog"),
        make_box(0, 0, 0, 0, "_background_"),
        make_box(3, 0, 3, 1, "__ignore__"),
    )
    write_pair(tmp_path / "in", "a.png", *shapes, size=(5, 4))
    run(tmp_path / "in", tmp_path / "out", ("cat", "dog"))
    assert (tmp_path / "out/class_names.txt").read_bytes() == b"_background_\ncat\ndog"  # no last line break
    expected = [[0, 1, 1, 255, 0], [1, 1, 1, 255, 0], [1, 1, 2, 2, 0], [1, 1, 2, 2, 0]]
    assert read(tmp_path / "out/SegmentationClass/a.png").tolist() == expected


def test_overlay_is_the_mask_over_the_photo(tmp_path, labelme_folder):
    run(labelme_folder, tmp_path / "out")
    photo, mask = list_pairs(str(labelme_folder), CAT)[2].read()
    overlay = read(tmp_path / "out/SegmentationClassVisualization/cat-2.jpg")
    assert np.abs(overlay.astype(int) - paint_overlay(photo, mask)).mean() < 3  # a JPEG of it


# --- photos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpeg_is_copied_byte_for_byte(tmp_path, draw_cat, mode):
    write_annotation(tmp_path / "in", "a.jpeg")
    Image.fromarray(draw_cat(0)[0]).convert(mode).save(tmp_path / "in/a.jpeg", quality=31, comment=b"by me")
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/JPEGImages/a.jpg").read_bytes() == (tmp_path / "in/a.jpeg").read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_that_exif_turns_is_upright_and_says_so(tmp_path, draw_cat, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    height, width = (48, 64) if orientation < 5 else (64, 48)
    name = f"a.{suffix}"
    write_annotation(tmp_path / "in", name, make_box(0, 0, width - 1, 5), imageHeight=height, imageWidth=width)
    Image.fromarray(draw_cat(0)[0]).save(tmp_path / "in" / name, exif=exif, quality=95)
    run(tmp_path / "in", tmp_path / "out")
    written = open_image(tmp_path / "out/JPEGImages/a.jpg")
    assert (written.format, written.size) == ("JPEG", (width, height))
    assert written.getexif().get(ORIENTATION, 1) == 1
    shown = read_photo(tmp_path / "in" / name).astype(int)
    assert np.abs(np.asarray(written) - shown).mean() < 2
    mask = read(tmp_path / "out/SegmentationClass/a.png")
    assert mask.shape == (height, width) and mask[:6].all() and not mask[6:].any()


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((16, 32, 4), np.uint8)
    pixels[:, 16:] = (200, 0, 0, 255)
    write_annotation(tmp_path / "in", "a.png")
    Image.fromarray(pixels).save(tmp_path / "in/a.png")
    run(tmp_path / "in", tmp_path / "out")
    photo = read(tmp_path / "out/JPEGImages/a.jpg").astype(int)
    assert np.abs(photo[:, :15] - 255).max() < 8
    assert np.abs(photo[:, 17:] - (200, 0, 0)).max() < 8


def make_palette_photo() -> Image.Image:
    image = Image.new("P", (32, 16), 7)
    image.putpalette([0] * 21 + [30, 160, 220])
    return image


@pytest.mark.parametrize(
    ("image", "name", "color"),
    [
        (make_palette_photo(), "a.png", (30, 160, 220)),
        (Image.new("L", (32, 16), 130), "a.png", (130, 130, 130)),
        (Image.new("1", (32, 16), 1), "a.png", (255, 255, 255)),
        (Image.new("LA", (32, 16), (130, 0)), "a.png", (255, 255, 255)),
        (Image.new("CMYK", (32, 16), (255, 0, 0, 0)), "a.jpg", (0, 255, 255)),
        (Image.new("RGB", (32, 16), (9, 99, 199)), "a.webp", (9, 99, 199)),
    ],
    ids=["palette", "grey", "bits", "grey with alpha", "CMYK", "WebP"],
)
def test_photo_of_any_kind_becomes_a_jpeg_in_colours(tmp_path, image, name, color):
    write_annotation(tmp_path / "in", name)
    image.save(tmp_path / "in" / name)
    run(tmp_path / "in", tmp_path / "out")
    written = open_image(tmp_path / "out/JPEGImages/a.jpg")
    assert (written.format, written.mode, written.size) == ("JPEG", "RGB", (32, 16))
    assert np.abs(np.asarray(written).astype(int) - color).max() <= 6


@pytest.mark.parametrize(("form", "copied"), [("JPEG", True), ("PNG", False)])
def test_photo_that_is_only_inside_its_annotation_is_taken_from_there(tmp_path, draw_cat, form, copied):
    buffer = io.BytesIO()
    Image.fromarray(draw_cat(0)[0]).save(buffer, form, quality=90)
    text = base64.b64encode(buffer.getvalue()).decode()
    write_annotation(tmp_path / "in", "a.jpg", make_box(1, 2, 3, 4), imageData=text)
    run(tmp_path / "in", tmp_path / "out")
    written = tmp_path / "out/JPEGImages/a.jpg"
    assert (written.read_bytes() == buffer.getvalue()) is copied
    assert np.abs(read(written).astype(int) - np.asarray(Image.open(buffer))).mean() < 2
    assert np.count_nonzero(read(tmp_path / "out/SegmentationClass/a.png")) == 9


def test_photo_inside_its_annotation_is_not_turned_as_labelme_does_not_turn_it(tmp_path, draw_cat):
    """Nor may a program that reads the folder turn it away from under its mask."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    Image.fromarray(draw_cat(0)[0]).save(buffer, "JPEG", exif=exif)
    text = base64.b64encode(buffer.getvalue()).decode()
    write_annotation(tmp_path / "in", "a.jpg", make_box(0, 0, 63, 5), imageData=text, imageHeight=48, imageWidth=64)
    run(tmp_path / "in", tmp_path / "out")
    written = open_image(tmp_path / "out/JPEGImages/a.jpg")
    assert (written.size, written.getexif().get(ORIENTATION, 1)) == ((64, 48), 1)


# --- objects -------------------------------------------------------------------------------------------------------


def draw_objects(tmp_path: Path, *shapes: dict) -> list[list[int]]:
    write_pair(tmp_path / "in", "a.png", *shapes, size=(6, 1))
    run(tmp_path / "in", tmp_path / "out", ("cat", "dog"))
    (row,) = read(tmp_path / "out/SegmentationObject/a.png").tolist()
    return row


@pytest.mark.parametrize(
    ("groups", "labels", "row"),
    [
        ((3, 3), ("cat", "cat"), [0, 1, 0, 0, 1, 1]),
        ((None, None), ("cat", "cat"), [0, 1, 0, 0, 2, 2]),
        ((3, 4), ("cat", "cat"), [0, 1, 0, 0, 2, 2]),
        ((3, 3), ("cat", "dog"), [0, 1, 0, 0, 2, 2]),
        ((0, 0), ("cat", "cat"), [0, 1, 0, 0, 1, 1]),
        ((1, None), ("cat", "cat"), [0, 1, 0, 0, 2, 2]),  # a group's number is none of a shape
    ],
)
def test_shapes_of_one_label_and_group_are_one_object(tmp_path, groups, labels, row):
    shapes = [make_box(1, 0, 1, 0, labels[0], groups[0]), make_box(4, 0, 5, 0, labels[1], groups[1])]
    assert draw_objects(tmp_path, *shapes) == row


def test_void_is_no_object(tmp_path):
    shapes = [make_box(0, 0, 3, 0), make_box(2, 0, 4, 0, "__ignore__"), make_box(5, 0, 5, 0)]
    assert draw_objects(tmp_path, *shapes) == [1, 1, 0, 0, 0, 3]
    assert read(tmp_path / "out/SegmentationClass/a.png").tolist() == [[1, 1, 255, 255, 255, 1]]


def test_later_object_lies_on_top(tmp_path):
    assert draw_objects(tmp_path, make_box(0, 0, 3, 0), make_box(2, 0, 5, 0)) == [1, 1, 2, 2, 2, 2]


def test_as_many_objects_as_a_mask_has_numbers(tmp_path):
    shapes = [make_box(index % 6, 0, index % 6, 0) for index in range(254)]
    assert draw_objects(tmp_path, *shapes) == [253, 254, 249, 250, 251, 252]


def test_more_objects_than_a_mask_has_numbers_are_refused(tmp_path):
    write_pair(tmp_path / "in", "a.png", *[make_box(0, 0, 1, 1)] * 255)
    (line,) = check_refused(tmp_path / "in", tmp_path / "out")
    assert "a.json" in line and "255 objects" in line and "254" in line


def test_parts_of_one_object_are_not_counted_one_by_one(tmp_path):
    write_pair(tmp_path / "in", "a.png", *[make_box(0, 0, 1, 1, group_id=7)] * 300)
    run(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out/SegmentationObject/a.png").max() == 1


# --- all or nothing ------------------------------------------------------------------------------------------------


def test_unknown_label_is_refused_with_the_known_ones(tmp_path):
    write_pair(tmp_path / "in", "a.png", make_box(0, 0, 1, 1, "cow"))
    (line,) = check_refused(tmp_path / "in", tmp_path / "out", ("cat", "dog"))
    assert "a.json" in line and "'cow'" in line and "cat, dog" in line


def test_all_bad_files_are_listed_and_nothing_is_left(tmp_path, labelme_folder):
    (labelme_folder / "cat-1.json").write_text("{")
    (labelme_folder / "cat-4.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    Image.new("RGB", (8, 8)).save(labelme_folder / "lonely.png")
    problems = check_refused(labelme_folder, tmp_path / "deep" / "out" / "voc")
    assert [word in line for word, line in zip(("cat-1", "cat-4", "lonely"), problems, strict=True)] == [True] * 3


@pytest.mark.parametrize("there", ["file", "folder", "link", "dangling link"])
def test_what_is_there_already_is_refused_and_left_alone(tmp_path, labelme_folder, there):
    out = tmp_path / "out"
    match there:
        case "file":
            out.write_text("mine")
        case "folder":
            (out / "mine").mkdir(parents=True)
        case "link":
            out.symlink_to(labelme_folder)
        case _:
            out.symlink_to(tmp_path / "gone")
    (line,) = check_refused(labelme_folder, out)
    assert str(out) in line and "is there already" in line
    assert out.is_symlink() == ("link" in there)


@pytest.mark.parametrize("suffix", [".json", ".png"])
def test_link_to_a_file_elsewhere_is_refused(tmp_path, suffix):
    write_pair(tmp_path / "in", "a.png")
    (tmp_path / "in" / f"a{suffix}").rename(tmp_path / f"a{suffix}")
    (tmp_path / "in" / f"a{suffix}").symlink_to(tmp_path / f"a{suffix}")
    (line,) = check_refused(tmp_path / "in", tmp_path / "out")
    assert "leaves the folder" in line


@pytest.mark.parametrize("name", ["gone", "file"])
def test_folder_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    (line,) = check_refused(tmp_path / name, tmp_path / "out")
    assert str(tmp_path / name) in line and "no such folder" in line


def test_place_that_cannot_be_written_is_refused(tmp_path, labelme_folder):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        run(labelme_folder, tmp_path / "file" / "out")
    assert (tmp_path / "file").is_file()


def test_stopped_in_the_middle_it_leaves_nothing(tmp_path, labelme_folder):
    steps = convert(labelme_folder, tmp_path / "out", CAT)
    assert next(steps) == (1, 6)
    steps.close()
    assert list(tmp_path.iterdir()) == [labelme_folder]


CONVERT = """
import resource, sys
from pathlib import Path
from catseg.voc import convert

if len(sys.argv) > 3:  # no file may grow larger: a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
for done, total in convert(Path(sys.argv[1]), Path(sys.argv[2]), ("cat",)):
    print(done, flush=True)
"""


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", CONVERT, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_after_a_kill_there_is_no_folder_and_the_next_run_clears_up(tmp_path, draw_cat):
    for number in range(200):
        write_annotation(tmp_path / "in", f"cat-{number}.png", make_box(9, 9, 99, 99))
        Image.fromarray(draw_cat(number % 3, 192, 192)[0]).save(tmp_path / "in" / f"cat-{number}.png")
    process = start(tmp_path / "in", tmp_path / "out")
    with process.stdout as lines:
        assert lines.readline() == "1\n"
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (begun,) = set(tmp_path.iterdir()) - {tmp_path / "in"}
    assert begun.name == f".out.{process.pid}.tmp"
    assert 0 < len(list((begun / "JPEGImages").iterdir())) < 200
    assert run(tmp_path / "in", tmp_path / "out")[-1] == (200, 200)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in", tmp_path / "out"]
    assert len(list_pairs(str(tmp_path / "out"), CAT)) == 200


def test_full_disk_leaves_nothing(tmp_path, labelme_folder):
    process = start(labelme_folder, tmp_path / "deep" / "out", 1000)
    output, _ = process.communicate()
    assert "out: cannot be written (File too large); make room" in output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [labelme_folder]
