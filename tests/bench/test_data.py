"""`bench data check`, `convert` and `sample` as typed: exit codes, lines, files; what a stop leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from bench.cli import data_app
from catseg.dataset import DataConfig, load_data
from catseg.folder import list_pairs
from catseg.sample import NUM_PHOTOS, draw_photo

CAT = ("cat",)


@pytest.fixture
def cats(tmp_path, monkeypatch, write_labelme_folder):
    """A working folder with three outlined cats in `cats` and its labels.txt; nothing is wrong with them."""
    monkeypatch.chdir(tmp_path)
    write_labelme_folder(tmp_path / "cats", num=3)
    Path("labels.txt").write_text("__ignore__\n_background_\ncat\n")
    return tmp_path / "cats"


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


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(command.callback.__name__ for command in data_app.registered_commands))
def test_every_data_command_has_help_that_explains_each_of_its_arguments_and_options(command, bench):
    listed, own = bench("data", "--help"), bench("data", command, "--help")
    assert (listed.exit_code, own.exit_code) == (0, 0)
    assert f"  {command} " in listed.stdout
    options = [line.split() for line in own.stdout.splitlines() if line.startswith("  --")]
    assert options
    assert [words for words in options if len(words) < 3] == []


@pytest.mark.parametrize("command", [(), ("check",), ("convert",), ("label",), ("sample",)])
def test_help_on_data_waits_for_no_library(command):
    script = (
        "import sys, bench.cli\n"
        "try:\n    bench.cli.app(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'PIL', 'scipy', 'contourpy', 'shapely', 'imagehash', 'pooch', 'yaml'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "data", *command, "--help"]
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent.parent
    )
    assert (process.returncode, process.stdout.splitlines()[-1]) == (0, "heavy:")


def test_data_without_a_command_is_a_question_for_help(bench):
    assert "Commands:" in bench("data").output


# --- check ---------------------------------------------------------------------------------------------------------


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


# --- convert -------------------------------------------------------------------------------------------------------


def test_folder_is_converted_and_said_to_be(cats, bench):
    result = bench("data", "convert", "cats", "voc", "--labels", "labels.txt")
    assert (result.exit_code, result.stdout) == (0, "voc: 3 photos with masks; classes cat\n")
    assert [pair.name for pair in list_pairs("voc", CAT)] == ["cat-0", "cat-1", "cat-2"]
    again = bench("data", "convert", "cats", "voc", "--labels", "labels.txt")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "voc: is there already" in again.stderr


def test_folder_with_problems_is_not_converted(cats, bench):
    for number in (0, 2):
        (cats / f"cat-{number}.json").write_text("{")
    before = list_names(Path())
    result = bench("data", "convert", "cats", "voc", "--labels", "labels.txt")
    assert result.exit_code == 2
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["cats/cat-0.json", "cats/cat-2.json"]
    assert list_names(Path()) == before


def test_without_labels_nothing_is_converted(cats, bench):
    assert bench("data", "convert", "cats", "voc").exit_code == 2
    assert bench("data", "convert", "cats", "voc", "--labels", "gone.txt").exit_code == 2
    assert not Path("voc").exists()


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_a_command_leaves_nothing(tmp_path, start_bench, wait_until, signum, exit_code):
    process = start_bench("data", "sample", "cats", "--photos", "5000", cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob(".cats.*.tmp/*.json"))) > 5)
    process.send_signal(signum)
    output, errors = process.communicate()
    assert (process.returncode, output, "Traceback" in errors) == (exit_code, "", False)
    assert list_names(tmp_path) == []


def test_stopped_in_the_middle_a_conversion_leaves_nothing(tmp_path, start_bench, wait_until, bench):
    assert bench("data", "sample", tmp_path / "cats", "--photos", "1").exit_code == 0
    for number in range(1, 500):
        for suffix in (".json", ".png"):
            (tmp_path / f"cats/a{number}{suffix}").write_bytes((tmp_path / f"cats/sample-0000{suffix}").read_bytes())
        change(tmp_path / f"cats/a{number}.json", imagePath=f"a{number}.png")
    before = list_names(tmp_path)
    process = start_bench("data", "convert", "cats", "voc", "--labels", "cats/labels.txt", cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob(".voc.*.tmp/JPEGImages/*"))) > 5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert (process.returncode, output, "Traceback" in errors) == (130, "", False)
    assert list_names(tmp_path) == before


# --- sample --------------------------------------------------------------------------------------------------------


def test_sample_is_a_labelme_folder_of_drawn_cats_always_the_same(tmp_path, monkeypatch, bench):
    monkeypatch.chdir(tmp_path)
    for out in ("first", "again"):
        result = bench("data", "sample", out, "--photos", "3", "--seed", "7")
        assert result.exit_code == 0
        assert result.stdout == f"{out}: 3 drawn photos with exact outlines; labels in {out}/labels.txt\n"
    names = ["labels.txt", *(f"sample-000{number}.{suffix}" for number in range(3) for suffix in ("json", "png"))]
    assert list_names(Path("first")) == names
    for name in names:
        assert Path("first", name).read_bytes() == Path("again", name).read_bytes()
    assert Path("first/labels.txt").read_text() == "__ignore__\n_background_\ncat\n"
    for number, pair in enumerate(list_pairs("first", CAT)):
        for ours, theirs in zip(pair.read(), draw_photo(number, 7), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_other_seeds_draw_other_cats_and_the_usual_one_those_of_the_built_in_sample(tmp_path, bench):
    assert bench("data", "sample", tmp_path / "usual", "--photos", "2").exit_code == 0
    assert bench("data", "sample", tmp_path / "other", "--photos", "2", "--seed", "0").exit_code == 0
    for number in range(2):
        usual, other = (read_pixels(tmp_path / f"{name}/sample-000{number}.png") for name in ("usual", "other"))
        np.testing.assert_array_equal(usual, draw_photo(number)[0])
        assert (usual != other).any()


def test_written_sample_is_the_built_in_one_with_the_same_split(tmp_path, bench):
    assert bench("data", "sample", tmp_path / "cats").exit_code == 0
    written, built_in = (load_data(DataConfig(train=str(train)), [32]) for train in (tmp_path / "cats", "sample"))
    assert written.fingerprint == built_in.fingerprint
    assert [photos.names for photos in written.sets[32]] == [photos.names for photos in built_in.sets[32]]


def test_sample_goes_through_check_and_convert(tmp_path, monkeypatch, bench):
    monkeypatch.chdir(tmp_path)
    assert bench("data", "sample", "cats", "--photos", "4").exit_code == 0
    checked = bench("data", "check", "cats", "--labels", "cats/labels.txt")
    assert checked.exit_code == 0 and "0 problems" in checked.stdout
    assert bench("data", "convert", "cats", "voc", "--labels", "cats/labels.txt").exit_code == 0
    for number, pair in enumerate(list_pairs("voc", CAT)):
        np.testing.assert_array_equal(pair.read()[1], draw_photo(number)[1])


def test_one_drawn_photo_is_a_photo(tmp_path, bench):
    out = tmp_path / "one[red]"
    assert bench("data", "sample", out, "--photos", "1").stdout.startswith(f"{out}: 1 drawn photo with")


@pytest.mark.parametrize("photos", [0, -1])
def test_no_photos_are_refused(tmp_path, bench, photos):
    result = bench("data", "sample", tmp_path / "cats", "--photos", photos)
    assert result.exit_code == 2
    assert "--photos" in result.stderr
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("flags", [("--photos", "x"), ("--seed", "-1"), ("--colour", "red")])
def test_wrong_flag_draws_nothing(tmp_path, bench, flags):
    assert bench("data", "sample", tmp_path / "cats", *flags).exit_code == 2
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("there", ["file", "folder"])
def test_sample_is_never_drawn_over_what_is_there(tmp_path, bench, there):
    out = tmp_path / "cats"
    if there == "file":
        out.write_text("mine")
    else:
        (out / "mine").mkdir(parents=True)
    before = list_names(tmp_path)
    result = bench("data", "sample", out, "--photos", "2")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is there already" in result.stderr
    assert list_names(tmp_path) == before


def test_lines_on_a_pipe_are_whole_and_have_neither_bars_nor_escape_codes(cats, start_bench):
    """However long they are, for others read them."""
    long = cats.with_name("c" * 120)
    cats.rename(long)
    (long / "cat-0.json").write_text("{")
    for command in (("check", long), ("sample", cats.with_name("drawn[red]"), "--photos", "2")):
        process = start_bench("data", *map(str, command))
        output, errors = process.communicate()
        assert errors == ""
        assert all(line.isprintable() for line in output.splitlines())
        if command[0] == "check":
            assert output.startswith(f"{long}/cat-0.json: not a JSON file")
            assert "photo read\n" not in output and f"{long}: 2 photos read\n" in output
        else:
            assert "drawn[red]: 2 drawn photos" in output


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
