"""One trial -> events. The only place that joins the parts of catseg.

In:  a Task, its photos, a device.   Out: Started, EpochDone, Checkpoint, ..., then Finished, Failed or Stopped.
Knows nothing of where it runs, or who keeps and shows what it yields.
"""

import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.environment import compute_load, describe_environment, read_usage
from bench.trial import (
    CHECKPOINT_EVERY_SECONDS,
    Checkpoint,
    EpochDone,
    Failed,
    Finished,
    Overlays,
    Started,
    StepDone,
    Stopped,
    Trial,
    Weights,
    WorkerEvent,
)
from catseg.checkpoint import ModelCard, dump_model, dump_training, load_model, load_training
from catseg.dataset import PhotoSet
from catseg.device import (
    choose_device,
    choose_precision,
    measure_peak_mib,
    name_gpu,
    read_clock,
    release_memory,
    reset_peak_memory,
)
from catseg.errors import InputError, first_line
from catseg.inference import compute_logits, evaluate, evaluate_batches, make_predictor, place, pool, predict_fitted
from catseg.metrics import Counts, choose_labels, compute_metrics
from catseg.photo import count_valid_pixels, encode_png, paint_panel
from catseg.settings import TrainConfig, compute_forward_gflop
from catseg.train import Epoch, NonFiniteError, Training, advance, make_training
from catseg.unet import UNet, count_parameters, make_unet

INFERENCE_BATCHES = 8  # at most, for a speed to be told
TARGETS = (50, 60, 66, 70, 75)  # percent of val/miou to which the seconds are told


@dataclass(frozen=True)
class Task:
    """A trial to be run, from its beginning or from where a checkpoint stands."""

    trial: Trial
    classes: tuple[str, ...]
    checkpoint: bytes | None = None
    checkpoint_every_seconds: float = CHECKPOINT_EVERY_SECONDS


@dataclass
class StopRequest:
    """Whoever asks sets it; who works looks at it between two events."""

    asked: bool = False


def execute(
    task: Task, train_set: PhotoSet, val_set: PhotoSet, device_name: str, stop: StopRequest
) -> Iterator[WorkerEvent]:
    """Train one trial and say what happens. What it cannot survive it lets fall: the engine sees the process die.

    Asked to stop, it ends after the step, with a checkpoint that loses nothing.
    """
    try:
        device = choose_device(device_name)
        yield from _train(task, train_set, val_set, device, stop)
    except NonFiniteError as error:
        yield Failed("nonfinite", str(error))
    except InputError as error:
        yield Failed("data", "; ".join(error.problems))
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        yield Failed("oom", first_line(error))


def _is_out_of_memory(error: Exception) -> bool:
    """torch's own kind, and what numpy, a CPU's allocator and CUDA's libraries say instead."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def _train(
    task: Task, train_set: PhotoSet, val_set: PhotoSet, device: torch.device, stop: StopRequest
) -> Iterator[WorkerEvent]:
    release_memory(device)
    reset_peak_memory(device)
    config = task.trial.train
    training = make_training(
        make_unet(task.trial.unet, config.seed), config, num_photos=len(train_set.names), device=device
    )
    if task.checkpoint is not None:
        load_training(task.checkpoint, training)
    yield Started(
        device=str(device),
        precision=str(choose_precision(config.precision, device)).removeprefix("torch."),
        environment=describe_environment(name_gpu(device), torch.get_num_threads()),
        epoch=training.epoch,
        step=len(training.losses),
    )
    last_checkpoint = time.monotonic()
    before = read_usage()
    for event in advance(training, train_set, val_set):
        if not isinstance(event, Epoch):
            yield StepDone()
        else:
            now = read_usage()
            system = compute_load(before, now)
            before = now
            yield EpochDone(event.number, _name_metrics(event), event.train_seconds, event.val_seconds, system)
            if event.number == 1:
                yield Overlays("first", 1, _draw_panels(training.judged, val_set, config, device))
            epoch_seconds = event.train_seconds + event.val_seconds  # after the next one it might be too late
            is_due = time.monotonic() - last_checkpoint + epoch_seconds >= task.checkpoint_every_seconds
            if is_due and event.number < config.epochs and not stop.asked:
                yield _make_checkpoint(training)
                last_checkpoint = time.monotonic()
        training.stopping = stop.asked
    if training.epoch < config.epochs:
        yield _make_checkpoint(training)
        yield Stopped(training.epoch)
    else:
        yield from _conclude(task, training, train_set, val_set)


def _conclude(task: Task, training: Training, train_set: PhotoSet, val_set: PhotoSet) -> Iterator[WorkerEvent]:
    """The weights of the last and of the best epoch, its pictures, its numbers and what it all cost."""
    trial, model, best = task.trial, training.judged, training.best
    assert best is not None and best.epoch.val_counts_NK3 is not None
    costs = compute_seconds_to(training.mious, training.epoch_seconds, training.val_seconds) | {
        "cost/train_seconds": sum(training.epoch_seconds),
        "cost/photos_per_second": len(train_set.names) / statistics.median(training.epoch_seconds),
        "cost/peak_mib": measure_peak_mib(training.device),
        "cost/inference_photos_per_second": _measure_inference(model, val_set, trial.train, training.device),
        "cost/parameters": float(count_parameters(training.model)),
        "cost/forward_gflop": compute_forward_gflop(trial.unet.init_features, trial.train.image_size),
    }
    card = ModelCard(trial.unet, task.classes, trial.train.image_size, training.epoch)
    yield Weights("last", training.epoch, dump_model(model, card))
    yield Overlays("last", training.epoch, _draw_panels(model, val_set, trial.train, training.device))
    model.load_state_dict(best.weights)
    card = ModelCard(trial.unet, task.classes, trial.train.image_size, best.epoch.number)
    yield Weights("best", best.epoch.number, dump_model(model, card))
    yield Overlays("best", best.epoch.number, _draw_panels(model, val_set, trial.train, training.device))
    miou_flip = yield from _score_flipped(model, val_set, trial.train, training.device)
    yield Finished(
        best.epoch.number,
        _name_metrics(best.epoch) | {"val/miou_flip": miou_flip} | costs,
        val_set.names,
        tuple(tuple(tuple(row) for row in photo) for photo in best.epoch.val_counts_NK3.tolist()),
        tuple(count_valid_pixels(val_set.native_masks).tolist()),
    )


def _measure_inference(model: UNet, val_set: PhotoSet, config: TrainConfig, device: torch.device) -> float:
    """Photos a second from fitted photos in RAM to label maps: the median of some batches, after one to warm up."""
    predictor, photo_NSS3 = make_predictor(model, config.precision, device), torch.tensor(val_set.photo_NSS3)
    speeds = []
    for photo_BSS3 in [
        photo_NSS3[: config.batch_size],
        *torch.split(photo_NSS3, config.batch_size)[:INFERENCE_BATCHES],
    ]:
        start = read_clock(device)
        choose_labels(compute_logits(predictor, photo_BSS3))
        speeds.append(len(photo_BSS3) / (read_clock(device) - start))
    return statistics.median(speeds[1:])


def _score_flipped(
    model: UNet, val_set: PhotoSet, config: TrainConfig, device: torch.device
) -> Generator[StepDone, None, float]:
    """mIoU with the logits of photos and of photos mirrored averaged; a sign of life after each batch."""
    predictor = make_predictor(model, config.precision, device)
    scores = []
    for score in evaluate_batches(predictor, place(val_set, device), config.batch_size, flip=True):
        scores.append(score)
        yield StepDone()
    return compute_metrics(pool(config.loss, scores)[1])["miou"]


def _make_checkpoint(training: Training) -> Checkpoint:
    start = read_clock(training.device)
    data = dump_training(training)
    return Checkpoint(training.epoch, len(training.losses), read_clock(training.device) - start, data)


def _name_metrics(epoch: Epoch) -> dict[str, float]:
    """An epoch's numbers by their one name. val/miou leads: MLflow compares by the first metric it sees.

    Of an epoch that was not validated those of its training alone.
    """
    scores: dict[str, float] = {}
    if epoch.val_counts_NK3 is not None and epoch.val_loss is not None:
        scores = {f"val/{name}": value for name, value in compute_metrics(epoch.val_counts_NK3).items()}
        scores["val/loss"] = epoch.val_loss
    return scores | {"train/loss": epoch.train_loss, "train/lr": epoch.lr}


def compute_seconds_to(
    mious: Sequence[float | None], train_seconds: Sequence[float], val_seconds: Sequence[float]
) -> dict[str, float]:
    """cost/seconds_to_miou_50, ..._60, ...: training and validation up to the first epoch with that val/miou.

    All three by epoch; a score that no epoch reached is left out.
    """
    found: dict[str, float] = {}
    seconds = 0.0
    for miou, train, val in zip(mious, train_seconds, val_seconds, strict=True):
        seconds += train + val
        for target in TARGETS:
            if miou is not None and miou >= target / 100:
                found.setdefault(f"cost/seconds_to_miou_{target}", seconds)
    return found


def _draw_panels(model: UNet, val_set: PhotoSet, config: TrainConfig, device: torch.device) -> tuple[bytes, ...]:
    panels = []
    predictor = make_predictor(model, config.precision, device)
    for shown in val_set.shown:
        labels_HW = predict_fitted(predictor, val_set.photo_NSS3[shown.index], shown.mask_HW.shape)
        panels.append(encode_png(paint_panel(shown.photo_HW3, shown.mask_HW, labels_HW)))
    return tuple(panels)


def score_test(
    checkpoint: Path, photos: PhotoSet, batch_size: int, device_name: str
) -> tuple[dict[str, float], Counts]:
    """test/... metrics of one checkpoint on photos that nothing was chosen by, and the counts_NK3 they come from."""
    device = choose_device(device_name)
    model, _ = load_model(checkpoint)
    _, counts_NK3 = evaluate(model.to(device), photos, "dice", batch_size, "auto", device)
    return {f"test/{name}": value for name, value in compute_metrics(counts_NK3).items()}, counts_NK3


def measure_step_seconds(trial: Trial, device_name: str) -> float:
    """Seconds of one training step on made-up photos, the second of two: for estimates before anything has run."""
    device, steps = choose_device(device_name), take_steps(trial, device_name)
    next(steps)
    start = read_clock(device)
    next(steps)
    return read_clock(device) - start


def take_steps(trial: Trial, device_name: str) -> Iterator[None]:
    """A trial's training steps on made-up photos, one for each `next`, without end and without validation."""
    # no overflow, no schedule ends, the photos at their largest
    config = replace(trial.train, lr=1e-6, schedule="constant", compile="off", first_size=None)
    num_photos, side = config.batch_size, config.image_size
    rng = np.random.default_rng(0)
    photo_NSS3 = rng.integers(0, 256, (num_photos, side, side, 3), np.uint8)
    mask_NSS = rng.integers(0, trial.unet.num_classes + 1, (num_photos, side, side), np.uint8)
    photos = PhotoSet(
        tuple(map(str, range(num_photos))), photo_NSS3, mask_NSS, (), (), np.full((num_photos, 2), config.image_size)
    )
    training = make_training(make_unet(trial.unet, seed=0), config, num_photos, choose_device(device_name))
    while True:
        training.losses, training.stopping = [], False  # the epoch's first step again
        for _ in advance(training, photos, photos):
            training.stopping = True
        yield
