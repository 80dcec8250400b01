"""Learning rates: by the step, known beforehand; by the score, a tenth when it stands still."""

import dataclasses
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from catseg.schedule import follow_score, follow_step, make_schedule
from catseg.settings import TrainConfig

SCHEDULES = get_args(get_type_hints(TrainConfig)["schedule"])


def make(schedule: str, num_steps: int, lr: float = 0.5):
    """A schedule and the optimizer whose learning rate it sets."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    return make_schedule(optimizer, dataclasses.replace(TrainConfig(), schedule=schedule, lr=lr), num_steps), optimizer


def step_through(schedule: str, num_steps: int) -> list[float]:
    """The learning rates with which `num_steps` steps are taken."""
    scheduler, optimizer = make(schedule, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        follow_step(scheduler)
    return rates


@pytest.mark.parametrize("num_steps", [20, 100])
def test_one_cycle_rises_for_three_tenths_and_ends_near_zero(num_steps):
    rates = step_through("one_cycle", num_steps)
    peak = int(np.argmax(rates))
    assert rates[0] < 0.1 * 0.5
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert peak == pytest.approx(0.3 * num_steps, abs=2)
    assert np.all(np.diff(rates[: peak + 1]) > 0) and np.all(np.diff(rates[peak:]) < 0)
    assert rates[-1] < 0.02 * 0.5


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_short_schedules_hold(schedule, num_steps):
    rates = step_through(schedule, num_steps)
    assert all(0 < rate <= 0.5 for rate in rates)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_steps_alone_change_nothing_of_some(schedule):
    assert step_through(schedule, 5) == [0.5] * 5


def test_cosine_by_hand():
    """40 steps: the 5 % that rise are two, and 38 fall; the one in the middle of them is taken with half of lr."""
    rates = step_through("cosine", 40)
    assert rates[:3] == [0.25, 0.5, 0.5]
    assert rates[2 + 19] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.25 * (1 + math.cos(math.pi * 37 / 38)))


def test_plateau_takes_a_tenth_after_more_than_five_scores_that_are_no_better():
    scheduler, optimizer = make("plateau", 100)
    rates = []
    for miou in [0.3, 0.4, *[0.4] * 6, 0.5, *[0.1] * 6]:
        follow_score(scheduler, miou)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5] * 7 + [0.05] * 7 + [0.005])


@pytest.mark.parametrize("schedule", sorted(set(SCHEDULES) - {"plateau"}))
def test_scores_change_nothing_of_the_others(schedule):
    scheduler, optimizer = make(schedule, 20)
    before = optimizer.param_groups[0]["lr"]
    for _ in range(10):
        follow_score(scheduler, 0.0)
    assert optimizer.param_groups[0]["lr"] == before
