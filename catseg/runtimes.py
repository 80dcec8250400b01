"""The files of a model, each run by the library it is for.

In:  the bytes of an ONNX file, the name of a runtime.   Out: a Predictor that takes the place of torch's.
Knows nothing of folders or of how a file was made.      (B batch, K classes, H height, W width in pixels)

Files are opened from their bytes alone: an ONNX file that names others beside it finds none.
"""

import importlib.util
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from catseg.device import choose_precision
from catseg.errors import InputError, first_line
from catseg.inference import Predictor
from catseg.photo import UInt8

PHOTO, LOGITS = "photo_BHW3", "logits_BKHW"
INSTALL = "pip install 'catseg[export]'"


@dataclass(frozen=True)
class Runtime:
    """One way from a file to logits. All are on the CPU, torch's alone on a GPU, too."""

    file: str
    library: str  # that must be installed
    precision: str  # torch's and OpenVINO's choice; what the others do


RUNTIMES = {
    "torch": Runtime("model.safetensors", "torch", "float32"),
    "torch-bfloat16": Runtime("model.safetensors", "torch", "bfloat16"),
    "onnx": Runtime("model.onnx", "onnxruntime", "float32"),
    "int8": Runtime("model.int8.onnx", "onnxruntime", "int8"),
    "openvino": Runtime("model.onnx", "openvino", "float32"),
    "openvino-bfloat16": Runtime("model.onnx", "openvino", "bfloat16"),
}


class _Session(nn.Module):
    """A file in onnxruntime in place of a U-Net: photo_B3HW, floats 0..1 -> logits_BKHW. Threads may share it."""

    def __init__(self, data: bytes, num_threads: int) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3  # errors
        # threads that wait for work by turning in circles take the cores from who is timed next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def forward(self, photo_B3HW: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run([LOGITS], {PHOTO: to_bytes(photo_B3HW)})[0])


class _Compiled(nn.Module):
    """The same in OpenVINO."""

    def __init__(self, data: bytes, precision: str, num_threads: int) -> None:
        import openvino

        super().__init__()
        core = openvino.Core()
        hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": num_threads}
        self.compiled: Any = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings)

    def forward(self, photo_B3HW: torch.Tensor) -> torch.Tensor:
        request = self.compiled.create_infer_request()  # a thread's own
        return torch.from_numpy(np.array(request.infer({PHOTO: to_bytes(photo_B3HW)})[LOGITS]))


def to_bytes(photo_B3HW: torch.Tensor) -> UInt8:
    """photo_BHW3 uint8, exactly what photo_B3HW, floats 0..1, was made of: the files divide by 255 themselves."""
    photo_BHW3 = (photo_B3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(photo_BHW3.cpu().numpy())


def open_file(data: bytes, where: str, name: str, num_threads: int) -> Predictor:
    """An ONNX file made ready for inference; `where` is what it is called in a refusal, `name` one of RUNTIMES."""
    runtime = RUNTIMES[name]
    require(runtime.library, otherwise=", or use --runtime torch")
    try:
        if runtime.library == "onnxruntime":
            network: nn.Module = _Session(data, num_threads)
        else:
            network = _Compiled(data, runtime.precision, num_threads)
    except Exception as error:  # whatever a library raises on a file that is none
        reason = first_line(error)
        raise InputError(f"{where}: {runtime.library} cannot open it ({reason}); export the model again") from None
    return Predictor(network, torch.float32, torch.device("cpu"))


def check_device(name: str | None, device_name: str) -> None:
    """InputError if a GPU was asked for and the runtime that was named is another's than torch's."""
    if name is not None and RUNTIMES[name].library != "torch" and device_name.startswith("cuda"):
        raise InputError(f"--device: {device_name} asked for, {name} runs on the CPU; use cpu, or --runtime torch")


def require(*libraries: str, otherwise: str = "") -> None:
    """InputError if one of those that a machine may do without is not there."""
    for library in libraries:
        if not is_installed(library):
            remedy = f"pip install {library}" if library == "openvino" else INSTALL
            raise InputError(f"{library}: is not installed; {remedy}{otherwise}")


def is_installed(library: str) -> bool:
    """Whether a library could be imported; it is not."""
    return importlib.util.find_spec(library) is not None


def list_runtimes(has_int8: bool) -> list[str]:
    """The names of those that this machine can run, torch first."""
    there = {name: runtime for name, runtime in RUNTIMES.items() if is_installed(runtime.library)}
    if choose_precision("auto", torch.device("cpu")) is not torch.bfloat16:
        there = {name: runtime for name, runtime in there.items() if runtime.precision != "bfloat16"}
    return [name for name in there if has_int8 or name != "int8"]
