"""A folder looked through: every problem, every warning, hand-counted shares, and photos that are nearly the same."""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from catseg.errors import InputError
from catseg.folder import list_pairs
from catseg.photo import VOID
from catseg.survey import (
    PhotoFacts,
    Survey,
    find_classes,
    find_near_photos,
    summarize,
    survey_pair,
)

CAT = ("cat",)
ORIENTATION = 0x0112
SQUARE = [[2, 2], [9, 2], [9, 9], [2, 9]]


def make_shape(points: list = SQUARE, label: str = "cat", shape_type: str = "polygon") -> dict:
    return {"label": label, "shape_type": shape_type, "points": points}


def write_annotation(folder: Path, name: str, *shapes: dict, **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(name).stem}.json"
    path.write_text(json.dumps({"imagePath": name, "shapes": list(shapes)} | keys), "utf-8")
    return path


def write_pair(folder: Path, name: str, *shapes: dict, size: tuple[int, int] = (20, 12), mode: str = "RGB") -> Path:
    write_annotation(folder, name, *shapes)
    Image.new(mode, size).save(folder / name)
    return folder / name


def write_voc(folder: Path, masks: dict[str, list[list[int]]]) -> Path:
    """A VOC folder of grey photos with these masks."""
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    for name, rows in masks.items():
        mask = np.array(rows, np.uint8)
        Image.new("RGB", mask.shape[::-1], "grey").save(folder / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{name}.png")
    return folder


def look(source: Path, classes: tuple[str, ...] = CAT) -> tuple[list[PhotoFacts], list[str]]:
    facts, problems = [], []
    for pair in list_pairs(str(source), classes):
        try:
            facts.append(survey_pair(pair))
        except InputError as error:
            problems += error.problems
    return facts, problems


def survey(source: Path, classes: tuple[str, ...] = CAT) -> Survey:
    return summarize(str(source), classes, *look(source, classes))


def list_warnings(source: Path, classes: tuple[str, ...] = CAT) -> list[str]:
    facts, problems = look(source, classes)
    assert problems == []
    return [line for photo in facts for line in photo.warnings]


# --- problems ------------------------------------------------------------------------------------------------------


def test_every_problem_of_every_file_is_listed_and_the_good_photos_are_counted(tmp_path, draw_cat):
    write_pair(tmp_path, "good.png", make_shape())
    write_annotation(tmp_path, "truncated.jpg", make_shape())
    buffer = io.BytesIO()
    Image.fromarray(draw_cat(0)[0]).save(buffer, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(buffer.getvalue()[:900])
    write_pair(tmp_path, "json.png").with_suffix(".json").write_text('{"shapes": [')
    write_pair(tmp_path, "shapes.png", make_shape([[1, 1]]), make_shape(), make_shape(shape_type="blob"))
    write_pair(tmp_path, "label.png", make_shape(label="dog"))
    write_pair(tmp_path, "size.png")
    write_annotation(tmp_path, "size.png", make_shape(), imageHeight=99, imageWidth=12)
    Image.new("RGB", (9, 9)).save(tmp_path / "bare.png")
    write_annotation(tmp_path, "orphan.png", make_shape())
    write_pair(tmp_path, "double.png", make_shape())
    Image.new("RGB", (20, 12)).save(tmp_path / "double.jpg")
    found = survey(tmp_path)
    for words in (
        ("truncated.", "cannot be decoded"),
        ("json.json", "not a JSON file"),
        ("shapes.json: shapes[0]", "at least 3 points"),
        ("shapes.json: shapes[2]", "unknown shape_type 'blob'"),
        ("label.json: shapes[0]", "unknown label 'dog'"),
        ("size.json", "12 x 99", "20 x 12"),
        ("bare.png", "without annotation"),
        ("orphan.json", "no photo"),
        ("double.png", "double.jpg", "same name"),
    ):
        assert len([line for line in found.problems if all(word in line for word in words)]) == 1, words
    assert len(found.problems) == 9
    assert all(line.isprintable() for line in found.problems)
    assert found.num_photos == 2  # good and double.png
    assert found.photos == {"cat": 2, "_background_": 2}


# --- warnings ------------------------------------------------------------------------------------------------------


def test_ordinary_photos_have_no_warning(labelme_folder, voc_folder):
    assert list_warnings(labelme_folder) == []
    assert list_warnings(voc_folder) == []


@pytest.mark.parametrize("shapes", [(), (make_shape(label="_background_"),), (make_shape(label="__ignore__"),)])
def test_photo_on_which_nothing_is_outlined_is_named(tmp_path, shapes):
    path = write_pair(tmp_path, "a.png", *shapes)
    (line,) = list_warnings(tmp_path)
    assert line.startswith(f"{path}: nothing outlined")


def test_photo_that_is_void_all_over_is_named(tmp_path):
    path = write_pair(tmp_path, "a.png", make_shape(), make_shape([[0, 0], [19, 11]], "__ignore__", "rectangle"))
    lines = list_warnings(tmp_path)
    assert lines[0].startswith(f"{tmp_path / 'a.json'}: shapes[0] ('cat'): not a pixel of it is seen")
    assert lines[1].startswith(f"{path}: all of it is void")
    assert len(lines) == 2


@pytest.mark.parametrize(
    "hidden",
    [[make_shape(), make_shape([[1, 1], [10, 10]], shape_type="rectangle")], [make_shape([[30, 3], [40, 3], [40, 9]])]],
    ids=["under a later one", "outside"],
)
def test_shape_of_which_nothing_is_seen_is_named(tmp_path, hidden):
    write_pair(tmp_path, "a.png", *hidden, make_shape([[15, 1], [15, 2], [16, 2]]))
    (line,) = list_warnings(tmp_path)
    assert line.startswith(f"{tmp_path / 'a.json'}: shapes[0] ('cat'): not a pixel of it is seen")


def test_shape_of_which_one_pixel_is_seen_is_not_named(tmp_path):
    write_pair(tmp_path, "a.png", make_shape(), make_shape([[2, 2], [8, 9]], shape_type="rectangle"))
    assert list_warnings(tmp_path) == []


@pytest.mark.parametrize(
    ("box", "outside"),
    [
        ([[0, 0], [20, 12]], None),
        ([[0, 0], [22, 14]], None),
        ([[-2, -2], [9, 9]], None),
        ([[0, 0], [25, 5]], 5),
        ([[0, 0], [5, 16]], 4),
        ([[-3, 0], [5, 5]], 3),
        ([[0, -9], [5, 5]], 9),
        ([[-3, -9], [50, 15]], 30),
    ],
)
@pytest.mark.parametrize("shape_type", ["rectangle", "polygon"])
def test_area_that_reaches_far_beyond_the_photo_is_named(tmp_path, box, outside, shape_type):
    points = box if shape_type == "rectangle" else [*box, [box[0][0], box[1][1]]]
    write_pair(tmp_path, "a.png", make_shape(points, shape_type=shape_type))
    lines = list_warnings(tmp_path)
    assert [f"shapes[0] ('cat'): reaches {outside} px beyond the photo" in line for line in lines] == (
        [True] if outside else []
    )


def test_circle_may_reach_beyond_the_photo_for_its_rim_is_but_a_handle(tmp_path):
    write_pair(tmp_path, "a.png", make_shape([[10, 6], [10, 40]], shape_type="circle"))
    assert list_warnings(tmp_path) == []


def test_outline_that_crosses_itself_and_leaves_out_what_it_encloses_twice_is_named(tmp_path):
    star = [[math.sin(4 * math.pi * k / 5) * 30 + 32, 32 - math.cos(4 * math.pi * k / 5) * 30] for k in range(5)]
    write_pair(tmp_path, "a.png", make_shape(), make_shape(star), size=(64, 64))
    write_pair(tmp_path, "small.png", make_shape(star), size=(300, 300))  # a slip of the hand, a pixel or two
    write_pair(tmp_path, "bow.png", make_shape([[2, 2], [50, 50], [50, 2], [2, 50]]), size=(64, 64))
    (line,) = list_warnings(tmp_path)
    assert line.startswith(f"{tmp_path / 'a.json'}: shapes[1] ('cat'): its outline crosses itself")


# --- the summary ---------------------------------------------------------------------------------------------------

TINY = {
    "a": [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],  # 4 cat, 12 background
    "b": [[1, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [0, 0, VOID, VOID]],  # 1 cat, 4 dog, 9, 2 void
    "c": [[0] * 4] * 4,
    "d": [[2] * 4] * 4,
}


def test_photos_and_shares_of_each_label_are_counted_by_hand(tmp_path):
    found = survey(write_voc(tmp_path / "voc", TINY), ("cat", "dog", "cow"))
    assert (found.source, found.num_photos, found.problems) == (str(tmp_path / "voc"), 4, ())
    assert found.photos == {"_background_": 3, "__ignore__": 1, "cat": 2, "dog": 2, "cow": 0}
    assert found.shares == {
        "_background_": (12 + 9 + 16) / 64,
        "__ignore__": 2 / 64,
        "cat": 5 / 64,
        "dog": 20 / 64,
        "cow": 0,
    }


def test_label_that_no_photo_has_is_named_only_if_it_is_a_class(tmp_path):
    found = survey(write_voc(tmp_path / "voc", {"a": [[1, 1], [1, 1]]}))
    assert found.photos == {"cat": 1}
    assert found.shares == {"cat": 1}


def test_folder_of_which_nothing_can_be_read_has_a_survey_too(tmp_path):
    folder = write_voc(tmp_path / "voc", {"a": [[1]], "b": [[1]]})
    for path in (folder / "JPEGImages").iterdir():
        path.write_bytes(b"no photo")
    found = survey(folder)
    assert (found.num_photos, len(found.problems)) == (0, 2)
    assert (found.photos, found.shares) == ({"cat": 0}, {"cat": 0})
    assert (found.sizes, found.orientations, found.modes, found.num_turned) == ({}, {}, {}, 0)


def write_turned(folder: Path, name: str, orientation: int) -> None:
    """Stored 20 x 12."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    write_annotation(folder, name)
    Image.new("RGB", (20, 12)).save(folder / name, exif=exif)


def test_sizes_and_orientations_are_those_that_are_seen(tmp_path):
    write_pair(tmp_path, "lying.png", size=(20, 12))
    write_pair(tmp_path, "a-square.png", size=(12, 12))
    write_turned(tmp_path, "standing.jpg", 6)
    write_turned(tmp_path, "mirrored.jpg", 2)
    write_turned(tmp_path, "upright.jpg", 1)
    found = survey(tmp_path)
    assert found.sizes == {"20 x 12": 3, "12 x 12": 1, "12 x 20": 1}
    assert next(iter(found.sizes)) == "20 x 12"  # the most frequent first
    assert found.orientations == {"landscape": 3, "square": 1, "portrait": 1}
    assert found.num_turned == 2


def test_modes_are_those_of_the_files(tmp_path):
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "RGBA")):
        write_pair(tmp_path, f"a{number}.png", mode=mode)
    write_pair(tmp_path, "b.jpg", mode="CMYK")
    assert survey(tmp_path).modes == {"RGBA": 2, "RGB": 1, "L": 1, "P": 1, "CMYK": 1}


def test_photo_inside_its_annotation_counts_as_it_lies_there(tmp_path):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    Image.new("L", (20, 12)).save(buffer, "JPEG", exif=exif)
    path = write_annotation(tmp_path, "a.jpg", imageData=base64.b64encode(buffer.getvalue()).decode())
    found = survey(tmp_path)
    assert (found.sizes, found.modes, found.num_turned) == ({"20 x 12": 1}, {"L": 1}, 0)
    assert found.warnings[0].startswith(f"{path}: nothing outlined")


def test_drawn_cats_have_a_survey_too():
    photos = [survey_pair(pair) for pair in list_pairs("sample", CAT)[:12]]
    found = summarize("sample", CAT, photos, ())
    assert (found.sizes, found.modes, found.num_turned) == ({"192 x 192": 12}, {"RGB": 12}, 0)
    num_empty = sum(1 not in photo.pixels for photo in photos)
    assert (len(found.warnings), found.photos["cat"]) == (num_empty, 12 - num_empty)


# --- classes of a folder -------------------------------------------------------------------------------------------


def test_classes_of_a_labelme_folder_are_all_its_labels_sorted(tmp_path):
    write_annotation(tmp_path, "a.png", make_shape(label="dog"), make_shape(label="__ignore__"))
    write_annotation(tmp_path, "b.png", make_shape(label="cat"), make_shape(label="_background_"))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / ".hidden.json").write_text('{"imagePath": "a.png", "shapes": [{"label": "x", "points": [[0, 0]]}]}')
    assert find_classes(str(tmp_path)) == ("cat", "dog")


def test_classes_of_a_folder_without_any_label_are_cats(tmp_path):
    write_annotation(tmp_path, "a.png")
    assert find_classes(str(tmp_path)) == CAT
    assert find_classes(str(tmp_path / "gone")) == CAT
    assert find_classes("sample") == CAT


def test_classes_of_a_voc_folder_are_those_that_it_names_or_its_ids(tmp_path):
    folder = write_voc(tmp_path / "voc", TINY)
    assert find_classes(str(folder)) == tuple(f"id {label_id}" for label_id in range(1, 255))
    found = survey(folder, find_classes(str(folder)))
    assert found.photos == {"_background_": 3, "__ignore__": 1, "id 1": 2, "id 2": 2}  # not 252 that are nowhere
    (folder / "class_names.txt").write_text("_background_\ndog\ncat")
    assert find_classes(str(folder)) == ("dog", "cat")


def test_classes_of_an_image_set_are_those_of_its_folder(tmp_path):
    folder = write_voc(tmp_path / "voc", TINY)
    path = folder / "ImageSets" / "Segmentation" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("a\nd\n")
    assert len(find_classes(str(path))) == 254
    (folder / "class_names.txt").write_text("_background_\ncat\ndog")
    assert find_classes(str(path)) == ("cat", "dog")
    assert survey(path, ("cat", "dog")).photos == {"_background_": 1, "cat": 1, "dog": 1}


# --- nearly the same photos ----------------------------------------------------------------------------------------


def save_photo(folder: Path, name: str, photo: Image.Image) -> None:
    photo.save(folder / name, quality=85)
    write_annotation(folder, name, make_shape())


def test_near_photos_are_found_within_and_across_folders_and_nearest_first(tmp_path, draw_cat):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    cats = [Image.fromarray(draw_cat(index, 128, 96)[0]) for index in range(5)]
    save_photo(first, "a.png", cats[0])
    save_photo(first, "b.png", cats[1])
    save_photo(first, "b-small.jpg", cats[1].resize((64, 48)))
    save_photo(second, "a-again.png", cats[0])
    save_photo(second, "b-mirrored.jpg", ImageOps.mirror(cats[1]))
    save_photo(second, "other.png", cats[2])
    near = find_near_photos([look(first)[0], look(second)[0]])
    named = {(Path(pair.first).name, Path(pair.second).name, pair.across) for pair in near}
    assert named == {
        ("a.png", "a-again.png", True),
        ("b-small.jpg", "b.png", False),
        ("b.png", "b-mirrored.jpg", True),
        ("b-small.jpg", "b-mirrored.jpg", True),
    }
    assert (Path(near[0].first), Path(near[0].second), near[0].distance) == (first / "a.png", second / "a-again.png", 0)
    assert [pair.distance for pair in near] == sorted(pair.distance for pair in near)
    assert find_near_photos([]) == find_near_photos([[]]) == []


@pytest.mark.slow
def test_street_cats_stand_in_both_folders_of_their_publisher(real_data):
    folders = [look(real_data / "feral-cats" / name) for name in ("train", "valid")]
    assert [(len(facts), problems) for facts, problems in folders] == [(700, []), (195, [])]
    (without_cat,) = [line for facts, _ in folders for photo in facts for line in photo.warnings if "nothing" in line]
    assert "group0262" in without_cat
    near = find_near_photos([facts for facts, _ in folders])
    numbers = {(int(Path(p.first).stem[-4:]), int(Path(p.second).stem[-4:])) for p in near if p.across}
    assert len(near) <= 45 and len(numbers) == 16
    assert numbers >= {(151, 68), (158, 94), (191, 254), (69, 1092), (805, 805), (1099, 911), (1032, 485)}
    assert numbers >= {(229, 952), (66, 10)}
