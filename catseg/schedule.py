"""How the learning rate goes: `constant`, `one_cycle`, `cosine` by the step, `plateau` by the score.

In:  an optimizer, settings, the number of steps; val/miou.   Out: the optimizer's learning rate.
Knows nothing of networks or photos.
"""

import math

from torch import optim

from catseg.settings import TrainConfig

Schedule = optim.lr_scheduler.LRScheduler

WARMUP = 0.05  # share of the steps of `cosine` in which lr rises
PATIENCE, FACTOR = 5, 0.1  # of `plateau`, as in milesial/Pytorch-UNet, which counts its five validations an epoch


def make_schedule(optimizer: optim.Optimizer, config: TrainConfig, num_steps: int) -> Schedule:
    """The schedule that the settings name, ready for the first of so many steps.

    one_cycle: up to `lr` in the first 30 % of the steps, down to nearly 0 by the last (Smith and Topin, arXiv
    1708.07120). cosine: up to `lr` in the first 5 %, then down to 0 (Loshchilov and Hutter, arXiv 1608.03983).
    plateau: a tenth whenever val/miou has not risen for more than 5 validations in a row.
    """
    if config.schedule == "one_cycle":
        # one step more than is taken: the scheduler is stepped after the last one, too
        return optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=num_steps + 1, cycle_momentum=False)
    if config.schedule == "cosine":
        return optim.lr_scheduler.LambdaLR(optimizer, lambda step: compute_cosine(step, num_steps))
    if config.schedule == "plateau":
        return optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=FACTOR, patience=PATIENCE)
    return optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def follow_step(schedule: Schedule) -> None:
    """After a training step."""
    if not isinstance(schedule, optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step()


def follow_score(schedule: Schedule, miou: float) -> None:
    """After a validation."""
    if isinstance(schedule, optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step(miou)


def compute_cosine(step: int, num_steps: int) -> float:
    """The share of `lr` that a step (from 0) is taken with: up in equal parts to 1, then half a cosine to 0."""
    num_rising = max(1, round(WARMUP * num_steps))
    if step < num_rising:
        return (step + 1) / num_rising
    share = (step - num_rising) / max(1, num_steps - num_rising)
    return (1 + math.cos(math.pi * min(1.0, share))) / 2
