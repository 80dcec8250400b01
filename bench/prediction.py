"""What `bench predict` does, said on a terminal.

In:  a model by file, bundle or MLflow run, photos.   Out: files in a folder, a line per photo.
Knows nothing of how a network works.
"""

import shlex
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bench.registry import fetch_checkpoint
from catseg.bundle import load_network, load_predictor, open_bundle
from catseg.checkpoint import ModelCard, load_model
from catseg.device import choose_device
from catseg.errors import InputError, make_printable
from catseg.inference import Predictor
from catseg.predict import LABELME_FOLDER, estimate_files, list_photos, name_labels, write_predictions
from catseg.runtimes import check_device
from catseg.unet import UNet


def predict_files(
    model: str, paths: list[Path], out: Path, labelme: bool, worst: int | None, device_name: str, runtime: str | None
) -> None:
    """Masks and overlays of photos, of all or of those that the model is least sure of."""
    console = Console(soft_wrap=True, highlight=False)
    device = choose_device(device_name)
    check_device(runtime, device_name)
    network, card = _load(model, runtime, device)
    photos = list_photos(paths)
    problems: list[str] = []
    expected: dict[Path, float] = {}
    if worst is not None:
        expected, problems = _estimate(network, card, photos, device)
        photos = sorted(expected, key=lambda path: expected[path])[:worst]
    num_written = 0
    try:
        with closing(write_predictions(network, card, photos, out, device, labelme)) as predictions:
            for done in predictions:
                num_written += 1
                doubt = f"expected IoU {expected[done.photo_path]:.2f}, " if worst is not None else ""
                files = " ".join(
                    str(path) for path in (done.mask_path, done.overlay_path, done.annotation_path) if path
                )
                line = f"{done.photo_path}: {doubt}{', '.join(card.classes)} on {done.share:.1%} of it -> {files}"
                console.print(make_printable(line), markup=False)
    except InputError as error:
        problems += error.problems
    if labelme and num_written:
        command = shlex.join(["bench", "data", "label", str(out / LABELME_FOLDER), "--labels", str(name_labels(out))])
        console.print(f"To correct the outlines: {command}", markup=False)
    if problems:
        raise InputError(problems)


def _load(model: str, runtime: str | None, device: torch.device) -> tuple[UNet | Predictor, ModelCard]:
    """A network by checkpoint, run or bundle. A bundle's runs where its own script would: on a CPU in onnxruntime."""
    path = Path(model)
    if path.is_dir():
        bundle = open_bundle(path)
        if runtime is None and device.type == "cuda":
            return load_network(bundle), bundle.config.card
        return load_predictor(bundle, runtime or "onnx", 1, device), bundle.config.card  # a photo per thread
    if runtime not in (None, "torch"):
        raise InputError(f"--runtime {runtime}: {model} is no bundle, only torch runs it; `bench export` makes one")
    is_file = path.exists() or "/" in model or model.endswith(".safetensors")
    with nullcontext(path) if is_file else fetch_checkpoint(model) as checkpoint:
        return load_model(checkpoint)


def _estimate(
    unet: UNet | Predictor, card: ModelCard, photos: list[Path], device: torch.device
) -> tuple[dict[Path, float], list[str]]:
    """The IoU that the model expects on each photo, and a line for each that cannot be read."""
    expected: dict[Path, float] = {}
    problems: list[str] = []
    console = Console(stderr=True)
    looking = track(photos, "looking", console=console, transient=True, disable=not console.is_terminal)
    with closing(estimate_files(unet, card, photos, device)) as estimates:
        for path, iou in zip(looking, estimates, strict=True):
            if isinstance(iou, InputError):
                problems += iou.problems
            else:
                expected[path] = iou
    return expected, problems
