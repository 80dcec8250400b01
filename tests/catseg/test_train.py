"""The loop on a few drawn cats: repeatable, learning, honest about its numbers, stopped by what is not finite."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from catseg.dataset import PhotoSet
from catseg.inference import to_input
from catseg.losses import LOSSES, compute_loss
from catseg.metrics import compute_metrics
from catseg.optimizer import list_views
from catseg.schedule import compute_cosine
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import Epoch, NonFiniteError, Step, advance, make_training, pays_to_compile, train, train_step
from catseg.unet import UNet, make_unet

CPU = torch.device("cpu")
TINY = TrainConfig(image_size=32, epochs=2, batch_size=4, precision="float32")


def run(photos: PhotoSet, init_features: int = 2, val: PhotoSet | None = None, **settings) -> list[Epoch]:
    config = dataclasses.replace(TINY, **settings)
    model = make_unet(UNetConfig(init_features), config.seed)
    return list(train(model, photos, val or photos, config, CPU))


def list_losses(epochs: list[Epoch]) -> list[float]:
    return [loss for epoch in epochs for loss in (epoch.train_loss, epoch.val_loss)]


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_same_seed_gives_the_same_losses_bit_for_bit(make_set, precision, num_threads):
    photos, before = make_set(), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        torch.manual_seed(1)
        first = run(photos, seed=3, precision=precision)
        torch.manual_seed(2)  # the global generator has no say in it
        again = run(photos, seed=3, precision=precision)
    finally:
        torch.set_num_threads(before)
    assert list_losses(first) == list_losses(again)
    for epoch, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(epoch.val_counts_NK3, same.val_counts_NK3)


def test_another_seed_gives_other_losses(make_set):
    assert list_losses(run(make_set(), seed=0)) != list_losses(run(make_set(), seed=1))


def test_seed_orders_the_photos_too(make_set):
    """The same weights, another order of photos."""
    photos, losses = make_set(), []
    for seed in (0, 1):
        model = make_unet(UNetConfig(2), seed=0)
        losses += [list_losses(list(train(model, photos, photos, dataclasses.replace(TINY, seed=seed), CPU)))]
    assert losses[0] != losses[1]


def test_photos_come_in_another_order_in_every_epoch(make_set):
    """With weights that do not move, the loss of an epoch tells which photos were trained on together."""
    epochs = run(make_set(), epochs=6, batch_size=3, lr=1e-20, optimizer="adam", schedule="constant")
    assert len({round(epoch.train_loss, 6) for epoch in epochs}) > 1


def test_training_leaves_the_global_generator_alone(make_set):
    before = torch.get_rng_state()
    run(make_set(), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_loss_falls_with_every_loss_and_optimizer(make_set, loss, optimizer):
    epochs = run(make_set(), loss=loss, optimizer=optimizer, epochs=8, lr=0.02, schedule="constant")
    assert epochs[-1].train_loss < 0.9 * epochs[0].train_loss


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_few_cats_are_learnt_by_heart(make_set, loss):
    epochs = run(make_set(4), init_features=8, loss=loss, epochs=40, lr=0.01)
    assert compute_metrics(epochs[0].val_counts_NK3)["miou"] < 0.5
    assert compute_metrics(epochs[-1].val_counts_NK3)["miou"] > 0.75


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_runs_in_every_precision(make_set, precision):
    photos = make_set()
    epochs = run(photos, precision=precision, epochs=3, lr=0.02)
    reference = run(photos, epochs=3, lr=0.02)
    np.testing.assert_allclose(list_losses(epochs), list_losses(reference), rtol=0.1)
    if precision != "float32":  # neither training nor validation was computed in float32 after all
        assert epochs[0].train_loss != reference[0].train_loss
        assert epochs[0].val_loss != reference[0].val_loss


@pytest.mark.parametrize(("num", "batch_size"), [(5, 4), (5, 1), (1, 8), (3, 100)])
def test_any_number_of_photos_fits_into_batches(make_set, num, batch_size):
    """One photo may be left for the last batch; at 32 pixels the bottleneck still has four values for batch norm."""
    epochs = run(make_set(num), batch_size=batch_size)
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert all(math.isfinite(loss) for loss in list_losses(epochs))
    assert all(epoch.val_counts_NK3.shape == (num, 1, 3) for epoch in epochs)


@torch.no_grad()
def compute_batch_loss(model: UNet, photos: PhotoSet, batch: list[int]) -> float:
    model.train()
    logits = model(to_input(torch.tensor(photos.photo_NSS3[batch]), CPU))
    return compute_loss(TINY.loss, logits, torch.tensor(photos.mask_NSS[batch])).item()


def test_train_loss_is_the_mean_over_photos_and_not_over_batches(make_set):
    """Five photos in batches of 4 and 1, weights that do not move: whichever photo is left, it counts as one."""
    photos = make_set(5)
    (epoch,) = run(photos, epochs=1, lr=1e-20, optimizer="adam", schedule="constant")
    model, possible = make_unet(UNetConfig(2), TINY.seed), []
    for left in range(5):
        others = [index for index in range(5) if index != left]
        four, one = compute_batch_loss(model, photos, others), compute_batch_loss(model, photos, [left])
        possible.append((4 * four + one) / 5)
    assert min(abs(epoch.train_loss - mean) for mean in possible) < 1e-5


def test_training_goes_on_in_training_mode_after_a_validation(make_set):
    photos, model, means = make_set(), make_unet(UNetConfig(2), seed=0), []
    for _ in train(model, photos, photos, dataclasses.replace(TINY, epochs=3), CPU):
        means.append(model.encoders[0][1].running_mean.clone())
    assert not torch.equal(means[0], means[1])
    assert not torch.equal(means[1], means[2])
    assert model.encoders[0][1].num_batches_tracked == 3 * 2


def test_epochs_come_one_by_one(make_set):
    """The loop yields: whoever asks for one epoch pays for one."""
    photos, model = make_set(), make_unet(UNetConfig(2), seed=0)
    epochs = train(model, photos, photos, dataclasses.replace(TINY, epochs=10**6, schedule="constant"), CPU)
    assert next(epochs).number == 1
    after_first = model.head.weight.clone()
    assert next(epochs).number == 2
    assert not torch.equal(model.head.weight, after_first)
    epochs.close()


def test_every_batch_gives_a_sign_of_life(make_set):
    """Five photos to train on and three to validate on, in batches of two: 3 steps and 2, then the epoch."""
    training = make_training(make_unet(UNetConfig(2), 0), dataclasses.replace(TINY, batch_size=2), 5, CPU)
    events = list(advance(training, make_set(5), make_set(3)))
    assert [type(event) for event in events] == 2 * [*5 * [Step], Epoch]


def test_best_epoch_is_the_first_of_the_highest_miou_with_its_weights(make_set):
    """After the fourth of six epochs the network is made blind: it finds no cat any more."""
    photos = make_set(4)
    config = dataclasses.replace(TINY, epochs=6, lr=0.01, batch_size=2, schedule="constant")
    training = make_training(make_unet(UNetConfig(8), 0), config, 4, CPU)
    mious, weights = [], []
    for event in advance(training, photos, photos):
        if isinstance(event, Epoch):
            mious.append(compute_metrics(event.val_counts_NK3)["miou"])
            weights.append({name: tensor.clone() for name, tensor in training.model.state_dict().items()})
            if event.number == 4:
                training.model.head.bias.data.fill_(-100.0)
    best = int(np.argmax(mious))
    assert training.best.miou == mious[best] > max(mious[0], mious[-1])
    assert training.best.epoch.number == best + 1
    assert all(torch.equal(tensor, weights[best][name]) for name, tensor in training.best.weights.items())


def test_epochs_of_equal_miou_leave_the_first_the_best(make_set):
    photos = make_set(4)
    config = dataclasses.replace(TINY, epochs=3, lr=1e-20, optimizer="adam", schedule="constant")
    training = make_training(make_unet(UNetConfig(2), 0), config, 4, CPU)
    for module in training.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # statistics stay, too: every epoch predicts the same
    epochs = [event for event in advance(training, photos, photos) if isinstance(event, Epoch)]
    assert len({compute_metrics(epoch.val_counts_NK3)["miou"] for epoch in epochs}) == 1
    assert training.best.epoch.number == 1


def test_epoch_says_how_long_it_took_and_how_fast_that_was(make_set):
    for epoch in run(make_set(6)):
        assert epoch.train_seconds > 0 and epoch.val_seconds > 0
        assert epoch.photos_per_second == pytest.approx(6 / epoch.train_seconds)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_absurd_learning_rate_is_stopped_with_the_step_and_the_tensor(make_set, loss, optimizer):
    with pytest.raises(NonFiniteError) as caught:
        run(make_set(), lr=1e30, loss=loss, optimizer=optimizer, schedule="constant", batch_size=3)
    assert str(caught.value).startswith("train/loss is nan at step 2")
    assert "encoders.0.0.weight" in str(caught.value)


def test_steps_are_counted_from_the_first_epoch(make_set):
    """The loss turns infinite in the third epoch of two steps: step 5."""
    photos, model = make_set(), make_unet(UNetConfig(2), seed=0)
    epochs = train(model, photos, photos, dataclasses.replace(TINY, epochs=4), CPU)
    next(epochs), next(epochs)
    with torch.no_grad():
        model.bottleneck[0].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="at step 5"):
        next(epochs)


def test_validation_that_is_not_finite_is_stopped_with_the_epoch(make_set):
    """One step per epoch: its own loss is still finite, and the weights it leaves are not."""
    with pytest.raises(NonFiniteError, match=r"val/loss is (nan|inf) after epoch 1"):
        run(make_set(), lr=1e30, schedule="constant", batch_size=6)


def test_epoch_reports_the_learning_rate_of_its_first_step(make_set):
    photos = make_set()
    epochs = run(photos, epochs=4, batch_size=2, lr=0.01, schedule="cosine")
    expected = [0.01 * compute_cosine(step, 4 * 3) for step in (0, 3, 6, 9)]
    assert [epoch.lr for epoch in epochs] == pytest.approx(expected)


def test_weight_decay_is_adamws_and_not_adams(make_set):
    losses = {
        (optimizer, decay): list_losses(run(make_set(), optimizer=optimizer, weight_decay=decay, lr=0.1))
        for optimizer in ("adam", "adamw")
        for decay in (0.0, 0.9)
    }
    assert losses["adam", 0.0] == losses["adam", 0.9]
    assert losses["adamw", 0.0] != losses["adamw", 0.9]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": 1.0}, "weight_decay"),
        ({"momentum": 1.0}, "momentum"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"ema": 0.0}, "ema"),
        ({"ema": 1.0}, "ema"),
        ({"dice_weight": 1.1}, "dice_weight"),
        ({"augment_fade": -0.1}, "augment_fade"),
        ({"grow_epochs": 1.0}, "grow_epochs"),
        ({"first_size": 16}, "first_size"),
        ({"first_size": 72}, "first_size"),
        ({"first_size": 144}, "first_size"),
        ({"val_every": 0}, "val_every"),
        ({"image_size": 16}, "image_size"),
        ({"image_size": 100}, "image_size"),
        ({"image_size": 8192}, "image_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**settings)


def test_every_nth_epoch_is_validated_and_the_last(make_set):
    """What is not validated is trained all the same."""
    photos = make_set()
    every, some = run(photos, epochs=5), run(photos, epochs=5, val_every=2)
    assert [epoch.val_loss for epoch in some] == [
        None if number in (1, 3) else epoch.val_loss for number, epoch in enumerate(every, 1)
    ]
    assert [epoch.val_counts_NK3 is None for epoch in some] == [True, False, True, False, False]
    assert [epoch.val_seconds > 0 for epoch in some] == [False, True, False, True, True]
    assert [epoch.train_loss for epoch in some] == [epoch.train_loss for epoch in every]


def test_a_known_recipe_of_batches_of_one_is_trained(make_set):
    """milesial/Pytorch-UNet's: RMSprop, clipped gradients, a plateau."""
    settings = {"optimizer": "rmsprop", "momentum": 0.999, "weight_decay": 1e-8, "clip_norm": 1.0}
    epochs = run(make_set(), batch_size=1, lr=1e-4, schedule="plateau", epochs=3, **settings)
    losses = [epoch.train_loss for epoch in epochs]
    assert all(map(math.isfinite, list_losses(epochs))) and losses[2] < losses[0]


@pytest.mark.parametrize("clip_norm", [1e-3, 1e9])
def test_the_norm_of_all_gradients_together_is_clipped(make_set, clip_norm):
    photos = make_set()
    config = dataclasses.replace(TINY, clip_norm=clip_norm, lr=1e-20)
    training = make_training(make_unet(UNetConfig(2), 0), config, 6, CPU)
    norms = []
    for clip in (None, clip_norm):
        training.config = dataclasses.replace(config, clip_norm=clip)
        train_step(training, torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS))
        gradients = [view.grad.flatten() for view in list_views(training.optimizer)]
        norms.append(torch.cat(gradients).norm().item())
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(min(norms[0], clip_norm), rel=1e-3)


@pytest.mark.slow
def test_tutorials_cats_are_learnt_by_heart(real_data):
    from catseg.dataset import load_test_set

    photos, _ = load_test_set(str(real_data / "tutorial-cats"), ("cat",), 64)
    config = dataclasses.replace(TINY, image_size=64, epochs=60, batch_size=8, lr=0.005)
    *_, last = train(make_unet(UNetConfig(8), 0), photos, photos, config, CPU)
    assert compute_metrics(last.val_counts_NK3)["miou"] > 0.8


@pytest.mark.parametrize(
    ("device", "epoch_seconds", "tool", "pays"),
    [
        ("cuda", [], "/usr/bin/cc", False),
        ("cuda", [30.0], "/usr/bin/cc", True),
        ("cuda", [30.0], None, False),
        ("cuda", [20.0], "/usr/bin/cc", False),
        ("cpu", [3000.0], "/usr/bin/cc", False),
    ],
)
def test_compiling_pays_on_a_gpu_when_what_is_left_is_long(monkeypatch, device, epoch_seconds, tool, pays):
    """9 epochs are left, of which it saves 0.3: 81 s or 54 s, against the 60 s it takes."""
    monkeypatch.setattr("catseg.train.find_spec", lambda name: tool)
    monkeypatch.setattr(shutil, "which", lambda name: tool)
    config = dataclasses.replace(TINY, epochs=10)
    training = make_training(make_unet(UNetConfig(2), 0), config, 4, CPU)
    training.device, training.epoch, training.epoch_seconds = torch.device(device), 1, epoch_seconds
    assert pays_to_compile(training) is pays


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning")  # torch's own, about its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_to_the_same_losses(make_set):
    """Its last batch is a smaller one, which goes through the network as it is."""
    plain = list_losses(run(make_set(), compile="off", epochs=2, batch_size=4))
    compiled = list_losses(run(make_set(), compile="on", epochs=2, batch_size=4))
    assert compiled == pytest.approx(plain, rel=1e-3)
