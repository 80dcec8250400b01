"""How fast training is beside the tutorial's and its peers: the step, its parts, a whole epoch."""

from functools import partial

import clock
import pytest
from axes import over
from contest import Contest, Contestant, read_replayed
from entrants import ALL, FEW, OURS, PEERS, TUTORIAL, TWIN, find_absence, make_contest
from work import (
    Size,
    make_batches,
    make_epoch,
    make_forward,
    make_loss,
    make_training_step,
    make_tutorial_epoch,
    make_tutorial_forward,
    make_tutorial_loss,
    make_tutorial_step,
)

from catseg.device import choose_precision
from catseg.settings import compute_forward_gflop

pytestmark = pytest.mark.benchmark(timer=read_replayed)


@over([Size(32, 128, 4), Size(16, 256, 2)], FEW)
def test_training_step(enter, leave_out, size, name, names):
    if absence := find_absence(name):
        leave_out(absence)
    enter(
        make_contest("training step", size, names, make_training_step, make_tutorial_step, 3, clock.find_device()), name
    )


@over([Size(16, 128, 8)], [name for name in ALL if name not in PEERS])
def test_forward(enter, leave_out, size, name, names):
    if absence := find_absence(name):
        leave_out(absence)
    enter(make_contest("forward", size, names, make_forward, make_tutorial_forward, 1, clock.find_device()), name)


def make_loss_contest(size: Size) -> Contest:
    device = clock.find_device()
    batches = make_batches(size, device)
    ours = partial(make_loss, "bce_dice", batches, device)
    makers = {
        OURS: ours,
        "ours, dice": partial(make_loss, "dice", batches, device),
        TUTORIAL: partial(make_tutorial_loss, batches, device),
        TWIN: ours,
    }
    return Contest(
        f"loss and its gradient, {size.image_size} px, batch {size.batch_size}",
        tuple(Contestant(name, make, size.batch_size) for name, make in makers.items()),
        twins=(OURS, TWIN),
        base=TUTORIAL,
    )


@pytest.mark.parametrize("name", [OURS, "ours, dice", TUTORIAL, TWIN])
def test_loss(enter, name):
    enter(make_loss_contest(Size(0, 128, 8)), name)


NUM_TRAIN, NUM_VAL = 24, 8
EPOCH_SIZE = Size(16, 128, 8)


def make_epoch_contest() -> Contest:
    device = clock.find_device()
    passes = NUM_TRAIN * 3 + NUM_VAL
    gflop = passes * compute_forward_gflop(EPOCH_SIZE.init_features, EPOCH_SIZE.image_size)
    makers = {
        OURS: ("auto", partial(make_epoch, EPOCH_SIZE, NUM_TRAIN, NUM_VAL, "auto", device)),
        "ours, float32": ("float32", partial(make_epoch, EPOCH_SIZE, NUM_TRAIN, NUM_VAL, "float32", device)),
        TUTORIAL: ("float32", partial(make_tutorial_epoch, EPOCH_SIZE, NUM_TRAIN, NUM_VAL, device)),
        TWIN: ("auto", partial(make_epoch, EPOCH_SIZE, NUM_TRAIN, NUM_VAL, "auto", device)),
    }
    return Contest(
        f"epoch, {EPOCH_SIZE}, {NUM_TRAIN} photos to train, {NUM_VAL} to validate",
        tuple(
            Contestant(name, make, NUM_TRAIN + NUM_VAL, gflop, choose_precision(precision, device))
            for name, (precision, make) in makers.items()
        ),
        twins=(OURS, TWIN),
        base=TUTORIAL,
    )


@pytest.mark.parametrize("name", [OURS, "ours, float32", TUTORIAL, TWIN])
def test_epoch(enter, name):
    enter(make_epoch_contest(), name)
