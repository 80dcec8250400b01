"""A trained U-Net, or one in training <-> one safetensors file: numbers and JSON, nothing that runs.

In:  a U-Net and how to feed it, or a Training.   Out: bytes; and back, whatever the file claims to be.
Knows nothing of folders.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catseg.errors import InputError, first_line
from catseg.optimizer import list_views, name_averages
from catseg.settings import STRIDE, UNetConfig
from catseg.train import Best, Epoch, Training
from catseg.unet import UNet

FORMAT = "catseg-unet-1"
TRAINING_FORMAT = "catseg-training-2"
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
        reason = first_line(error)
        raise InputError(
            f"{path}: not a checkpoint of catseg ({reason}); use a best.safetensors of `bench run`"
        ) from None
    return model.to(memory_format=torch.channels_last).eval(), card  # type: ignore[call-overload]


def dump_training(training: Training) -> bytes:
    """All that `advance` needs to go on as if nothing had been: tensors by name, the rest as JSON.

    Weights, statistics and their average, optimizer, schedule, scaler, random states, the epoch and the
    steps of the one under way, and the best epoch with its weights. Takes 16 bytes a parameter, 20 with an average.
    """
    tensors = {f"model.{name}": tensor for name, tensor in training.learner.state_dict().items()}
    optimizer = training.optimizer.state_dict()
    for index, state in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if training.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(training.device)
    if training.losses:
        tensors["losses"] = torch.stack(training.losses)
    facts: dict[str, Any] = {
        "format": TRAINING_FORMAT,
        "epoch": training.epoch,
        "lr": training.lr,
        "seconds": training.seconds,
        "epoch_seconds": training.epoch_seconds,
        "val_seconds": training.val_seconds,
        "mious": training.mious,
        "num_losses": len(training.losses),
        "param_groups": optimizer["param_groups"],
        "schedule": training.schedule.state_dict(),
        "scaler": training.scaler.state_dict(),
    }
    if training.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in training.average.model.state_dict().items()}
        facts["num_averaged"] = training.average.num_steps
    if training.best is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in training.best.weights.items()}
        assert training.best.epoch.val_counts_NK3 is not None
        tensors["best_counts"] = torch.from_numpy(training.best.epoch.val_counts_NK3)
        facts["best"] = {"miou": training.best.miou} | vars(training.best.epoch)
        del facts["best"]["val_counts_NK3"]
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save_tensors(plain, {"training": json.dumps(facts, sort_keys=True)})


def load_training(data: bytes, training: Training) -> None:
    """Put a fresh Training where `dump_training` found the other; ValueError if this is not the same network."""
    try:
        facts = _read_facts(data)
        tensors = load_tensors(data)
        if facts["format"] != TRAINING_FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, not {TRAINING_FORMAT!r}")
        _check_tensors(training, facts, tensors)
        _restore(training, facts, tensors)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"not a checkpoint of this training ({first_line(error)})") from None


def read_epoch(data: bytes) -> int:
    """The last whole epoch of what `dump_training` made."""
    return int(_read_facts(data)["epoch"])


def _read_facts(data: bytes) -> dict[str, Any]:
    """What stands in a checkpoint beside its tensors."""
    length = int.from_bytes(data[:8], "little")
    facts: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["training"])
    return facts


def _check_tensors(training: Training, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor has its name, shape and type: one that is missing would be begun anew without a word."""
    weights = training.model.state_dict()
    like = {f"model.{name}": tensor for name, tensor in training.learner.state_dict().items()}
    like["random.cpu"] = torch.get_rng_state()
    if training.average is not None:
        like |= {f"average.{name}": tensor for name, tensor in weights.items()}
    if facts["epoch"] or facts["num_losses"]:
        for index, parameter in enumerate(list_views(training.optimizer)):
            like |= {f"optimizer.{index}.{name}": parameter for name in name_averages(training.config)}
            like[f"optimizer.{index}.step"] = torch.empty(())
    if facts["num_losses"]:
        like["losses"] = torch.empty(facts["num_losses"], device="meta")
    if "best" in facts:
        like |= {f"best.{name}": tensor for name, tensor in weights.items()}
        num_classes = training.model.config.num_classes
        like["best_counts"] = torch.empty(len(tensors["best_counts"]), num_classes, 3, dtype=torch.int64, device="meta")
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items() if name != "random.cuda"}
    if found != {name: (tensor.shape, tensor.dtype) for name, tensor in like.items()}:
        raise ValueError("its tensors are not those of this network")


def _restore(training: Training, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    training.learner.load_state_dict(_take(tensors, "model."), strict=True)
    if training.average is not None:
        training.average.model.load_state_dict(_take(tensors, "average."), strict=True)
        training.average.num_steps = facts["num_averaged"]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _take(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    training.optimizer.load_state_dict({"state": states, "param_groups": facts["param_groups"]})
    training.schedule.load_state_dict(facts["schedule"])
    if facts["scaler"]:  # another GPU may need one where this had none
        training.scaler.load_state_dict(facts["scaler"])
    torch.set_rng_state(tensors["random.cpu"])
    if training.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], training.device)
    training.epoch, training.lr, training.seconds = facts["epoch"], facts["lr"], facts["seconds"]
    training.epoch_seconds = facts["epoch_seconds"]
    training.val_seconds, training.mious = facts["val_seconds"], facts["mious"]
    training.losses = list(tensors["losses"].to(training.device)) if "losses" in tensors else []
    if "best" in facts:
        miou = facts["best"].pop("miou")
        epoch = Epoch(**facts["best"] | {"val_counts_NK3": tensors["best_counts"].numpy()})
        weights = {name: value.to(training.device) for name, value in _take(tensors, "best.").items()}
        training.best = Best(epoch, miou, weights)


def _take(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
