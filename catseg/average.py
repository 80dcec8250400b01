"""A moving average of a network's weights and statistics (EMA): steadier than the weights themselves.

In:  a network, after each step of its training.   Out: a second network, the average.
Knows nothing of optimizers, losses or schedules.
"""

import copy
from dataclasses import dataclass

import torch

from catseg.unet import UNet


@dataclass
class Average:
    """A network that follows another one."""

    model: UNet  # in eval mode, without gradients
    num_steps: int = 0  # that it has followed


def make_average(model: UNet) -> Average:
    """Ready to follow: equal to the network as it is now, on its device."""
    return Average(copy.deepcopy(model).eval().requires_grad_(False))


@torch.no_grad()
def follow(average: Average, model: UNet, decay: float) -> None:
    """Move the average towards the network, batch norm's running statistics with it; the host waits for nothing.

    After n steps the decay is at most n / (9 + n), so that the random weights of the beginning are soon
    forgotten (as TensorFlow's ExponentialMovingAverage and timm do).
    """
    average.num_steps += 1
    weight = 1 - compute_decay(decay, average.num_steps)
    ours, theirs = list(average.model.state_dict().values()), list(model.state_dict().values())
    floats = [index for index, tensor in enumerate(ours) if tensor.is_floating_point()]  # the rest counts batches
    torch._foreach_lerp_([ours[index] for index in floats], [theirs[index] for index in floats], weight)


def compute_decay(decay: float, num_steps: int) -> float:
    """What is kept of the average at its n-th step, from 1."""
    return min(decay, num_steps / (9 + num_steps))
