"""`bench data convert` and `sample` as typed: exit codes, lines, files; what a stop leaves."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cli import data_app
from catseg.dataset import DataConfig, load_data
from catseg.folder import list_pairs
from catseg.sample import draw_photo

CAT = ("cat",)


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
        annotation = tmp_path / f"cats/a{number}.json"
        annotation.write_text(annotation.read_text().replace("sample-0000.png", f"a{number}.png"))
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
