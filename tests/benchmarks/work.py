"""What is timed: a training step, a forward pass, a loss, inference, an epoch, as functions of the round's number.

In:  a network, batches, a precision, a device.   Out: a function that does it once, on the batch of that round.
Knows nothing of clocks or pytest.      (B batch, S side in pixels)

Every round has another batch than the one before, as training does: on one batch again and again
the caches would know it. Photos are the built-in sample's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tutorial import TutorialUNet, compute_dice_loss, predict, train_step_of_the_tutorial

from catseg.dataset import PhotoSet, read_pairs
from catseg.device import autocast, choose_precision
from catseg.folder import Pair
from catseg.inference import compute_logits, make_predictor, to_input
from catseg.losses import compute_loss
from catseg.metrics import choose_labels
from catseg.photo import fit_mask, fit_photo
from catseg.runtimes import RUNTIMES, open_file
from catseg.sample import draw_photo
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import Epoch, advance, make_training, train_step
from catseg.unet import UNet, make_unet

NUM_BATCHES = 4
ENDLESS = 10**6  # epochs: no schedule ends while it is timed

Work = Callable[[int], object]
Batch = tuple[torch.Tensor, torch.Tensor]  # photo_BSS3, mask_BSS, uint8


@dataclass(frozen=True)
class Size:
    """How large a piece of work is."""

    init_features: int
    image_size: int  # px
    batch_size: int

    def __str__(self) -> str:
        return f"{self.init_features} features, {self.image_size} px, batch {self.batch_size}"


draw = cache(draw_photo)


def make_batches(size: Size, device: torch.device, num: int = NUM_BATCHES) -> list[Batch]:
    """Different batches of drawn photos and masks, uint8 as training has them on the device."""
    pairs = [draw(number) for number in range(num * size.batch_size)]
    photo_NSS3 = torch.from_numpy(np.stack([fit_photo(photo, size.image_size) for photo, _ in pairs]))
    mask_NSS = torch.from_numpy(np.stack([fit_mask(mask, size.image_size) for _, mask in pairs]))
    split = (array.to(device).split(size.batch_size) for array in (photo_NSS3, mask_NSS))
    return list(zip(*split, strict=True))


class _Contiguous(nn.Module):
    def forward(self, photo_B3SS: torch.Tensor) -> torch.Tensor:
        return photo_B3SS.contiguous()


def make_contiguous(model: nn.Module) -> nn.Module:
    """A network that computes plane by plane, whatever the order in which its photos come."""
    return nn.Sequential(_Contiguous(), model.to(memory_format=torch.contiguous_format))


def make_network(init_features: int, device: torch.device, channels_last: bool = True) -> nn.Module:
    """Ours, fresh."""
    model = make_unet(UNetConfig(init_features), seed=0)
    return (model if channels_last else make_contiguous(model)).to(device)


def make_forward(model: nn.Module, batches: list[Batch], precision: str, device: torch.device) -> Work:
    """The forward pass as training does it: batch statistics, and what the backward pass needs is kept."""
    dtype = choose_precision(precision, device)
    inputs = [to_input(photo_BSS3, device) for photo_BSS3, _ in batches]
    model.train()

    def forward(number: int) -> torch.Tensor:
        with autocast(device, dtype):
            return model(inputs[number % len(inputs)])

    return forward


def make_training_step(model: nn.Module, batches: list[Batch], precision: str, device: torch.device) -> Work:
    """Forward, loss, backward and optimizer as `catseg.train` does them; Adam, as the tutorial has it."""
    size = len(batches[0][0])
    config = TrainConfig(epochs=ENDLESS, batch_size=size, optimizer="adam", precision=precision)
    training = make_training(model, config, size, device)
    model.train()
    return lambda number: train_step(training, *batches[number % len(batches)])


def make_tutorial_step(init_features: int, batches: list[Batch], device: torch.device) -> Work:
    """The tutorial's network and step. Its photos and masks are floats beforehand, which is generous to it."""
    model = TutorialUNet(init_features).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    floats = [
        (to_input(photo_BSS3, device).contiguous(), (mask_BSS == 1).unsqueeze(1).float())
        for photo_BSS3, mask_BSS in batches
    ]
    return lambda number: train_step_of_the_tutorial(model, optimizer, *floats[number % len(floats)])


def make_tutorial_forward(init_features: int, batches: list[Batch], device: torch.device) -> Work:
    """The tutorial's network, as it trains."""
    model = TutorialUNet(init_features).to(device)
    inputs = [to_input(photo_BSS3, device).contiguous() for photo_BSS3, _ in batches]
    return lambda number: model(inputs[number % len(inputs)])


def make_loss(name: str, batches: list[Batch], device: torch.device) -> Work:
    """One of our losses and its gradient, down to the logits."""
    logits = [_make_logits(mask_BSS) for _, mask_BSS in batches]

    def loss(number: int) -> torch.Tensor:
        logits_B1SS = logits[number % len(logits)]
        logits_B1SS.grad = None
        value = compute_loss(name, logits_B1SS, batches[number % len(batches)][1])
        value.backward()
        return value

    return loss


def make_tutorial_loss(batches: list[Batch], device: torch.device) -> Work:
    """The tutorial's Dice and the sigmoid before it, and their gradient."""
    logits = [_make_logits(mask_BSS) for _, mask_BSS in batches]
    masks = [(mask_BSS == 1).unsqueeze(1).float() for _, mask_BSS in batches]

    def loss(number: int) -> torch.Tensor:
        logits_B1SS = logits[number % len(logits)]
        logits_B1SS.grad = None
        value = compute_dice_loss(torch.sigmoid(logits_B1SS), masks[number % len(masks)])
        value.backward()
        return value

    return loss


def _make_logits(mask_BSS: torch.Tensor) -> torch.Tensor:
    return ((mask_BSS == 1).unsqueeze(1).float() * 4 - 2).requires_grad_()


def make_inference(model: nn.Module, batches: list[Batch], precision: str, device: torch.device) -> Work:
    """uint8 photos -> uint8 label maps in RAM: ours as `bench predict` does it, others by autocast."""
    if isinstance(model, UNet):
        predictor = make_predictor(model, precision, device)
        return lambda number: choose_labels(compute_logits(predictor, batches[number % len(batches)][0])).cpu()
    dtype = choose_precision(precision, device)
    model.eval()

    def infer(number: int) -> torch.Tensor:
        with torch.inference_mode(), autocast(device, dtype):
            return choose_labels(model(to_input(batches[number % len(batches)][0], device))).cpu()

    return infer


def make_runtime_inference(model: nn.Module, batches: list[Batch], runtime: str) -> Work:
    """The same as `bench predict` does it with a bundle: the exported file in its own library, on the CPU."""
    from catseg.onnx_file import dump_onnx
    from catseg.quantisation import quantise

    data = dump_onnx(model)
    if RUNTIMES[runtime].precision == "int8":
        data = quantise(data, torch.cat([photo_BSS3 for photo_BSS3, _ in batches]).numpy())
    predictor = open_file(data, RUNTIMES[runtime].file, runtime, torch.get_num_threads())
    return lambda number: choose_labels(compute_logits(predictor, batches[number % len(batches)][0]))


def make_tutorial_inference(init_features: int, batches: list[Batch], device: torch.device) -> Work:
    """The same by the tutorial's network and way."""
    model = TutorialUNet(init_features).to(device)
    return lambda number: predict(model, batches[number % len(batches)][0])


@cache
def read_sample(num: int, image_size: int) -> PhotoSet:
    """So many drawn photos, ready to be trained or scored on."""
    pairs = [Pair(f"{number}", lambda number=number: draw(number)) for number in range(num)]
    return read_pairs(pairs, [image_size])[image_size]


def make_epoch(size: Size, num_train: int, num_val: int, precision: str, device: torch.device) -> Work:
    """A whole epoch: training and validation, as `bench run` has it done. The next round is the next epoch."""
    config = TrainConfig(epochs=ENDLESS, batch_size=size.batch_size, precision=precision, image_size=size.image_size)
    training = make_training(make_unet(UNetConfig(size.init_features), seed=0), config, num_train, device)
    photos = read_sample(num_train, size.image_size), read_sample(num_val, size.image_size)
    epochs: Iterator[Epoch] = (event for event in advance(training, *photos) if isinstance(event, Epoch))
    return lambda number: next(epochs)


def make_tutorial_epoch(size: Size, num_train: int, num_val: int, device: torch.device) -> Work:
    """The tutorial's network and step on as many photos, decoded beforehand as ours are; predictions unscored."""
    train = make_batches(size, device, num_train // size.batch_size)
    step = make_tutorial_step(size.init_features, train, device)
    val = make_batches(size, device, num_val // size.batch_size)
    infer = make_tutorial_inference(size.init_features, val, device)

    def epoch(number: int) -> None:
        for batch in range(len(train)):
            step(batch)
        for batch in range(len(val)):
            infer(batch)

    return epoch


def measure_forward_gflop(model: nn.Module, image_size: int) -> float:
    """Billions of operations of one photo's forward pass, counted by torch: for networks that are not ours."""
    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() / 1e9
