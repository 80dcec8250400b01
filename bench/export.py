"""`bench export`: the best model of an experiment -> a folder that others can use and check.

In:  a journal, the photos its trials were trained and validated on.   Out: a bundle, whole or not at all.
Knows nothing of how files are scored or what a bundle may hold.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import catseg
from bench import journal
from bench.certificate import MAX_LOSS, Score, find_losses, format_per_photo, format_scores, score_photos
from bench.comparison import choose_experiment
from bench.environment import describe_environment
from bench.latency import PLAIN, Speed, format_speeds, is_noisy, make_plain, measure_speeds
from bench.model_card import format_card
from bench.registry import find_trial, register
from bench.scoring import WEIGHTS
from bench.standing import read_standing
from bench.trial import TrialResult
from catseg.bundle import GOLDEN, INT8, SUMS, Config, dump_config, format_sums
from catseg.checkpoint import load_model
from catseg.dataset import SAME_AS_TRAIN, Data, DataConfig, PhotoSet, load_data
from catseg.errors import InputError
from catseg.files import new_folder
from catseg.golden import make_golden
from catseg.inference import Predictor, evaluate, make_predictor
from catseg.metrics import compute_metrics
from catseg.runtimes import RUNTIMES, is_installed, list_runtimes, open_file, require
from catseg.unet import UNet, count_parameters

CERTIFICATE_FORMAT = "catseg-certificate-1"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Chosen:
    """A finished trial: what it came to, where it lies, what it was trained on."""

    result: TrialResult
    folder: Path
    kept: dict[str, Any]  # settings.json


def export(
    name: str | None, out: Path, trial: str | None, run_id: str | None, folders: dict[str, str | None], int8: bool
) -> int:
    """Write the bundle of the best trial by val/miou, or of the one named; 1 if its files lose too much: then nothing
    is written.

    Best is the setting with the highest mean over its seeds, equals in favour of the faster, and of its seeds the
    best. `folders` are train and val, where they are no longer where the trial found them.
    """
    require("onnx", "onnxruntime")
    console = Console(soft_wrap=True, highlight=False)
    if out.exists() or out.is_symlink():  # told before the work, not after it
        raise InputError(f"{out}: is there already; name a new folder, or remove this one")
    if trial is not None and run_id is not None:
        raise InputError(f"--trial {trial} and --run {run_id}: two names of one trial; give one of them")
    key, execution = (trial, None) if run_id is None else find_trial(run_id)
    chosen = _choose(choose_experiment(name), key)
    if execution not in (None, chosen.kept["execution"]):
        raise InputError(
            f"--run {run_id}: {chosen.folder} holds another training of the same trial, for this one was done anew or "
            "elsewhere; export it where it ran, or that one with --trial"
        )
    model, config, weights = _load(chosen)
    train_set, val_set = _load_photos(chosen, folders)
    files = _make_networks(model, weights, train_set, int8)
    predictors = _open(model, files)
    scores = _score(predictors, val_set)
    losses = find_losses(scores)
    refused = [line for name, line in losses.items() if RUNTIMES[name].precision == "float32"]
    if refused:
        for line in refused:
            Console(stderr=True, soft_wrap=True).print(f"{out}: not written: {line}", markup=False, highlight=False)
        return 1
    if "int8" in losses:
        del files[INT8], scores["int8"], predictors["int8"]
        console.print(f"{INT8} is left out: {losses['int8']}", markup=False)
    certificate = _make_certificate(chosen, model, config, val_set, scores, files)
    certificate["left_out"] = [line for name, line in losses.items() if name == "int8"]
    speeds = measure_speeds(predictors | {PLAIN: make_plain(model)}, val_set.photo_NSS3)
    files |= _make_texts(config, certificate, scores, speeds, val_set, model)
    _write(out, files)
    _report(console, chosen, scores, speeds, files, out)
    _register(console, chosen, out, config, is_best=trial is None and run_id is None)
    return 0


def _choose(folder: Path, trial: str | None) -> Chosen:
    folders = journal.list_folders(folder)
    if trial is not None:
        matching = [key for key, path in folders.items() if trial in (key, path.name)]
        result = journal.read_result(folders[matching[0]]) if matching else None
        if result is None or result.status != "finished":
            raise InputError(f"--trial {trial}: no finished trial of {folder}; give its folder's name or its key")
    else:
        result = next(read_standing(folder).list_best(), None)
        if result is None:
            raise InputError(f"{folder}: nothing has finished, so there is no best; `bench run` goes on")
    kept = journal.read_settings(folders[result.key])
    if kept is None:
        raise InputError(f"{folders[result.key]}: its settings.json is not whole; name another --trial")
    return Chosen(result, folders[result.key], kept)


def _load(chosen: Chosen) -> tuple[UNet, Config, bytes]:
    """The trial's best weights, which must be those that its result vouches for."""
    path = chosen.folder / WEIGHTS
    model, card = load_model(path)
    weights = path.read_bytes()
    if chosen.result.files and hashlib.sha256(weights).hexdigest() != chosen.result.files[WEIGHTS]["sha256"]:
        raise InputError(f"{path}: not what the trial wrote; do it anew with `bench run --rerun`, or name another")
    settings = chosen.result.settings
    config = Config(
        card.unet.init_features,
        card.classes,
        card.image_size,
        card.epoch,
        settings["batch_size"],
        settings["precision"],
        _read_versions(),
    )
    return model, config, weights


def _read_versions() -> dict[str, str]:
    """Of the libraries that write the files, by what they say themselves: onnxruntime-gpu is onnxruntime, too."""
    modules = {"pillow": "PIL"} | {name: name for name in ("catseg", "torch", "onnx", "onnxruntime", "numpy")}
    if is_installed("openvino"):
        modules["openvino"] = "openvino"
    return {name: str(import_module(module).__version__) for name, module in sorted(modules.items())}


def _load_photos(chosen: Chosen, folders: dict[str, str | None]) -> tuple[PhotoSet, PhotoSet]:
    """The very photos of the trial, by their fingerprint."""
    kept = chosen.kept["data"]
    train, val = (folders[role] or kept[role] for role in ("train", "val"))
    share = kept["val_photos"] / (kept["train_photos"] + kept["val_photos"])  # as many are held out as were
    data_config = DataConfig(
        train, SAME_AS_TRAIN if kept["val_is_train"] else val, val_fraction=share, classes=tuple(kept["classes"])
    )
    size = chosen.result.settings["image_size"]
    data: Data = load_data(data_config, [size])
    if data.fingerprint != chosen.result.data_fingerprint:
        raise InputError(
            f"{train}, {val}: data {data.fingerprint}, but the trial's was {chosen.result.data_fingerprint}; name "
            "its photos with --train and --val, or run it on these"
        )
    return data.sets[size]


def _make_networks(model: UNet, weights: bytes, train_set: PhotoSet, int8: bool) -> dict[str, bytes]:
    from catseg.onnx_file import dump_onnx
    from catseg.quantisation import NUM_CALIBRATION_PHOTOS, quantise

    files = {"model.safetensors": weights, "model.onnx": dump_onnx(model)}
    if int8:  # calibrated on photos from the whole of the training set, the same ones every time
        num = min(NUM_CALIBRATION_PHOTOS, len(train_set.names))
        some = np.linspace(0, len(train_set.names) - 1, num).round().astype(int)
        files[INT8] = quantise(files["model.onnx"], train_set.photo_NSS3[some])
    return files


def _open(model: UNet, files: dict[str, bytes]) -> dict[str, Predictor]:
    """Each runtime that this machine has, by its name."""
    predictors = {}
    for name in list_runtimes(has_int8=INT8 in files):
        runtime = RUNTIMES[name]
        if runtime.library == "torch":
            predictors[name] = make_predictor(model, runtime.precision, CPU)
        else:
            predictors[name] = open_file(files[runtime.file], runtime.file, name, torch.get_num_threads())
    return predictors


def _score(predictors: dict[str, Predictor], val_set: PhotoSet) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    console = Console(stderr=True)
    steps = score_photos(predictors, val_set, scores)
    total = len(val_set.names)
    for _ in track(steps, "scoring", total, console=console, transient=True, disable=not console.is_terminal):
        pass
    return scores


def _make_certificate(
    chosen: Chosen, model: UNet, config: Config, val_set: PhotoSet, scores: dict[str, Score], files: dict[str, bytes]
) -> dict[str, Any]:
    result = chosen.result
    _, counts_NK3 = evaluate(model, val_set, "dice", config.batch_size, config.precision, CPU)
    kept = chosen.kept["data"]
    return {
        "format": CERTIFICATE_FORMAT,
        "trial": {
            "key": result.key,
            "name": result.name,
            "settings": result.settings,
            "parameters": count_parameters(model),
            "val/miou": result.metrics["val/miou"],
            "environment": result.environment,
        },
        # by torch, in the trial's own precision and batches, on the machine that wrote this
        "repeated": {"val/miou": compute_metrics(counts_NK3)["miou"]},
        "data": {name: kept[name] for name in ("fingerprint", "train_photos", "val_photos", "classes", "val_is_train")},
        "limits": MAX_LOSS,
        "runtimes": format_scores(scores),
        "files": {
            name: {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }


def _make_texts(
    config: Config,
    certificate: dict[str, Any],
    scores: dict[str, Score],
    speeds: dict[str, Speed],
    val_set: PhotoSet,
    model: UNet,
) -> dict[str, bytes]:
    """Everything beside the networks, but for the sums."""
    latency = format_speeds(speeds, describe_environment("none", torch.get_num_threads()))
    golden = make_golden(make_predictor(model, "float32", CPU), config.card)
    return {
        "config.json": dump_config(config),
        "certificate.json": _to_json(certificate),
        "latency.json": _to_json(latency),
        "per_photo.csv": format_per_photo(scores, val_set, config.classes),
        "predict.py": Path(catseg.__file__).with_name("standalone.py").read_bytes(),
        "MODEL_CARD.md": format_card(config, certificate),
    } | {f"{GOLDEN}/{name}": data for name, data in golden.items()}


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _write(out: Path, files: dict[str, bytes]) -> None:
    with new_folder(out) as folder:
        (folder / GOLDEN).mkdir()
        for name, data in (files | {SUMS: format_sums(files)}).items():
            (folder / name).write_bytes(data)


def _report(
    console: Console,
    chosen: Chosen,
    scores: dict[str, Score],
    speeds: dict[str, Speed],
    files: dict[str, bytes],
    out: Path,
) -> None:
    console.print(f"{chosen.result.name}: val/miou {chosen.result.metrics['val/miou']:.4f}", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("runtime", "val/miou", "differs by", "ppm", "ms a photo", "photos/s", "MiB"):
        table.add_column(column, justify="left" if column == "runtime" else "right", no_wrap=True)
    for name, speed in speeds.items():
        score = scores.get(name)
        found = (
            ["", "", ""]
            if score is None
            else [f"{score.miou:.4f}", f"{score.max_difference:.1e}", f"{score.disagreement_ppm:.0f}"]
        )
        times = f"{speed.latency_ms:.1f} ({speeds[PLAIN].latency_ms / speed.latency_ms:.1f}x)"
        size = "" if score is None else f"{len(files[RUNTIMES[name].file]) / 2**20:.2f}"
        table.add_row(name, *found, times, f"{speed.photos_per_second:.1f}", size)
    console.print(table)
    console.print(
        f"differs by: the greatest difference of a probability from torch's; ppm: of the masks' pixels; x: {PLAIN}"
    )
    if is_noisy(speeds):
        console.print("The machine was busy: these speeds say little. Export again when it is idle.")
    console.print(f"{out}: written; `bench verify {out}` checks a copy", markup=False)


def _register(console: Console, chosen: Chosen, out: Path, config: Config, is_best: bool) -> None:
    """The bundle stands, whatever becomes of it in MLflow."""
    try:
        address = register(out, chosen.folder.parent.name, chosen.kept["execution"], config.classes, is_best)
    except InputError as error:
        for line in error.problems:
            Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
        return
    console.print(f"MLflow: {address}; `mlflow models serve -m {address} --env-manager local` serves it", markup=False)
