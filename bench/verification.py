"""`bench verify` and `bench evaluate`: whether a bundle is whole and does what it did; what it scores on other photos.

In:  a bundle's folder.   Out: lines on the terminal.
Knows nothing of how a bundle is made.
"""

from pathlib import Path

import torch
from rich.console import Console

from catseg.bundle import GOLDEN, REPAIR, Bundle, load_network, load_predictor, open_bundle
from catseg.dataset import load_test_set
from catseg.device import choose_device
from catseg.errors import InputError
from catseg.golden import Replay, replay_golden
from catseg.inference import Predictor, evaluate, make_predictor
from catseg.metrics import compute_metrics
from catseg.runtimes import RUNTIMES, check_device, list_runtimes, require

# How far a replay may be from what was shipped: masks in ppm of their pixels, probabilities in the mean. Float32
# differs by rounding, probabilities by half a step of 8 bits; integers and bfloat16 by what was certified.
EXACT, COARSE = Replay(200, 0.004), Replay(20_000, 0.05)


def verify(folder: Path) -> None:
    """Look at all of a bundle: names, sums, config, networks, predictions. One line on the first that is amiss."""
    console = Console(soft_wrap=True, highlight=False)
    bundle = open_bundle(folder)
    console.print(f"{folder}: {len(bundle.files) - 1} files, each what its sum says", markup=False)
    load_network(bundle)
    require("onnx", "onnxruntime")
    from catseg.onnx_check import check_onnx

    for name in bundle.files:
        if name.endswith(".onnx"):
            check_onnx((folder / name).read_bytes(), str(folder / name), len(bundle.config.classes))
    num_threads = torch.get_num_threads()
    for name in list_runtimes(bundle.has_int8):
        replay = _replay(bundle, name, load_predictor(bundle, name, num_threads, torch.device("cpu")))
        console.print(f"  {name:<18} does what it did: masks differ by {replay.disagreement_ppm:.0f} ppm", markup=False)


def _replay(bundle: Bundle, name: str, predictor: Predictor) -> Replay:
    replay = replay_golden(bundle.folder / GOLDEN, predictor, bundle.config.card)
    limit = EXACT if RUNTIMES[name].precision == "float32" else COARSE
    probability, ppm = replay.probability_difference, replay.disagreement_ppm
    if not (probability <= limit.probability_difference and ppm <= limit.disagreement_ppm):
        raise InputError(
            f"{bundle.folder / RUNTIMES[name].file}: predicts otherwise than {GOLDEN} in {name} "
            f"({ppm:.0f} ppm of the masks, probabilities by {probability:.4f}); {REPAIR}"
        )
    return replay


def evaluate_bundle(folder: Path, source: str, runtime: str | None, device_name: str) -> None:
    """The metrics of a bundle on photos with masks, counted as `bench run` counts val/miou, by torch if not told."""
    console = Console(soft_wrap=True, highlight=False)
    bundle = open_bundle(folder)
    config = bundle.config
    device = choose_device(device_name)
    check_device(runtime, device_name)
    if runtime is None:
        network = make_predictor(load_network(bundle), config.precision, device)
    else:
        network = load_predictor(bundle, runtime, torch.get_num_threads(), device)
    photos, fingerprint = load_test_set(source, config.classes, config.image_size)
    _, counts_NK3 = evaluate(network, photos, "dice", config.batch_size, config.precision, device)
    console.print(
        f"{source}: {len(photos.names)} photos (data {fingerprint}), {runtime or config.precision}", markup=False
    )
    for name, value in compute_metrics(counts_NK3).items():
        console.print(f"  {name:<20} {value:.4f}", markup=False)
