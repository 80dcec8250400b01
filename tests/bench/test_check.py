"""`bench data check` as typed: exit codes, lines, reports; photos that are nearly the same."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from catseg.folder import list_pairs
from catseg.sample import NUM_PHOTOS

CAT = ("cat",)


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def write_mirrored(folder: Path, photo: Path) -> None:
    """A folder with the mirrored photo, and its annotation."""
    folder.mkdir()
    with Image.open(photo) as image:
        ImageOps.mirror(image).save(folder / "mirrored.jpg", quality=95)
    annotation = json.loads(photo.with_suffix(".json").read_text()) | {"imagePath": "mirrored.jpg"}
    (folder / "mirrored.json").write_text(json.dumps(annotation))


def list_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_clean_folder_is_said_to_be_clean_with_what_is_in_it(cats, bench):
    result = bench("data", "check", "cats")
    assert (result.exit_code, result.stderr) == (0, "")
    share = np.mean([pair.read()[1].mean() for pair in list_pairs("cats", CAT)])
    *lines, verdict = result.stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["cats:", "3", "photos", "read"],
        ["_background_", "3", "photos", f"{1 - share:.1%}", "of", "pixels"],
        ["cat", "3", "photos", f"{share:.1%}", "of", "pixels"],
        ["sizes:", "64", "x", "48", "(3)"],
        ["3", "landscape,", "3", "RGB"],
    ]
    assert verdict == "0 problems, 0 warnings"


def test_all_problems_are_listed_and_the_exit_code_is_2(cats, bench):
    (cats / "cat-0.json").write_text("{")
    (cats / "cat-2.jpg").unlink()
    result = bench("data", "check", "cats")
    assert result.exit_code == 2
    assert result.stdout.startswith("cats/cat-0.json: not a JSON file")
    assert "cats/cat-2.json: no photo" in result.stdout
    assert "cats: 1 photo read" in result.stdout
    assert "2 problems, 0 warnings" in result.stdout


def test_warnings_are_a_failure_only_if_one_is_strict(cats, bench):
    change(cats / "cat-1.json", shapes=[])
    for flags, exit_code in (((), 0), (("--strict",), 1)):
        result = bench("data", "check", "cats", *flags)
        assert result.exit_code == exit_code
        assert result.stdout.startswith("cats/cat-1.jpg: nothing outlined")
        assert "0 problems, 1 warning\n" in result.stdout
    (cats / "cat-0.json").write_text("{")
    assert bench("data", "check", "cats", "--strict").exit_code == 2
    change(cats / "cat-1.json", shapes=json.loads((cats / "cat-2.json").read_text())["shapes"])


def test_clean_folder_is_no_failure_even_if_one_is_strict(cats, bench):
    assert bench("data", "check", "cats", "--strict").exit_code == 0


def test_labels_file_makes_other_labels_problems(cats, bench):
    Path("labels.txt").write_text("__ignore__\n_background_\ndog\n")
    result = bench("data", "check", "cats", "--labels", "labels.txt")
    assert result.exit_code == 2
    assert result.stdout.count("unknown label 'cat'; known are _background_, __ignore__, dog") == 3
    assert "3 problems" in result.stdout
    result = bench("data", "check", "cats", "--labels", "nowhere.txt")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_photos_shared_with_any_of_several_folders_are_leaks(cats, bench):
    for number in (1, 2):
        write_mirrored(Path(f"other{number}"), cats / f"cat-{number}.jpg")
    result = bench("data", "check", "cats", "--against", "other1", "--against", "other2")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("nearly the same photo in two folders")
    pairs = {tuple(line.split()[1:]) for line in lines[1:3]}
    assert pairs == {(f"cats/cat-{number}.jpg", f"other{number}/mirrored.jpg") for number in (1, 2)}
    assert [lines.count(f"{name}: 1 photo read") for name in ("other1", "other2")] == [1, 1]
    assert lines[-1] == "0 problems, 2 warnings"
    strict = bench("data", "check", "cats", "--against", "other1", "--strict")
    assert strict.exit_code == 1


def test_twins_in_one_folder_are_no_leak(cats, bench):
    write_mirrored(Path("other"), cats / "cat-1.jpg")
    for path in Path("other").iterdir():
        path.rename(cats / path.name)
    lines = bench("data", "check", "cats").stdout.splitlines()
    assert lines[0].startswith("nearly the same photo more than once in a folder")
    assert lines[1].split()[1:] == ["cats/cat-1.jpg", "cats/mirrored.jpg"]
    assert lines[-1] == "0 problems, 1 warning"


def test_frames_of_one_scene_are_one_line_and_all_pairs_only_in_the_json(cats, bench):
    for number in range(8):
        write_mirrored(Path(f"other{number}"), cats / "cat-1.jpg")
        for path in Path(f"other{number}").iterdir():
            path.rename(cats / f"frame-{number}{path.suffix}")
        change(cats / f"frame-{number}.json", imagePath=f"frame-{number}.jpg")
    lines = bench("data", "check", "cats", "--json", "all.json").stdout.splitlines()
    assert lines[1].startswith("    0  cats/cat-1.jpg  cats/frame-0.jpg ") and lines[1].endswith("  and 5 more")
    assert lines[-1] == "0 problems, 1 warning"
    assert len(json.loads(Path("all.json").read_text())["near_duplicates"]) == 9 * 8 / 2


def test_folder_of_which_nothing_can_be_read_has_a_summary(cats, bench):
    """Of VOC layout and without class_names.txt, no class of it is known."""
    for path, content in (("JPEGImages/a.jpg", b""), ("SegmentationClass/a.png", b"")):
        (Path("voc") / path).parent.mkdir(parents=True, exist_ok=True)
        (Path("voc") / path).write_bytes(content)
    result = bench("data", "check", "voc")
    assert result.exit_code == 2
    assert "voc: 0 photos read" in result.stdout and "2 problems" in result.stdout


def test_all_folders_that_are_missing_are_named(cats, bench):
    result = bench("data", "check", "nowhere", "--against", "cats", "--against", "gone")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["nowhere", "gone"]


def test_more_labels_than_ids_are_refused(cats, bench):
    shapes = [{"label": f"cat {n}", "shape_type": "rectangle", "points": [[1, 1], [5, 5]]} for n in range(255)]
    change(cats / "cat-0.json", shapes=shapes)
    assert "256 labels" in bench("data", "check", "cats").stderr


def test_folder_below_one_called_image_sets_speaks_for_itself(cats, bench):
    cats.rename(Path("ImageSets"))
    Path("mine").mkdir()
    Path("ImageSets").rename("mine/ImageSets")
    for path in Path("mine/ImageSets").glob("*.json"):
        path.write_text(path.read_text().replace('"cat"', '"dog"'))
    result = bench("data", "check", "mine/ImageSets")
    assert result.exit_code == 0 and "  dog " in result.stdout


def test_folder_against_itself_is_looked_through_once(cats, bench):
    result = bench("data", "check", "cats", "--against", "cats")
    assert result.exit_code == 0
    assert result.stdout == bench("data", "check", "cats").stdout


@pytest.mark.parametrize("other", ["cats/", "./cats", "{}"])
def test_folder_against_itself_is_one_folder_however_it_is_spelt(cats, bench, other):
    result = bench("data", "check", "cats", "--against", other.format(cats))
    assert result.stdout == bench("data", "check", "cats").stdout


def test_json_holds_all_of_it(cats, bench):
    change(cats / "cat-0.json", shapes=[])
    (cats / "cat-2.json").write_text("{")
    write_mirrored(Path("other"), cats / "cat-1.jpg")
    assert bench("data", "check", "cats", "--against", "other", "--json", "report.json").exit_code == 2
    content = json.loads(Path("report.json").read_text())
    assert content.keys() == {"folders", "near_duplicates"}
    folder, other = content["folders"]
    assert (folder["source"], folder["num_photos"], other["source"], other["num_photos"]) == ("cats", 2, "other", 1)
    assert [line.partition(":")[0] for line in folder["problems"]] == ["cats/cat-2.json"]
    assert [line.partition(":")[0] for line in folder["warnings"]] == ["cats/cat-0.jpg"]
    assert (folder["photos"], folder["sizes"]) == ({"_background_": 2, "cat": 1}, {"64 x 48": 2})
    assert sum(folder["shares"].values()) == pytest.approx(1)
    (pair,) = content["near_duplicates"]
    assert (pair["first"], pair["second"], pair["across"]) == ("cats/cat-1.jpg", "other/mirrored.jpg", True)
    assert 0 <= pair["distance"] <= 30


def test_json_that_cannot_be_written_is_a_mistake_of_the_users(cats, bench):
    result = bench("data", "check", "cats", "--json", "gone/report.json")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("--json: gone/report.json: cannot be written")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gone",), "gone: no such folder"),
        (("labels.txt",), "labels.txt: no such folder"),
        (("empty",), "empty: neither Labelme annotations"),
        (("cats", "--against", "gone"), "gone: no such folder"),
        (("cats/ImageSets/train.txt",), "cats/ImageSets/train.txt: no such list"),
    ],
)
def test_wrong_path_is_one_line_and_2(cats, bench, arguments, words):
    Path("empty").mkdir()
    result = bench("data", "check", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(words)


def test_drawn_cats_are_checked_as_any_folder(bench):
    result = bench("data", "check", "sample")
    assert result.exit_code == 0
    assert f"sample: {NUM_PHOTOS} photos read" in result.stdout


@pytest.mark.parametrize("name", ["link.json", "pipe.json", "labels.txt", "cats/all.json"])
def test_report_replaces_nothing_but_a_report(cats, bench, name):
    Path("labels.txt").write_text("cat\n")
    Path("link.json").symlink_to("labels.txt")
    os.mkfifo("pipe.json")
    result = bench("data", "check", "cats", "--labels", "labels.txt", "--json", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"--json: {name}: ")
    assert Path("labels.txt").read_text() == "cat\n" and Path("link.json").is_symlink()


def test_labels_that_differ_by_case_alone_are_named(cats, bench):
    path = cats / "cat-0.json"
    path.write_text(path.read_text().replace('"cat"', '"Cat "'))
    assert "labels 'Cat ' and 'cat' differ by case" in bench("data", "check", "cats").stdout


def test_name_that_would_move_the_cursor_is_printed_as_text(cats, bench):
    for suffix in (".jpg", ".json"):
        (cats / f"cat-0{suffix}").rename(cats / f"a\n\x1b[31mb{suffix}")
    change(cats / "a\n\x1b[31mb.json", imagePath="a\n\x1b[31mb.jpg", shapes=[])
    output = bench("data", "check", "cats").stdout
    assert "\x1b" not in output and "a\\n\\x1b[31mb.jpg: nothing outlined" in output
