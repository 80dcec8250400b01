"""What is timed on a GPU: settings, the most telling first, and how each of them is computed.

In:  a setting and the name of a contender.   Out: a call that does one training step or labels one batch.
Knows nothing of clocks.      (B batch, K classes, S side in pixels)
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import optim

from catseg.device import autocast, choose_precision
from catseg.inference import to_input
from catseg.losses import compute_loss
from catseg.metrics import choose_labels
from catseg.optimizer import hand_over_gradients
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import Training, make_training, train_step
from catseg.unet import make_unet
from tests.benchmarks.graph import capture
from tests.benchmarks.tutorial import TutorialUNet, compute_dice_loss

Work = Callable[[], torch.Tensor]

# Each axis with its most telling value first.
TASKS: tuple[Literal["train", "inference"], ...] = ("train", "inference")
FEATURES, IMAGE_SIZES = (32, 16, 64), (256, 128, 512)
BATCH_SIZES = {"train": (32, 8, 128), "inference": (32, 1, 128)}  # 1: how long a photo waits for its labels
PRECISIONS = ("bfloat16", "tf32", "float32")

CONTENDERS = ("eager", "graphed", "compiled", "compiled_graphed", "tutorial", "tutorial_compiled", "tutorial_float32")
NUM_STEPS = 10**6  # of the schedule: so many that the learning rate hardly moves


@dataclass(frozen=True)
class Setting:
    task: Literal["train", "inference"]
    init_features: int
    image_size: int  # px
    batch_size: int
    precision: str  # tf32: float32, with products that may be rounded to TF32

    def __str__(self) -> str:
        return f"{self.task} f={self.init_features} {self.image_size} px batch {self.batch_size} {self.precision}"


def list_settings() -> list[Setting]:
    """All combinations, those with the most telling values first."""
    settings = []
    for task in TASKS:
        axes = (FEATURES, IMAGE_SIZES, BATCH_SIZES[task], PRECISIONS)
        for places in itertools.product(*(range(len(axis)) for axis in axes)):
            values = (axis[place] for axis, place in zip(axes, places, strict=True))
            settings.append((sum(places) + TASKS.index(task), Setting(task, *values)))
    return [setting for _, setting in sorted(settings, key=lambda pair: pair[0])]


def list_contenders(setting: Setting, device: torch.device) -> tuple[str, ...]:
    """The ways to compute a setting; graphs and compiled code only on CUDA."""
    return tuple(
        name
        for name in CONTENDERS
        if (device.type == "cuda" or not ("compiled" in name or "graphed" in name))
        and (setting.precision == "float32" or name != "tutorial_float32")
    )


def allows_tf32(setting: Setting, name: str) -> bool:
    """The tutorial is given what PyTorch gives to who sets nothing, TF32, but for `tutorial_float32`."""
    return name != "tutorial_float32" if name.startswith("tutorial") else setting.precision != "float32"


@contextmanager
def set_tf32(allowed: bool) -> Iterator[None]:
    """By the older of PyTorch's two interfaces: it keeps both in step, the newer one makes the older raise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def make_work(setting: Setting, name: str, device: torch.device) -> Work:
    """One call: a training step, returning its loss, or a batch's labels_BSS, both on the device.

    From photos that lie on the device as bytes to weights that are a step further, or to labels; the
    tutorial gets its photos as floats, and reads each loss, as it does. Inference of `tutorial` is
    its forward and a threshold.
    """
    if name.startswith("tutorial"):
        make = make_tutorial_step if setting.task == "train" else make_tutorial_inference
        return make(setting, device, compiled=name == "tutorial_compiled")
    if name == "eager" and setting.task == "train":
        training, (photo_BSS3, mask_BSS) = make_start(setting, device), make_batch(setting, device)
        return lambda: train_step(training, photo_BSS3, mask_BSS)
    make_ours = make_step if setting.task == "train" else make_inference
    return make_ours(setting, device, compiled=name.startswith("compiled"), graphed=name.endswith("graphed"))


def make_batch(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """photo_BSS3 and mask_BSS of noise, uint8: zeros would be faster than photos."""
    shape = (setting.batch_size, setting.image_size, setting.image_size, 3)
    photo_BSS3 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return photo_BSS3.to(device), (photo_BSS3[..., 0] > 127).to(torch.uint8).to(device)


def make_start(setting: Setting, device: torch.device) -> Training:
    """Before the first step, always from the same weights."""
    precision: Literal["float32", "bfloat16"] = "bfloat16" if setting.precision == "bfloat16" else "float32"
    config = TrainConfig(
        image_size=setting.image_size, epochs=1, batch_size=setting.batch_size, seed=0, precision=precision
    )
    model = make_unet(UNetConfig(setting.init_features), config.seed)
    return make_training(model, config, NUM_STEPS * setting.batch_size, device)


def make_step(setting: Setting, device: torch.device, compiled: bool, graphed: bool) -> Work:
    """The step of `catseg.train` by hand: its forward and loss compiled, all but its schedule in a graph, or both."""
    training, (photo_BSS3, mask_BSS) = make_start(setting, device), make_batch(setting, device)
    model, loss_name = training.model.train(), training.config.loss
    dtype = choose_precision(training.config.precision, device)

    def compute(photo_BSS3: torch.Tensor, mask_BSS: torch.Tensor) -> torch.Tensor:
        with autocast(device, dtype):
            logits_BKSS = model(to_input(photo_BSS3, device))
        return compute_loss(loss_name, logits_BKSS, mask_BSS)

    if compiled:
        compute = torch.compile(compute, dynamic=False)

    def descend(photo_BSS3: torch.Tensor, mask_BSS: torch.Tensor) -> torch.Tensor:
        training.optimizer.zero_grad()
        loss = compute(photo_BSS3, mask_BSS)
        loss.backward()
        hand_over_gradients(model, training.optimizer)
        training.optimizer.step()
        return loss.detach()

    if not graphed:

        def step() -> torch.Tensor:
            loss = descend(photo_BSS3, mask_BSS)
            training.schedule.step()
            return loss

        return step
    make_capturable(training.optimizer, device)
    kept_photo_BSS3, kept_mask_BSS = photo_BSS3.clone(), mask_BSS.clone()
    graph, kept_loss = capture(lambda: descend(kept_photo_BSS3, kept_mask_BSS), device)

    def replay() -> torch.Tensor:
        kept_photo_BSS3.copy_(photo_BSS3)
        kept_mask_BSS.copy_(mask_BSS)
        graph.replay()
        training.schedule.step()  # writes into the learning rates that the graph reads
        return kept_loss

    return replay


def make_capturable(optimizer: optim.Optimizer, device: torch.device) -> None:
    """Before its first step: its counts and learning rates lie on the device, where a graph finds them."""
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"  # refused elsewhere
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def make_inference(setting: Setting, device: torch.device, compiled: bool, graphed: bool) -> Work:
    training, (photo_BSS3, _) = make_start(setting, device), make_batch(setting, device)
    model, dtype = training.model.eval(), choose_precision(training.config.precision, device)

    def compute(photo_BSS3: torch.Tensor) -> torch.Tensor:
        with autocast(device, dtype):
            logits_BKSS = model(to_input(photo_BSS3, device)).float()
        return choose_labels(logits_BKSS)

    if compiled:
        compute = torch.compile(compute, dynamic=False)
    if not graphed:
        return torch.inference_mode()(lambda: compute(photo_BSS3))
    kept_photo_BSS3 = photo_BSS3.clone()
    graph, kept_labels_BSS = capture(torch.inference_mode()(lambda: compute(kept_photo_BSS3)), device)

    def replay() -> torch.Tensor:
        kept_photo_BSS3.copy_(photo_BSS3)
        graph.replay()
        return kept_labels_BSS

    return replay


def make_tutorial(setting: Setting) -> TutorialUNet:
    """Always with the same weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return TutorialUNet(setting.init_features)


def make_tutorial_step(setting: Setting, device: torch.device, compiled: bool) -> Work:
    model = make_tutorial(setting).to(device)
    optimizer = optim.Adam(model.parameters(), 1e-4)
    photo_BSS3, mask_BSS = make_batch(setting, device)
    photo_B3SS, mask_B1SS = to_input(photo_BSS3, device).contiguous(), mask_BSS.unsqueeze(1).float()

    def compute(photo_B3SS: torch.Tensor, mask_B1SS: torch.Tensor) -> torch.Tensor:
        return compute_dice_loss(model(photo_B3SS), mask_B1SS)

    if compiled:
        compute = torch.compile(compute, dynamic=False)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = compute(photo_B3SS, mask_B1SS)
        loss.backward()
        optimizer.step()
        loss.item()  # the tutorial reads it after every step
        return loss.detach()

    return step


def make_tutorial_inference(setting: Setting, device: torch.device, compiled: bool) -> Work:
    model = make_tutorial(setting).to(device)
    photo_B3SS = to_input(make_batch(setting, device)[0], device).contiguous()

    def compute(photo_B3SS: torch.Tensor) -> torch.Tensor:
        return model(photo_B3SS) > 0.5

    if compiled:
        compute = torch.compile(compute, dynamic=False)
    return torch.inference_mode()(lambda: compute(photo_B3SS))
