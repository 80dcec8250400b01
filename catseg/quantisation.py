"""A network's ONNX file -> one that computes with 8-bit integers.

In:  the bytes of the file, photos of the kind that it will see.   Out: the bytes of another.
Knows nothing of how much accuracy that costs: whoever keeps the file measures it.
      (N photos, S side in pixels)
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from catseg.photo import UInt8
from catseg.runtimes import PHOTO

NUM_CALIBRATION_PHOTOS = 64
# The head is a hundredth of the work, and eight bits of a logit would move every border.
OPERATORS, KEPT_IN_FLOAT32 = ["Conv", "Relu", "MaxPool", "Concat"], ["head", "pads"]


class _Photos:
    """What onnxruntime asks for photos, one by one, until there are none."""

    def __init__(self, photo_NSS3: UInt8) -> None:
        self.photos: Iterator[UInt8] = iter(photo_NSS3[:, None])

    def get_next(self) -> dict[str, UInt8] | None:
        photo_1SS3 = next(self.photos, None)
        return None if photo_1SS3 is None else {PHOTO: photo_1SS3}


def quantise(data: bytes, photo_NSS3: UInt8) -> bytes:
    """Convolutions in integers: weights by channel, symmetric; what flows between them by the range it had on the
    photos, which were fitted as the network's always are. Equal input, equal bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.int8.onnx"
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)  # advice on how to prepare files of other makers
        try:
            quantize_static(
                onnx.load_from_string(data),
                path,
                _Photos(photo_NSS3),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                nodes_to_exclude=KEPT_IN_FLOAT32,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            logging.disable(level)
        model = onnx.load_from_string(path.read_bytes())
    return bytes(model.SerializeToString(deterministic=True))
