"""The commands as typed: help, exit codes, one line for each mistake of the user's."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cli import app

COMMANDS = sorted(command.callback.__name__ for command in app.registered_commands)


def check_refused(result, *words):
    """Exit code 2; on stderr one line that says where, what and what to do; nothing was begun."""
    assert result.exit_code == 2, result.stdout
    (line,) = result.stderr.splitlines()
    assert line.isprintable()
    assert ": " in line
    assert "Traceback" not in line
    for word in words:
        assert word in line
    assert not Path("mlflow.db").exists()
    assert not list(Path().glob("mlruns/journal/*/*/settings.json"))


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_explains_each_of_its_options(command, bench):
    listed = bench("--help")
    assert (listed.exit_code, f"  {command} " in listed.stdout) == (0, True)
    own = bench(command, "--help")
    assert own.exit_code == 0
    options = [line.split() for line in own.stdout.splitlines() if line.startswith("  --")]
    assert options
    assert [words for words in options if len(words) < 3] == []


def test_no_command_is_a_question_for_help(bench):
    assert "Commands:" in bench().output


def test_an_unknown_command_or_option_is_a_mistake_of_the_users(bench):
    assert bench("rum").exit_code == 2
    assert bench("run", "--gird", "grid.yaml").exit_code == 2
    assert bench("run").exit_code == 2


@pytest.mark.slow
def test_help_takes_at_most_twice_as_long_as_importing_typer():
    seconds = {"help": [], "typer": []}
    commands = {
        "help": [Path(sys.executable).with_name("bench"), "--help"],
        "typer": [sys.executable, "-c", "import typer"],
    }
    for _ in range(11):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first ones warm the cache
    assert medians["help"] <= 2 * medians["typer"], medians


# --- the user's mistakes -------------------------------------------------------------------------------------------


def drop_mask(folder):
    (folder / "cat1.json").unlink()


def drop_photo(folder):
    (folder / "cat1.png").unlink()


def truncate_jpeg(folder):
    with Image.open(folder / "cat1.png") as image:
        image.save(folder / "cat1.jpg")
    (folder / "cat1.png").unlink()
    whole = (folder / "cat1.jpg").read_bytes()
    (folder / "cat1.jpg").write_bytes(whole[: len(whole) // 2])
    change_annotation(folder, imagePath="cat1.jpg")


def outline_another_size(folder):
    change_annotation(folder, imageHeight=80)


def relabel(folder):
    shape = {"label": "dog", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    change_annotation(folder, shapes=[shape])


def break_json(folder):
    (folder / "cat1.json").write_text('{"shapes": [')


def climb_out(folder):
    change_annotation(folder, imagePath="../cat1.png")


def change_annotation(folder, **changes):
    path = folder / "cat1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_mask, ("cat1.png", "without annotation")),
        (drop_photo, ("cat1.json", "no photo")),
        (truncate_jpeg, ("cat1.jpg", "cannot be decoded")),
        (outline_another_size, ("cat1.json", "40 x 80", "40 x 40")),
        (relabel, ("cat1.json", "unknown label 'dog'", "cat")),
        (break_json, ("cat1.json", "not a JSON file")),
        (climb_out, ("cat1.json", "../cat1.png", "leaves the folder")),
    ],
)
def test_a_damaged_labelme_folder_is_refused_with_the_file_and_the_reason(workplace, write_grid, bench, damage, words):
    damage(workplace / "photos")
    check_refused(bench("run", "--grid", write_grid()), *words)


def make_voc(folder, mask_size=(40, 40), label=1):
    """A VOC folder of two photos; the second one's mask has this size and label."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    for name, size, value in (("tom", (40, 40), 1), ("kitty", mask_size, label)):
        Image.new("RGB", (40, 40), "grey").save(folder / "JPEGImages" / f"{name}.jpg")
        Image.new("L", size, value).save(folder / "SegmentationClass" / f"{name}.png")
    return folder


def test_a_mask_of_another_size_than_its_photo_is_refused(workplace, write_grid, bench):
    make_voc(workplace / "voc", mask_size=(40, 80))
    check_refused(bench("run", "--grid", write_grid(data="{train: voc}")), "kitty.png", "40 x 80", "40 x 40")


def test_a_voc_photo_without_a_mask_is_refused(workplace, write_grid, bench):
    (make_voc(workplace / "voc") / "SegmentationClass" / "kitty.png").unlink()
    check_refused(bench("run", "--grid", write_grid(data="{train: voc}")), "kitty.jpg", "without mask")


def test_a_label_of_no_class_is_refused(workplace, write_grid, bench):
    make_voc(workplace / "voc", label=7)
    check_refused(bench("run", "--grid", write_grid(data="{train: voc}")), "kitty.png", "unknown label")


@pytest.mark.parametrize("flags", [(), ("--val", "train")])
def test_all_damaged_files_are_listed_at_once_and_each_of_them_once(workplace, write_grid, bench, flags):
    for path in (workplace / "photos").glob("*.json"):
        path.write_text("{")
    result = bench("run", "--grid", write_grid(), *flags)
    assert result.exit_code == 2
    names = [line.partition(".json: not a JSON file")[0].rpartition("/")[2] for line in result.stderr.splitlines()]
    assert sorted(names) == [f"cat{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"grid": "colour: [red]"}, ("grid.yaml", "unknown key 'colour'")),
        ({"base": "{init_feature: 2}"}, ("grid.yaml", "did you mean init_features?")),
        ({"base": "{lr: 1e-3}"}, ("grid.yaml", "'1e-3'", "write 1.0e-3")),
        ({"grid": "lr: []"}, ("grid.yaml", "grid.lr", "at least one value")),
        ({"seeds": "[]"}, ("grid.yaml", "seeds", "at least one value")),
        ({"data": "{train: nowhere}"}, ("nowhere", "no such folder")),
        ({"data": "{train: null}"}, ("data.train", "--train")),
        ({"data": "{train: photos, val: nowhere}"}, ("nowhere", "no such folder")),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_wrong_experiment_file_is_refused_with_the_place_and_a_remedy(write_grid, bench, command, grid, words):
    check_refused(bench(command, "--grid", write_grid(**grid)), *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--grid", "nowhere.yaml"), ("nowhere.yaml", "no such experiment file")),
        (("--train", "nowhere"), ("nowhere", "no such folder")),
        (("--val", "nowhere"), ("nowhere", "no such folder")),
        (("--only", "loss=focal"), ("--only", "loss=focal", "bce_dice, dice")),
        (("--device", "gpu"), ("--device", "'gpu'", "cuda")),
        (("--device", "meta"), ("--device", "'meta'", "cpu")),
        (("--device", "cuda:99"), ("--device", "cuda:99")),
        (("--retry", "oom,boom"), ("--retry", "'boom'", "nonfinite")),
    ],
)
def test_a_wrong_flag_is_refused_with_its_name_and_a_remedy(write_grid, bench, flags, words):
    check_refused(bench("run", "--grid", write_grid(), *flags), *words)


def test_a_folder_without_photos_or_with_one_is_refused(workplace, write_grid, write_photos, bench):
    (workplace / "empty").mkdir()
    check_refused(bench("run", "--grid", write_grid(data="{train: empty}")), "empty", "outline the cats in Labelme")
    write_photos(workplace / "single", 1)
    check_refused(bench("run", "--grid", write_grid(data="{train: single}")), "cannot be split")


def test_a_real_process_says_it_on_stderr_alone_and_exits_with_2(workplace, write_grid, start_bench):
    write_grid(data="{train: nowhere}")
    process = start_bench("run", "--grid", "grid.yaml")
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors.splitlines() == ["nowhere: no such folder; check the path (in an experiment file it starts there)"]


def test_no_pages_without_a_store(workplace, bench):
    check_refused(bench("ui"), "mlflow.db", "nothing tracked here yet")


# --- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_finished(finished, list_runs, monkeypatch):
    """The finished folder as the working folder, its best checkpoint and that one's run."""
    monkeypatch.chdir(finished)
    (checkpoint,) = finished.glob("mlruns/journal/tiny/lr=0.03-*/best.safetensors")
    (run_id,) = [run.info.run_id for run in list_runs(finished) if run.data.params["lr"] == "0.03"]
    return checkpoint, run_id


def test_a_file_and_its_run_predict_the_same_mask_and_overlay_at_the_photos_own_size(
    in_finished, template_store, bench, tmp_path
):
    photo = tmp_path / "wide.v2.png"
    with Image.open("val/cat0.png") as image:
        image.resize((100, 60)).save(photo)
    for model, out in zip(in_finished, ("file", "run"), strict=True):
        result = bench("predict", model, photo, "--out", tmp_path / out)
        assert result.exit_code == 0
        assert str(tmp_path / out / "wide.v2.png") in result.stdout
    with (
        Image.open(tmp_path / "file/wide.v2.png") as mask,
        Image.open(tmp_path / "file/wide.v2_overlay.png") as overlay,
    ):
        assert (mask.mode, mask.size) == ("P", (100, 60))
        assert mask.getpalette()[:6] == [0, 0, 0, 0, 128, 0]
        assert set(np.unique(np.asarray(mask))) == {0, 1}
        assert (overlay.mode, overlay.size) == ("RGB", (100, 60))
    for name in ("wide.v2.png", "wide.v2_overlay.png"):
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_trained_model_finds_the_cat_in_a_photo_it_has_not_seen(in_finished, bench, tmp_path):
    assert bench("predict", in_finished[0], "test/cat1.png", "--out", tmp_path).exit_code == 0
    (left, top), (right, bottom) = json.loads(Path("test/cat1.json").read_text())["shapes"][0]["points"]
    truth_HW = np.zeros((40, 40), bool)
    truth_HW[top : bottom + 1, left : right + 1] = True
    with Image.open(tmp_path / "cat1.png") as image:
        predicted_HW = np.asarray(image) == 1
    assert (truth_HW & predicted_HW).sum() / (truth_HW | predicted_HW).sum() > 0.6


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere/best.safetensors", ("nowhere/best.safetensors", "no such checkpoint")),
        ("photos/cat0.png", ("photos/cat0.png", "not a checkpoint")),
        ("photos", ("photos", "not a bundle")),
        ("0123456789abcdef", ("0123456789abcdef", "neither a file nor a run")),
    ],
)
def test_what_is_no_model_is_refused(workplace, bench, model, words):
    check_refused(bench("predict", model, "photos/cat0.png", "--out", "out"), *words)
    assert not Path("out").exists()


def test_photos_that_cannot_be_read_are_refused_and_cost_the_others_nothing(in_finished, bench, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    photos = [tmp_path / "nowhere.jpg", tmp_path / "broken.jpg", "val/cat0.png"]
    result = bench("predict", in_finished[0], *photos, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert [name in line for name, line in zip(("nowhere", "broken"), result.stderr.splitlines(), strict=True)] == [
        True
    ] * 2
    assert (tmp_path / "out/cat0.png").is_file()


def test_a_prediction_never_overwrites_a_photo_or_another_prediction(in_finished, bench, tmp_path):
    before = Path("val/cat0.png").read_bytes()
    assert bench("predict", in_finished[0], "val/cat0.png", "--out", "val").exit_code == 2
    assert Path("val/cat0.png").read_bytes() == before
    assert bench("predict", in_finished[0], "val/cat0.png", "test/cat0.png", "--out", tmp_path / "out").exit_code == 2


def test_a_place_for_predictions_that_is_no_folder_is_refused(in_finished, bench, tmp_path):
    (tmp_path / "file").write_text("")
    result = bench("predict", in_finished[0], "val/cat0.png", "--out", tmp_path / "file")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_reader_that_has_seen_enough_is_no_traceback(finished, start_bench):
    """`bench plan | head -1`: the pipe is closed before the plan is printed."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start_bench("plan", "--grid", "grid.yaml", cwd=finished, stdout=write_end)
    os.close(write_end)
    _, errors = process.communicate()
    assert "Traceback" not in errors
