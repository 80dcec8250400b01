"""One trial -> events. The only place that joins the parts of catseg.

In:  a Trial, its photos, a device.   Out: Started, EpochDone, Checkpoint, Overlays, ..., then Finished or Failed.
Knows nothing of where it runs, or who keeps and shows what it yields.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.environment import describe_environment
from bench.trial import Checkpoint, EpochDone, Event, Failed, Finished, Overlays, Started, Trial
from catseg.checkpoint import ModelCard, dump_model, load_model
from catseg.dataset import PhotoSet, load_photo_set
from catseg.device import choose_device, choose_precision, measure_peak_mib, read_clock, reset_peak_memory
from catseg.metrics import compute_metrics
from catseg.photo import encode_png, paint_panel
from catseg.train import Epoch, NonFiniteError, TrainConfig, evaluate, predict_fitted, train
from catseg.unet import UNet, compute_forward_gflop, count_parameters, make_unet


def execute(
    trial: Trial, train_set: PhotoSet, val_set: PhotoSet, classes: tuple[str, ...], device_name: str
) -> Iterator[Event]:
    """Train one trial and say what happens. What it cannot survive it lets fall: the engine sees the process die."""
    device = choose_device(device_name)
    try:
        yield from _train(trial, train_set, val_set, classes, device)
    except NonFiniteError as error:
        yield Failed("nonfinite", str(error))
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        yield Failed("oom", str(error).splitlines()[0])


def _train(
    trial: Trial, train_set: PhotoSet, val_set: PhotoSet, classes: tuple[str, ...], device: torch.device
) -> Iterator[Event]:
    reset_peak_memory(device)
    model = make_unet(trial.unet, trial.train.seed)
    yield Started(
        device=str(device),
        precision=str(choose_precision(trial.train.precision, device)).removeprefix("torch."),
        environment=describe_environment(device),
    )
    epochs: list[Epoch] = []
    best: Epoch | None = None
    best_miou = 0.0
    for epoch in train(model, train_set, val_set, trial.train, device):
        epochs.append(epoch)
        metrics = _name_metrics(epoch)
        yield EpochDone(epoch.number, metrics, epoch.train_seconds, epoch.val_seconds)
        card = ModelCard(trial.unet, classes, trial.train.image_size, epoch.number)
        if best is None or metrics["val/miou"] > best_miou:
            best, best_miou = epoch, metrics["val/miou"]
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            yield Checkpoint("best", epoch.number, dump_model(model, card))
        if epoch.number == 1:
            yield Overlays("first", 1, _draw_panels(model, val_set, trial.train, device))
    assert best is not None
    costs = {
        "cost/train_seconds": sum(epoch.train_seconds for epoch in epochs),
        "cost/photos_per_second": statistics.median(epoch.photos_per_second for epoch in epochs),
        "cost/peak_mib": measure_peak_mib(device),
        "cost/parameters": float(count_parameters(model)),
        "cost/forward_gflop": compute_forward_gflop(trial.unet.init_features, trial.train.image_size),
    }
    yield Checkpoint("last", epochs[-1].number, dump_model(model, card))
    model.load_state_dict(best_state)
    yield Overlays("best", best.number, _draw_panels(model, val_set, trial.train, device))
    yield Finished(
        best.number,
        _name_metrics(best) | costs,
        val_set.names,
        tuple(tuple(tuple(row) for row in photo) for photo in best.val_counts_NK3.tolist()),
    )


def _name_metrics(epoch: Epoch) -> dict[str, float]:
    """An epoch's numbers by their one name. val/miou leads: MLflow compares by the first metric it sees."""
    scores = {f"val/{name}": value for name, value in compute_metrics(epoch.val_counts_NK3).items()}
    return scores | {"val/loss": epoch.val_loss, "train/loss": epoch.train_loss, "train/lr": epoch.lr}


def _draw_panels(model: UNet, val_set: PhotoSet, config: TrainConfig, device: torch.device) -> tuple[bytes, ...]:
    panels = []
    for shown in val_set.shown:
        labels_HW = predict_fitted(
            model, val_set.photo_NSS3[shown.index], shown.mask_HW.shape, config.precision, device
        )
        panels.append(encode_png(paint_panel(shown.photo_HW3, shown.mask_HW, labels_HW)))
    return tuple(panels)


def score_test(checkpoint: Path, source: str, batch_size: int, device_name: str) -> dict[str, float]:
    """test/... metrics of one checkpoint on photos that nothing was chosen by."""
    device = choose_device(device_name)
    model, card = load_model(checkpoint)
    photos = load_photo_set(source, card.classes, card.image_size)
    config = TrainConfig(image_size=card.image_size, batch_size=batch_size)
    _, counts_NK3 = evaluate(model.to(device), photos, config, device)
    return {f"test/{name}": value for name, value in compute_metrics(counts_NK3).items()}


def measure_step_seconds(trial: Trial, device_name: str) -> float:
    """Seconds of one training step on made-up photos, the second of two: for estimates before anything has run."""
    device = choose_device(device_name)
    dtype = choose_precision(trial.train.precision, device)
    model = make_unet(trial.unet, seed=0).to(device)
    side = trial.train.image_size
    photo_B3HW = torch.zeros(trial.train.batch_size, 3, side, side, device=device).to(memory_format=torch.channels_last)
    for _ in range(2):
        start = read_clock(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = model(photo_B3HW).float().mean()
        loss.backward()
        seconds = read_clock(device) - start
    return seconds
