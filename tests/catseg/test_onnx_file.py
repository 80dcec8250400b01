"""The ONNX file computes what torch does, for photos of any size, by standard operators, in the same bytes."""

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from catseg.onnx_file import OPSET, PROBABILITY, compute_probability, dump_onnx
from catseg.runtimes import LOGITS, PHOTO
from catseg.settings import UNetConfig
from catseg.unet import UNet, make_unet

SIZES = [(1, 1), (31, 17), (257, 255), (640, 1024)]  # height, width


def make_trained(init_features=4, num_classes=2) -> UNet:
    """A network whose batch norms have seen something, and whose logits are of some size."""
    model = make_unet(UNetConfig(init_features, num_classes), seed=1).train()
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        model(torch.rand(2, 3, 32, 48, generator=generator))
    with torch.no_grad():
        model.head.weight.mul_(100)
    return model.eval()


def run(data: bytes, photo_BHW3: np.ndarray, output=PROBABILITY) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run([output], {PHOTO: photo_BHW3})[0]


def draw(batch, height, width) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return make_trained()


@pytest.fixture(scope="module")
def data(model):
    return dump_onnx(model)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_probabilities_equal_torchs_for_all_sizes_and_batches(model, data, height, width, batch):
    photo_BHW3 = draw(batch, height, width)
    expected = compute_probability(model, torch.from_numpy(photo_BHW3)).numpy()
    found = run(data, photo_BHW3)
    assert found.shape == (batch, 2, height, width)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4
    assert height == 1 or expected.std() > 0.03  # something was to be told


def test_a_photo_of_whole_strides_gets_the_networks_own_logits(model, data):
    photo_BHW3 = draw(1, 32, 48)
    with torch.inference_mode():
        expected = model(torch.from_numpy(photo_BHW3).permute(0, 3, 1, 2).float() / 255)
    assert np.abs(run(data, photo_BHW3, LOGITS) - expected.numpy()).max() < 1e-3 * expected.abs().max()


def test_what_lies_beyond_the_edge_is_black(data):
    photo_BHW3 = draw(1, 40, 50)
    framed = np.zeros((1, 48, 64, 3), np.uint8)
    framed[:, :40, :50] = photo_BHW3
    assert np.abs(run(data, photo_BHW3) - run(data, framed)[:, :, :40, :50]).max() < 1e-5


def test_same_weights_give_same_bytes_and_other_weights_others(model, data):
    assert dump_onnx(model) == data == dump_onnx(make_trained())
    assert dump_onnx(make_trained(init_features=2)) != data


def test_the_model_stays_as_it_is(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    dump_onnx(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_operators_are_standard_ones_of_the_stated_opset_and_batch_norm_is_none(data):
    model = onnx.load_from_string(data)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Cast", "Concat", "Conv", "DepthToSpace", "Div", "MaxPool", "Mod", "Pad", "Relu"} | {
        "Shape", "Sigmoid", "Slice", "Sub", "Transpose"
    }  # fmt: skip
    assert not any(weight.HasField("data_location") and weight.data_location for weight in model.graph.initializer)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 17), (257, 255)])
def test_openvino_reads_it_too(model, data, height, width):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    photo_BHW3 = draw(3, height, width)
    expected = compute_probability(model, torch.from_numpy(photo_BHW3)).numpy()
    assert np.abs(compiled(photo_BHW3)[PROBABILITY] - expected).max() < 1e-4
