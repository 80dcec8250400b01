"""`bench export`: the best model as a folder, the same bytes each time, or nothing."""

import csv
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import certificate
from bench.export import _read_versions
from bench.journal import list_folders, read_result
from catseg.bundle import open_bundle
from catseg.checkpoint import load_model

TIMED = {"latency.json", "SHA256SUMS"}


@pytest.fixture
def in_finished(finished, template_store, monkeypatch):
    monkeypatch.chdir(finished)
    return finished


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def list_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_best_trial_leaves_with_its_weights_and_says_what_it_is(finished, bundle):
    (folder,) = finished.glob("mlruns/journal/tiny/lr=0.03-*")
    assert (bundle / "model.safetensors").read_bytes() == (folder / "best.safetensors").read_bytes()
    config, (_, card) = open_bundle(bundle).config, load_model(folder / "best.safetensors")
    assert config.card == card
    assert (config.init_features, config.classes, config.image_size, config.batch_size) == (4, ("cat",), 32, 2)
    text = (bundle / "MODEL_CARD.md").read_text("utf-8")
    assert f"**{read_result(folder).metrics['val/miou']:.4f}**" in text
    assert "{" not in text


def test_the_versions_are_the_libraries_own_whatever_package_they_came_in(monkeypatch):
    """As where onnxruntime-gpu is installed, and no package is called onnxruntime."""

    def find_nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    versions = _read_versions()  # some modules ask for their own when they are imported
    monkeypatch.setattr(importlib.metadata, "distribution", find_nothing)
    assert _read_versions() == versions
    assert {"catseg", "torch", "onnx", "onnxruntime", "numpy", "pillow"} <= versions.keys()
    assert versions["numpy"] == np.__version__


def test_each_file_is_scored_anew_in_its_own_runtime(finished, bundle):
    (folder,) = finished.glob("mlruns/journal/tiny/lr=0.03-*")
    scores, trial = (read_json(bundle / "certificate.json")[name] for name in ("runtimes", "trial"))
    assert {"torch", "onnx", "int8"} <= scores.keys()
    assert trial["val/miou"] == read_result(folder).metrics["val/miou"]
    assert read_json(bundle / "certificate.json")["repeated"]["val/miou"] == pytest.approx(trial["val/miou"], abs=1e-4)
    assert scores["torch"]["max_probability_difference"] == 0
    assert 0 < scores["onnx"]["max_probability_difference"] < 1e-4
    assert scores["onnx"]["mask_disagreement_ppm"] < 50
    assert 1e-4 < scores["int8"]["max_probability_difference"] < 0.5  # it does compute otherwise
    assert scores["int8"]["loses"] <= 0.005
    speeds = read_json(bundle / "latency.json")["speeds"]
    assert speeds.keys() == {*scores, "plain"}
    assert all(speed["photos_per_second"] > 0 for speed in speeds.values())


def test_a_files_miou_follows_from_its_lines_per_photo(bundle):
    rows = list(csv.DictReader((bundle / "per_photo.csv").read_text("utf-8").splitlines()))
    scores = read_json(bundle / "certificate.json")["runtimes"]
    for name, score in scores.items():
        mine = [row for row in rows if row["runtime"] == name]
        assert [row["photo"] for row in mine] == ["cat0", "cat1", "cat2", "cat3"]
        hits, false, missed = (
            sum(int(row[kind]) for row in mine) for kind in ("true_positives", "false_positives", "false_negatives")
        )
        assert score["miou"] == pytest.approx(hits / (hits + false + missed))


def test_golden_photos_are_drawn_ones_none_of_the_users(finished, bundle):
    users = {Image.open(path).convert("RGB").tobytes() for path in finished.glob("*/*.png")}
    golden = [path for path in bundle.glob("golden/*.png") if "_" not in path.name]
    assert len(golden) == 4
    assert all(Image.open(path).tobytes() not in users for path in golden)


def test_exported_again_the_files_are_the_same_to_the_byte_but_for_the_clocks(in_finished, bench, bundle, tmp_path):
    assert bench("export", "tiny", "--out", tmp_path / "again", "--int8").exit_code == 0
    first, second = list_files(bundle), list_files(tmp_path / "again")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name not in TIMED] == []


def test_a_trial_is_exported_by_name_by_key_and_by_run(in_finished, list_runs, template_store, bench, tmp_path):
    (run_id,) = [run.info.run_id for run in list_runs(in_finished) if run.data.params["lr"] == "0.0001"]
    (folder,) = in_finished.glob("mlruns/journal/tiny/lr=0.0001-*")
    key = folder.name.rpartition("-")[2]
    for number, words in enumerate((("--trial", folder.name), ("--trial", key), ("--run", run_id))):
        out = tmp_path / str(number)
        assert bench("export", *words, "--out", out).exit_code == 0
        assert (out / "model.safetensors").read_bytes() == (folder / "best.safetensors").read_bytes()
        assert not (out / "model.int8.onnx").exists()


def test_a_run_whose_trial_was_done_anew_since_is_not_taken_for_the_new_one(finished_copy, list_runs, bench):
    assert bench("sync").exit_code == 0
    (run_id,) = [run.info.run_id for run in list_runs(finished_copy) if run.data.params["lr"] == "0.03"]
    (path,) = finished_copy.glob("mlruns/journal/tiny/lr=0.03-*/settings.json")
    path.write_text(json.dumps(read_json(path) | {"execution": "another"}))
    result = bench("export", "--run", run_id, "--out", "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "another training of the same trial" in result.stderr
    assert not Path("out").exists()


def test_photos_that_were_held_out_are_held_out_again(tracked_workplace, write_grid, start_bench, bench):
    grid = write_grid(grid="loss: [bce_dice]", data="{train: photos, val_fraction: 0.4}")
    process = start_bench("run", "--grid", grid)
    process.communicate()
    assert process.returncode == 0
    assert bench("export", "--out", "out").exit_code == 0
    words = read_json(Path("out/certificate.json"))
    assert (words["data"]["train_photos"], words["data"]["val_photos"]) == (4, 2)
    assert words["repeated"]["val/miou"] == pytest.approx(words["trial"]["val/miou"], abs=1e-4)


def test_without_seeds_the_first_row_of_the_leaderboard_is_the_best(in_finished, bench, bundle):
    results = [result for path in list_folders(Path("mlruns/journal/tiny")).values() if (result := read_result(path))]
    best = max((r for r in results if r.status == "finished"), key=lambda result: result.metrics["val/miou"])
    assert read_json(bundle / "certificate.json")["trial"]["key"] == best.key


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nothing",), "no such experiment"),
        (("--trial", "unknown"), "no finished trial"),
        (("--trial", "some", "--run", "other"), "give one of them"),
        (("--trial", "lr=1e+30"), "no finished trial"),
        (("--run", "unknown"), "no run of a trial"),
        (("--val", "photos"), "but the trial's was"),
        (("--val", "nowhere"), "no such folder"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line_and_leaves_nothing(
    in_finished, template_store, bench, tmp_path, words, says
):
    result = bench("export", *words, "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_written_to(in_finished, bench, tmp_path):
    (tmp_path / "out").mkdir()
    result = bench("export", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is there already" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_that_the_result_does_not_vouch_for_are_refused(finished, bench, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    (path,) = Path().glob("mlruns/journal/tiny/lr=0.03-*/best.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = bench("export", "--out", "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "not what the trial wrote" in result.stderr


def lose(monkeypatch, runtime, share):
    """The scores of one runtime count that share of its hits as missed."""
    fill = certificate.score_photos

    def score(predictors, photos, scores):
        yield from fill(predictors, photos, scores)
        for counts_K3 in scores[runtime].counts:
            lost = (counts_K3[:, 0] * share).astype(np.int64)
            counts_K3[:, 0] -= lost
            counts_K3[:, 2] += lost

    monkeypatch.setattr("bench.export.score_photos", score)


def test_a_float32_file_that_loses_more_than_rounding_is_refused_and_leaves_nothing(
    in_finished, bench, tmp_path, monkeypatch
):
    lose(monkeypatch, "onnx", 0.01)
    result = bench("export", "--out", tmp_path / "deep/out")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "not written: onnx: val/miou" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_integers_that_lose_too_much_are_left_out_alone_and_that_is_said(in_finished, bench, tmp_path, monkeypatch):
    lose(monkeypatch, "int8", 0.02)
    result = bench("export", "--out", tmp_path / "out", "--int8")
    assert result.exit_code == 0
    assert "model.int8.onnx is left out" in result.stdout
    assert not open_bundle(tmp_path / "out").has_int8
    (line,) = read_json(tmp_path / "out/certificate.json")["left_out"]
    assert line.startswith("int8: val/miou")
    assert line in (tmp_path / "out/MODEL_CARD.md").read_text("utf-8")
    assert "int8" not in read_json(tmp_path / "out/certificate.json")["runtimes"]


def test_a_loss_within_the_limits_is_no_reason_to_refuse(in_finished, bench, tmp_path, monkeypatch):
    lose(monkeypatch, "int8", 0.002)
    assert bench("export", "--out", tmp_path / "out", "--int8").exit_code == 0
    assert open_bundle(tmp_path / "out").has_int8


def test_the_sums_are_those_of_sha256sum(bundle):
    for line in (bundle / "SHA256SUMS").read_text("ascii").splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest


ALONE = "numpy", "pillow", "onnxruntime"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The Python of a new environment with nothing but what the bundle's script wants."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = Path(__file__).parents[2] / "constraints.txt"
    install = [folder / "bin/pip", "install", "-q", "-c", constraints, *ALONE]
    if subprocess.run(install, check=False, capture_output=True).returncode:
        pytest.skip("no packages can be installed here")
    return folder / "bin/python"


def predict_alone(python, folder, photo, out):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-I", folder / "predict.py", photo, "--out", out]
    process = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_the_script_inside_needs_nothing_of_ours_and_makes_the_same_mask(bundle, bare_python, bench, tmp_path):
    check = "import importlib.util as u; print([n for n in ('torch', 'catseg', 'bench', 'onnx') if u.find_spec(n)])"
    assert subprocess.run([bare_python, "-I", "-c", check], check=True, capture_output=True).stdout == b"[]\n"
    photo = bundle / "golden/sample-0001.png"
    predict_alone(bare_python, bundle, photo, tmp_path / "alone")
    assert bench("predict", bundle, photo, "--out", tmp_path / "ours").exit_code == 0
    for name in ("sample-0001.png", "sample-0001_overlay.png"):
        mine, others = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("alone", "ours"))
        assert (mine != others).mean() <= 50e-6


@pytest.mark.slow
def test_on_the_tutorials_large_photo_the_script_makes_the_same_mask(bundle, bare_python, bench, real_data, tmp_path):
    photo = real_data / "tutorial-cats/JPEGImages/6.jpg"
    with Image.open(photo) as image:
        assert image.size == (1024, 640)
    predict_alone(bare_python, bundle, photo, tmp_path / "alone")
    assert bench("predict", bundle, photo, "--out", tmp_path / "ours").exit_code == 0
    mine, others = (np.asarray(Image.open(tmp_path / folder / f"{photo.stem}.png")) for folder in ("alone", "ours"))
    assert (mine != others).mean() <= 50e-6
