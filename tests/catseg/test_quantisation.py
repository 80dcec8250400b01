"""A network in integers: nearly the same answers, the same bytes each time, nothing but standard operators."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from catseg.inference import make_predictor
from catseg.losses import LOSSES, sum_terms
from catseg.onnx_check import check_onnx
from catseg.onnx_file import PROBABILITY, dump_onnx
from catseg.quantisation import quantise
from catseg.runtimes import PHOTO, RUNTIMES, is_installed, list_runtimes, open_file, to_bytes
from catseg.settings import UNetConfig
from catseg.unet import make_unet


@pytest.fixture(scope="module")
def photos(make_set):
    return make_set(8, 32)


@pytest.fixture(scope="module")
def data(photos):
    """A network that has learnt a little."""
    model = make_unet(UNetConfig(4), seed=0).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    photo_B3SS = torch.tensor(photos.photo_NSS3).permute(0, 3, 1, 2).float() / 255
    for _ in range(20):
        optimizer.zero_grad()
        LOSSES["bce_dice"](sum_terms(model(photo_B3SS), torch.tensor(photos.mask_NSS))).backward()
        optimizer.step()
    return dump_onnx(model.eval())


@pytest.fixture(scope="module")
def integers(data, photos):
    return quantise(data, photos.photo_NSS3)


def run(data, photo_BHW3):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run([PROBABILITY], {PHOTO: photo_BHW3})[0]


def test_answers_are_nearly_the_same_and_the_file_far_smaller(data, integers, photos):
    exact, near = run(data, photos.photo_NSS3), run(integers, photos.photo_NSS3)
    assert 0 < np.abs(exact - near).mean() < 0.03
    assert ((exact > 0.5) != (near > 0.5)).mean() < 0.03
    assert exact.std() > 0.1
    weights = {
        tensor.data_type for tensor in onnx.load_from_string(integers).graph.initializer if "weight" in tensor.name
    }
    assert onnx.TensorProto.INT8 in weights


def test_it_still_takes_any_size_and_batch(integers):
    for shape in ((1, 1, 1, 3), (3, 31, 17, 3), (8, 33, 48, 3)):
        assert run(integers, np.zeros(shape, np.uint8)).shape == (shape[0], 1, *shape[1:3])


def test_equal_photos_give_equal_bytes(data, integers, photos):
    assert quantise(data, photos.photo_NSS3) == integers


def test_it_passes_the_check_of_files(data, integers):
    check_onnx(integers, "model.int8.onnx", 1)
    check_onnx(data, "model.onnx", 1)


def test_every_convolution_but_the_head_is_in_integers(integers):
    nodes = onnx.load_from_string(integers).graph.node
    made_by = {output: node for node in nodes for output in node.output}
    floats = [n.name for n in nodes if n.op_type == "Conv" and made_by[n.input[0]].op_type != "DequantizeLinear"]
    assert floats in ([], ["head"])
    assert sum(node.op_type == "Conv" for node in nodes) == 18 + 4 + 1


def test_photos_come_back_from_floats_as_the_bytes_they_were():
    photo_1HW3 = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).view(1, 16, 16, 3)
    assert np.array_equal(to_bytes(photo_1HW3.permute(0, 3, 1, 2).float().div(255)), photo_1HW3.numpy())


OTHERS = [name for name, runtime in RUNTIMES.items() if runtime.library != "torch"]


@pytest.mark.parametrize("runtime", [name for name in list_runtimes(has_int8=True) if name in OTHERS])
def test_a_file_takes_the_place_of_torchs_network(data, integers, photos, runtime):
    predictor = open_file(integers if runtime == "int8" else data, "file", runtime, 1)
    assert make_predictor(predictor, "auto", torch.device("cpu")) is predictor
    photo_B3SS = torch.tensor(photos.photo_NSS3).permute(0, 3, 1, 2).float() / 255
    probability_B1SS = predictor.network(photo_B3SS).sigmoid().numpy()
    assert np.abs(probability_B1SS - run(data, photos.photo_NSS3)).mean() < 0.03


def test_bytes_that_no_runtime_opens_are_refused(refusal):
    assert "cannot open it" in refusal(open_file, b"nothing", "model.onnx", "onnx", 1)


def test_a_library_that_is_not_there_is_named_with_its_remedy(refusal, monkeypatch):
    monkeypatch.setattr("catseg.runtimes.is_installed", lambda library: library == "torch")
    assert "pip install 'catseg[export]'" in refusal(open_file, b"", "model.onnx", "onnx", 1)
    assert [name for name in list_runtimes(has_int8=True) if not name.startswith("torch")] == []


def test_the_runtimes_are_those_of_the_command_line():
    from bench.cli import Runtime

    assert [runtime.value for runtime in Runtime] == list(RUNTIMES)
    assert is_installed("torch")
