"""`bench verify` and `bench evaluate`: a bundle that was changed in any way is refused in one line."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from catseg.bundle import format_sums, load_predictor, open_bundle
from catseg.checkpoint import ModelCard, dump_model
from catseg.runtimes import list_runtimes
from catseg.settings import UNetConfig
from catseg.unet import make_unet


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle to be spoilt."""
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.fixture
def refused(bench):
    """refused(folder): the one line with which `bench verify` refuses it."""

    def refuse(folder):
        result = bench("verify", folder)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        return result.stderr

    return refuse


def write(folder, name, data):
    """Change a file and make the sums fit again, as whoever wants to deceive would."""
    (folder / name).write_bytes(data)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]
    (folder / "SHA256SUMS").write_bytes(format_sums(files))


def change_config(folder, **changes):
    write(folder, "config.json", json.dumps(json.loads((folder / "config.json").read_text()) | changes).encode())


def test_a_bundle_is_whole_and_does_what_it_did_in_every_runtime(bundle, bench):
    result = bench("verify", bundle)
    assert (result.exit_code, result.stderr) == (0, "")
    first, *runtimes = result.stdout.splitlines()
    assert first.endswith("each what its sum says")
    names = [line.split()[0] for line in runtimes]
    assert names == list_runtimes(has_int8=True)
    assert {"torch", "onnx", "int8"} <= set(names)
    assert all("does what it did" in line for line in runtimes)


def test_a_changed_byte_in_any_file_is_found(bundle, copy, refused):
    for name in sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()):
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        line = refused(copy)
        assert name in line or name in ("SHA256SUMS", "config.json"), (name, line)
        (copy / name).write_bytes((bundle / name).read_bytes())


def test_what_does_not_belong_or_is_missing_is_named(copy, refused):
    (copy / "golden/notes.txt").touch()
    assert "notes.txt: does not belong" in refused(copy)
    (copy / "golden/notes.txt").unlink()
    (copy / "run.pt").touch()
    assert "run.pt: does not belong" in refused(copy)
    (copy / "run.pt").unlink()
    (copy / "golden/deep").mkdir()
    assert "no plain file" in refused(copy)
    (copy / "golden/deep").rmdir()
    os.mkfifo(copy / "golden/sample-0009.png")
    assert "no plain file" in refused(copy)
    (copy / "golden/sample-0009.png").unlink()
    (copy / "model.onnx").unlink()
    assert "model.onnx: is missing" in refused(copy)
    assert "no such folder" in refused(copy / "nowhere")


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "golden"])
def test_links_are_refused(copy, bundle, refused, name):
    shutil.rmtree(copy / name) if name == "golden" else (copy / name).unlink()
    (copy / name).symlink_to(bundle / name)
    assert f"{name}: is a link" in refused(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_features": 8}, "model.safetensors: another network"),
        ({"init_features": 2}, "model.safetensors: another network"),
        ({"init_features": 4096}, "must be 1 to 512"),
        ({"init_features": True}, "a whole number"),
        ({"image_size": 64}, "model.safetensors: another network"),
        ({"image_size": 33}, "multiple of 16"),
        ({"classes": ["dog"]}, "model.safetensors: another network"),
        ({"classes": []}, "num_classes"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "int4"}, "precision"),
        ({"threshold": 0.4}, "threshold"),
        ({"normalisation": "none"}, "normalisation"),
        ({"format": "catseg-bundle-9"}, "format"),
        ({"backdoor": 1}, "backdoor: unknown"),
        ({"versions": [1]}, "versions"),
    ],
)
def test_a_config_that_says_something_else_is_refused_though_the_sums_fit(copy, refused, changes, says):
    change_config(copy, **changes)
    assert says in refused(copy)


def test_a_config_that_is_no_json_or_lacks_a_key_is_refused(copy, refused):
    write(copy, "config.json", b"[" * 100_000)
    assert "not JSON" in refused(copy)
    write(copy, "config.json", b"{}")
    assert "missing" in refused(copy)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def make_giant_header(data):
    return struct.pack("<Q", 2**40) + data[8:]


def make_other_shape(data):
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"shape":[4,3,3,3]', b'"shape":[4,3,3,9]')
    return data[:8] + header + data[8 + length :]


@pytest.mark.parametrize(
    "spoil", [lambda data: pickle.dumps(Trap()), make_giant_header, make_other_shape, lambda _: b""]
)
def test_weights_that_are_none_are_refused_and_nothing_in_them_runs(copy, refused, monkeypatch, tmp_path, spoil):
    monkeypatch.chdir(tmp_path)
    write(copy, "model.safetensors", spoil((copy / "model.safetensors").read_bytes()))
    assert "model.safetensors: not a checkpoint" in refused(copy)
    assert not Path("sprung").exists()


def test_a_file_larger_than_its_network_is_refused_before_it_is_read(copy, refused):
    with (copy / "model.onnx").open("r+b") as file:
        file.truncate(2**33)  # a hole: takes no room
    assert "bytes where" in refused(copy)


def spoil_graph(folder, change):
    model = onnx.load_from_string((folder / "model.onnx").read_bytes())
    change(model)
    write(folder, "model.onnx", model.SerializeToString())


def lie_elsewhere(model):
    tensor = model.graph.initializer[1]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def claim_more(model):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("weight"))
    tensor.dims[0] = 2**40


def call_custom(model):
    model.graph.node[0].domain = "com.example"


def call_loop(model):
    model.graph.node.append(helper.make_node("Loop", [], []))


def hold_a_tensor(model):
    model.graph.node[0].attribute.append(helper.make_attribute("big", numpy_helper.from_array(np.zeros(3))))


def take_floats(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def raise_opset(model):
    model.opset_import[0].version = 22


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lie_elsewhere, "another file"),
        (claim_more, "not as large as it says"),
        (call_custom, "com.example"),
        (call_loop, "Loop"),
        (hold_a_tensor, "more than numbers"),
        (take_floats, "does not take"),
        (raise_opset, "opset"),
    ],
)
def test_a_graph_that_is_not_ours_is_refused_before_a_runtime_opens_it(copy, refused, change, says):
    spoil_graph(copy, change)
    line = refused(copy)
    assert "model.onnx: not an ONNX file of catseg" in line
    assert says in line


def test_bytes_that_are_no_graph_are_refused(copy, refused):
    write(copy, "model.onnx", b"\x08\x08 not a graph")
    assert "model.onnx: not an ONNX file of catseg" in refused(copy)


def test_other_weights_of_the_same_shape_are_found_by_what_they_predict(copy, bundle, refused):
    card = ModelCard(UNetConfig(4), ("cat",), 32, json.loads((bundle / "config.json").read_text())["epoch"])
    write(copy, "model.safetensors", dump_model(make_unet(card.unet, seed=5), card))
    assert "predicts otherwise than golden in torch" in refused(copy)


def zero_the_head(model):
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head_bias"]
    bias.raw_data = np.float32([1000]).tobytes()


def test_an_onnx_file_that_predicts_otherwise_is_found(copy, refused):
    spoil_graph(copy, zero_the_head)
    assert "predicts otherwise than golden in onnx" in refused(copy)


@pytest.mark.parametrize("runtime", [None, "torch", "onnx", "int8"])
def test_evaluate_repeats_the_runs_own_score_and_each_runtimes(bundle, finished, bench, runtime):
    certificate = json.loads((bundle / "certificate.json").read_text())
    words = [] if runtime is None else ["--runtime", runtime]
    result = bench("evaluate", bundle, "--data", finished / "val", *words)
    assert result.exit_code == 0
    (value,) = [line.split()[1] for line in result.stdout.splitlines() if line.split()[0] == "miou"]
    expected = certificate["trial"]["val/miou"] if runtime is None else certificate["runtimes"][runtime]["miou"]
    assert float(value) == pytest.approx(expected, abs=6e-5)


def test_predict_takes_a_bundle_and_each_of_its_runtimes(bundle, finished, bench, tmp_path):
    photo = finished / "val/cat1.png"
    masks = {}
    for runtime in ("torch", "onnx", "int8"):
        out = tmp_path / runtime
        assert bench("predict", bundle, photo, "--out", out, "--runtime", runtime, "--labelme").exit_code == 0
        masks[runtime] = np.asarray(Image.open(out / "cat1.png"))
        assert (out / "labelme/cat1.json").is_file()
    assert 0.1 < (masks["onnx"] > 0).mean() < 0.9
    assert all((mask != masks["onnx"]).mean() < 0.02 for mask in masks.values())
    assert bench("predict", bundle, photo, "--out", tmp_path / "default", "--worst", 1).exit_code == 0
    assert (tmp_path / "default/cat1.png").read_bytes() == (tmp_path / "onnx/cat1.png").read_bytes()


@pytest.mark.parametrize("runtime", ["torch", "torch-bfloat16"])
def test_torchs_file_is_opened_on_the_device_that_was_asked_for(bundle, runtime):
    predictor = load_predictor(open_bundle(bundle), runtime, 1, torch.device("meta"))
    assert {value.device.type for value in predictor.network.parameters()} == {"meta"}
    assert predictor.device == torch.device("meta")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_gpu_for_a_runtime_that_has_none_is_refused_in_one_line(
    bundle, finished, bench, monkeypatch, tmp_path, command
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    words = {"predict": [finished / "val", "--out", tmp_path / "out"], "evaluate": ["--data", finished / "val"]}
    result = bench(command, bundle, *words[command], "--runtime", "onnx", "--device", "cuda")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "onnx runs on the CPU" in result.stderr
    assert not (tmp_path / "out").exists()


def test_predict_refuses_a_spoilt_bundle_and_a_runtime_that_a_checkpoint_lacks(copy, finished, bench, tmp_path):
    (copy / "predict.py").write_text("import os")
    photo = finished / "val/cat1.png"
    result = bench("predict", copy, photo, "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "not what its sum says" in result.stderr
    result = bench("predict", copy / "model.safetensors", photo, "--out", tmp_path / "out", "--runtime", "onnx")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is no bundle" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_integers_says_so(copy, finished, bench, tmp_path):
    (copy / "model.int8.onnx").unlink()
    write(copy, "predict.py", (copy / "predict.py").read_bytes())
    assert bench("verify", copy).exit_code == 0
    result = bench("predict", copy, finished / "val/cat1.png", "--out", tmp_path / "out", "--runtime", "int8")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has no model.int8.onnx" in result.stderr


BARE = """
import sys
sys.modules |= dict.fromkeys(("onnx", "onnxruntime", "openvino"))  # as if they were not installed
from bench.cli import main
main()
"""


def run_bare(folder, *words):
    command = [sys.executable, "-c", BARE, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_where_no_onnx_is_installed_one_line_says_so_and_torch_does_the_rest(bundle, finished, tmp_path):
    photo, out = finished / "val/cat1.png", tmp_path / "out"
    for words in (("export", "--out", out), ("verify", bundle), ("predict", bundle, photo, "--out", out)):
        process = run_bare(finished, *words)
        assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
        assert "is not installed; pip install 'catseg[export]'" in process.stderr
    for words in (
        ("predict", bundle, photo, "--out", out, "--runtime", "torch"),
        ("predict", bundle / "model.safetensors", photo, "--out", out),
        ("evaluate", bundle, "--data", "val"),
    ):
        process = run_bare(finished, *words)
        assert (process.returncode, process.stderr) == (0, "")


def test_evaluate_on_photos_that_are_not_there_is_one_line(bundle, bench):
    result = bench("evaluate", bundle, "--data", "nowhere")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
