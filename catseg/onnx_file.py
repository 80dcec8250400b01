"""A trained U-Net -> an ONNX file that needs neither torch nor us, for photos of any size.

In:  a U-Net.   Out: the bytes of the file; and what it computes, by torch.
Knows nothing of folders, of fitting photos to a size, of who runs the file.
      (B batch, K classes, H height, W width in pixels)

The graph is written node by node: torch's exporters follow the size of an example, and their files
change with their version. Ours has standard operators alone, and equal weights give equal bytes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from catseg.folding import fold_batch_norm
from catseg.runtimes import LOGITS, PHOTO
from catseg.settings import STRIDE
from catseg.unet import UNet

OPSET, IR_VERSION = 17, 8  # of 2022: every runtime since reads them
PROBABILITY = "probability_BKHW"


class _Graph:
    """Nodes and weights in the order in which they are written down."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def keep(self, name: str, values: Any) -> str:
        array = values.detach().cpu().float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def dump_onnx(model: UNet) -> bytes:
    """The file. In: `photo_BHW3`, uint8 RGB, any B, H and W. Out: `probability_BKHW` 0..1 and the `logits_BKHW` before
    the sigmoid, both float32 and as large as the photos.

    Division by 255, black beyond the right and the lower edge up to the next multiple of 16, and cutting that off
    again are inside. Batch norms are folded. Photos of one batch have one size.
    """
    folded = fold_batch_norm(model)
    assert isinstance(folded, UNet)
    graph = _Graph()
    size = _add_input(graph)
    x, skips = "padded", []
    for level, encoder in enumerate(folded.encoders):
        x = _add_block(graph, f"encoder{level}", encoder, x)
        skips.append(x)
        x = graph.add("MaxPool", [x], f"pooled{level}", kernel_shape=[2, 2], strides=[2, 2])
    x = _add_block(graph, "bottleneck", folded.bottleneck, x)
    for level, (upsampler, decoder) in enumerate(zip(folded.upsamplers, folded.decoders, strict=True)):
        x = _add_upsampler(graph, f"upsampler{level}", upsampler, x)
        x = graph.add("Concat", [x, skips.pop()], f"beside{level}", axis=1)
        x = _add_block(graph, f"decoder{level}", decoder, x)
    x = _add_convolution(graph, "head", folded.head, x)
    starts, axes = graph.keep("crop_starts", np.zeros(2, np.int64)), graph.keep("crop_axes", np.array([2, 3]))
    graph.add("Slice", [x, starts, size, axes], LOGITS)
    graph.add("Sigmoid", [LOGITS], PROBABILITY)
    return _serialise(graph, model.config.num_classes)


def _add_input(graph: _Graph) -> str:
    """uint8 BHW3 -> `padded`; gives the name of the photos' own height and width."""
    turned = graph.add("Transpose", [PHOTO], "photo_B3HW", perm=[0, 3, 1, 2])
    size = graph.add("Shape", [turned], "size", start=2, end=4)
    floats = graph.add("Cast", [turned], "floats", to=TensorProto.FLOAT)
    scaled = graph.add("Div", [floats, graph.keep("white", np.float32(255))], "scaled")
    stride = graph.keep("stride", np.array([STRIDE, STRIDE]))
    over = graph.add("Mod", [size, stride], "over")  # of what is above 0: runtimes disagree on the rest
    up_to = graph.add("Sub", [stride, over], "up_to")
    beyond = graph.add("Mod", [up_to, stride], "beyond")
    pads = graph.add("Concat", [graph.keep("no_pads", np.zeros(6, np.int64)), beyond], "pads", axis=0)
    graph.add("Pad", [scaled, pads], "padded")
    return size


def _add_block(graph: _Graph, name: str, block: nn.Module, x: str) -> str:
    """Convolutions and ReLUs; where batch norms were is nothing."""
    assert isinstance(block, nn.Sequential)
    for index, layer in enumerate(block):
        if isinstance(layer, nn.ReLU):
            x = graph.add("Relu", [x], f"{name}_{index}")
        elif not isinstance(layer, nn.Identity):
            x = _add_convolution(graph, f"{name}_{index}", layer, x)
    return x


def _add_convolution(graph: _Graph, name: str, layer: nn.Module, x: str) -> str:
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None and isinstance(layer.padding, tuple)
    inputs = [x, graph.keep(f"{name}_weight", layer.weight), graph.keep(f"{name}_bias", layer.bias)]
    return graph.add("Conv", inputs, name, kernel_shape=list(layer.kernel_size), pads=list(layer.padding * 2))


def _add_upsampler(graph: _Graph, name: str, layer: nn.Module, x: str) -> str:
    """A transposed convolution whose windows do not overlap, as what it is: a matrix that gives each pixel's four.

    Runtimes compute that faster, and in integers, too, which few can do of transposed convolutions.
    """
    assert isinstance(layer, nn.ConvTranspose2d) and layer.kernel_size == layer.stride == (2, 2)
    assert layer.bias is not None
    weight_CO22 = layer.weight.detach()
    weight_M = weight_CO22.flatten(1).t()[:, :, None, None]  # an output channel: 4 rows
    inputs = [x, graph.keep(f"{name}_weight", weight_M), graph.keep(f"{name}_bias", layer.bias.repeat_interleave(4))]
    fours = graph.add("Conv", inputs, f"{name}_fours", kernel_shape=[1, 1])
    return graph.add("DepthToSpace", [fours], name, blocksize=2, mode="CRD")


def _serialise(graph: _Graph, num_classes: int) -> bytes:
    sides = ["height", "width"]
    inputs = [helper.make_tensor_value_info(PHOTO, TensorProto.UINT8, ["batch", *sides, 3])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", num_classes, *sides])
        for name in (PROBABILITY, LOGITS)
    ]
    body = helper.make_graph(graph.nodes, "unet", inputs, outputs, graph.weights)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="catseg")
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


@torch.inference_mode()
def compute_probability(model: UNet, photo_BHW3: torch.Tensor) -> torch.Tensor:
    """What the file computes as `probability_BKHW`, by torch in float32: the reference it is held against."""
    height, width = photo_BHW3.shape[1:3]
    photo_B3HW = photo_BHW3.permute(0, 3, 1, 2).float() / 255
    padded_B3HW = F.pad(photo_B3HW, (0, -width % STRIDE, 0, -height % STRIDE))
    probability_BKHW: torch.Tensor = fold_batch_norm(model)(padded_B3HW).sigmoid()[:, :, :height, :width]
    return probability_BKHW
