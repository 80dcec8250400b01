"""A trained U-Net <-> one safetensors file: numbers and JSON, nothing that runs.

In:  a U-Net and how to feed it.   Out: bytes; and back, whatever the file claims to be.
Knows nothing of training or folders.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catseg.errors import InputError
from catseg.unet import STRIDE, UNet, UNetConfig

FORMAT = "catseg-unet-1"
MAX_BYTES = 8 * 2**30


@dataclass(frozen=True)
class ModelCard:
    """What a user of the weights must know."""

    unet: UNetConfig
    classes: tuple[str, ...]  # label ids 1..K
    image_size: int  # px, side of the square that photos are fitted into
    epoch: int

    def __post_init__(self) -> None:
        names = all(isinstance(name, str) for name in self.classes)
        if not names or len(self.classes) != self.unet.num_classes:
            raise ValueError(f"classes: {self.unet.num_classes} names are needed, got {self.classes}")
        if not (STRIDE <= self.image_size <= 4096 and self.image_size % STRIDE == 0):
            raise ValueError(f"image_size: a multiple of {STRIDE} up to 4096 is needed, got {self.image_size}")


def dump_model(model: UNet, card: ModelCard) -> bytes:
    """The bytes of a checkpoint; the same weights give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # one entry: safetensors writes several in an order of its own, another one each time
    return save_tensors(tensors, {"card": json.dumps({"format": FORMAT} | asdict(card), sort_keys=True)})


def load_model(path: Path) -> tuple[UNet, ModelCard]:
    """Weights and card of a checkpoint, in eval mode on the CPU. Every tensor must have its name, shape and type."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; check the path")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: over {MAX_BYTES // 2**30} GiB; this is no checkpoint of catseg")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        raw = json.loads(metadata["card"])
        if raw.get("format") != FORMAT:
            raise ValueError(f"its format is {raw.get('format')!r}, not {FORMAT!r}")
        if not isinstance(raw["classes"], list):
            raise ValueError("its classes are no list")
        card = ModelCard(UNetConfig(**raw["unet"]), tuple(raw["classes"]), int(raw["image_size"]), int(raw["epoch"]))
        with torch.device("meta"):  # takes no memory: what the file claims may be gigabytes
            model = UNet(card.unet)
        tensors = load_tensors(path.read_bytes())
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
            raise ValueError("its tensors are not those of its network")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("a weight is not finite")
        model.load_state_dict(tensors, strict=True, assign=True)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not a checkpoint of catseg ({reason}); use a best.safetensors of `bench run`"
        ) from None
    return model.to(memory_format=torch.channels_last).eval(), card  # type: ignore[call-overload]
