"""Who takes part in a contest of networks: ours in its variants and as a pair of twins, the tutorial's, its peers.

In:  a size, names, how each is set to work.   Out: a Contest.
Knows nothing of pytest. All get the same photos, batches, class of optimizer, device and threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from contest import Contest, Contestant
from peers import MONAI, SMP, load_peer, make_peer
from torch import nn
from work import (
    Batch,
    Size,
    Work,
    make_batches,
    make_contiguous,
    make_network,
    make_runtime_inference,
    measure_forward_gflop,
)

from catseg.device import choose_precision
from catseg.runtimes import RUNTIMES, is_installed, list_runtimes
from catseg.settings import compute_forward_gflop

OURS, TWIN, TUTORIAL = "ours", "ours again", "tutorial"


@dataclass(frozen=True)
class Variant:
    """A network and how it computes."""

    precision: str
    channels_last: bool = True
    peer: str | None = None  # None: ours
    runtime: str | None = None  # None: torch; else ours as `bench export` writes it


VARIANTS = {
    OURS: Variant("auto"),
    "ours, float32": Variant("float32"),
    "ours, contiguous": Variant("auto", channels_last=False),
    "ours, float32 contiguous": Variant("float32", channels_last=False),
    TWIN: Variant("auto"),
    # as their users have them, and helped by what helps ours
    f"{MONAI}, float32": Variant("float32", channels_last=False, peer=MONAI),
    f"{MONAI}, helped": Variant("auto", peer=MONAI),
    f"{SMP}, float32": Variant("float32", channels_last=False, peer=SMP),
    f"{SMP}, helped": Variant("auto", peer=SMP),
    "bundle, onnx": Variant("float32", runtime="onnx"),
    "bundle, int8": Variant("int8", runtime="int8"),
    "bundle, openvino": Variant("float32", runtime="openvino"),
    "bundle, openvino-bfloat16": Variant("bfloat16", runtime="openvino-bfloat16"),
}
PEERS = tuple(name for name, variant in VARIANTS.items() if variant.peer)
FEW = (OURS, "ours, float32", TUTORIAL, TWIN, *PEERS)
BUNDLE = tuple(name for name, variant in VARIANTS.items() if variant.runtime)
ALL = (*(name for name in VARIANTS if name not in (*PEERS, *BUNDLE)), TUTORIAL, *PEERS)

MakeOurs = Callable[[nn.Module, list[Batch], str, torch.device], Work]
MakeTutorial = Callable[[int, list[Batch], torch.device], Work]


def find_absence(name: str) -> str | None:
    """Why a contestant cannot take part; None: it can."""
    variant = VARIANTS.get(name)
    if variant and variant.runtime and variant.runtime not in list_runtimes(has_int8=is_installed("onnxruntime")):
        return f"{RUNTIMES[variant.runtime].library} is not installed, or the processor lacks {variant.precision}"
    found = load_peer(variant.peer) if variant and variant.peer else None
    return found if isinstance(found, str) else None


def make_contest(
    kind: str,
    size: Size,
    names: Sequence[str],
    make: MakeOurs,
    make_tutorial: MakeTutorial,
    num_passes: int,
    device: torch.device,
) -> Contest:
    """`kind` of work at one size for those of `names` that are here; it costs `num_passes` forward passes."""

    def enter(name: str) -> Contestant:
        variant = VARIANTS.get(name, Variant("float32", channels_last=False))
        # integers have no ceiling of torch's to be measured by
        dtype = None if variant.precision == "int8" else choose_precision(variant.precision, device)
        facts = {
            "precision": str(dtype or variant.precision).removeprefix("torch."),
            "memory_format": "channels_last" if variant.channels_last else "contiguous",
            "init_features": size.init_features,
            "image_size": size.image_size,
            "batch_size": size.batch_size,
        }

        def build() -> Work:
            batches = make_batches(size, device)
            if name == TUTORIAL:
                return make_tutorial(size.init_features, batches, device)
            if variant.runtime:
                return make_runtime_inference(make_network(size.init_features, device), batches, variant.runtime)
            return make(_make_model(variant, size.init_features, device), batches, variant.precision, device)

        gflop = num_passes * size.batch_size * _compute_gflop(variant.peer, size)
        return Contestant(name, build, size.batch_size, gflop, dtype, facts)

    here = tuple(enter(name) for name in names if find_absence(name) is None)
    return Contest(f"{kind}, {size}", here, twins=(OURS, TWIN), base=TUTORIAL)


def _make_model(variant: Variant, init_features: int, device: torch.device) -> nn.Module:
    if variant.peer is None:
        return make_network(init_features, device, variant.channels_last)
    model = make_peer(variant.peer, init_features).to(device)
    return model.to(memory_format=torch.channels_last) if variant.channels_last else make_contiguous(model)


@cache
def _compute_gflop(peer: str | None, size: Size) -> float:
    """Of one photo's forward pass."""
    if peer is None:
        return compute_forward_gflop(size.init_features, size.image_size)
    return measure_forward_gflop(make_peer(peer, size.init_features), size.image_size)
