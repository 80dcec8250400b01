"""Whether an ONNX file is one of ours, before a runtime opens it.

In:  bytes that may be broken or hostile.   Out: InputError, or nothing.
Knows nothing of what the weights are.
"""

import math

import onnx
from onnx import AttributeProto, TensorProto, helper

from catseg.errors import InputError, first_line
from catseg.onnx_file import OPSET, PROBABILITY
from catseg.runtimes import LOGITS, PHOTO

OPERATORS = {"Cast", "Concat", "Conv", "DepthToSpace", "Div", "MaxPool", "Mod", "Pad", "Relu", "Shape", "Sigmoid"} | {
    "Slice", "Sub", "Transpose", "QuantizeLinear", "DequantizeLinear"
}  # fmt: skip
PLAIN = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.STRING)


def check_onnx(data: bytes, where: str, num_classes: int) -> None:
    """A U-Net's standard operators alone, no files beside it, every weight as large as it says, our in- and outputs."""
    try:
        model = onnx.load_from_string(data)
        problem = _find_problem(model, num_classes)
        if problem is None:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's own
        problem = first_line(error)
    if problem is not None:
        raise InputError(f"{where}: not an ONNX file of catseg ({problem}); export the model again")


def _find_problem(model: onnx.ModelProto, num_classes: int) -> str | None:
    graph = model.graph
    foreign = {f"{node.domain}.{node.op_type}" for node in graph.node if node.domain or node.op_type not in OPERATORS}
    if foreign or model.functions or graph.sparse_initializer or model.training_info:
        return f"holds {', '.join(sorted(foreign)) or 'more than nodes and weights'}"
    if [(opset.domain, opset.version) for opset in model.opset_import] != [("", OPSET)]:
        return f"is not of opset {OPSET}"
    for tensor in graph.initializer:
        if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
            return f"{tensor.name} lies in another file"
        if not _is_whole(tensor):
            return f"{tensor.name} is not as large as it says"
    if any(attribute.type not in PLAIN for node in graph.node for attribute in node.attribute):
        return "a node holds more than numbers"
    ends = [
        (value.name, value.type.tensor_type.elem_type, _list_sides(value)) for value in (*graph.input, *graph.output)
    ]
    sides = ["batch", "height", "width"]
    expected = [(PHOTO, TensorProto.UINT8, [*sides, 3])]
    expected += [(name, TensorProto.FLOAT, ["batch", num_classes, *sides[1:]]) for name in (PROBABILITY, LOGITS)]
    return None if ends == expected else f"does not take {PHOTO} and give {PROBABILITY} and {LOGITS}"


def _is_whole(tensor: onnx.TensorProto) -> bool:
    """Whether as many values are there as its shape asks for."""
    num_values = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims):
        return False
    if tensor.raw_data or not num_values:
        return bool(len(tensor.raw_data) == num_values * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return num_values in (len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data))


def _list_sides(value: onnx.ValueInfoProto) -> list[str | int]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
