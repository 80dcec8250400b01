"""The loop on a few drawn cats: repeatable, learning, honest about its numbers, stopped by what is not finite."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catseg.dataset import PhotoSet, read_pairs
from catseg.folder import Pair
from catseg.losses import LOSSES, compute_loss
from catseg.metrics import compute_metrics, count_pixels
from catseg.photo import VOID, fit_mask, fit_photo
from catseg.train import (
    SCHEDULES,
    Epoch,
    NonFiniteError,
    TrainConfig,
    evaluate,
    place,
    predict_fitted,
    restore_labels,
    to_input,
    train,
)
from catseg.unet import UNet, UNetConfig, make_unet

CPU = torch.device("cpu")
TINY = TrainConfig(image_size=32, epochs=2, batch_size=4, precision="float32")


@pytest.fixture(scope="module")
def make_set(draw_cat):
    """make_set(num, image_size): drawn cats of 64 x 48 as training has them."""

    def make(num: int = 6, image_size: int = 32) -> PhotoSet:
        pairs = [Pair(f"cat-{index}", partial(draw_cat, index)) for index in range(num)]
        return read_pairs(pairs, [image_size])[image_size]

    return make


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


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_validation_does_not_depend_on_the_batch_size(make_set, precision):
    photos, model = make_set(7), make_unet(UNetConfig(4), seed=0)
    list(train(model, photos, photos, dataclasses.replace(TINY, lr=0.01, epochs=4), CPU))
    results = [
        evaluate(model, photos, dataclasses.replace(TINY, batch_size=batch_size, precision=precision), CPU)
        for batch_size in (1, 2, 3, 7, 50)
    ]
    assert results[0][1].sum() > 0
    for loss, counts in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-3 if precision == "auto" else 1e-5)
        np.testing.assert_array_equal(counts, results[0][1])


def make_brightness_model() -> torch.nn.Module:
    """Calls bright pixels cats and dark ones background: what it predicts is known."""
    model = torch.nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        model.weight.fill_(10.0)
        model.bias.fill_(-15.0)
    model.config = UNetConfig(1)
    return model


def make_bright_set(sizes: list[tuple[int, int]], image_size: int) -> PhotoSet:
    """Photos of any sizes, white where their masks have a cat: the lower right quarter."""
    pairs = []
    for height, width in sizes:
        mask = np.zeros((height, width), np.uint8)
        mask[height // 2 :, width // 2 :] = 1
        photo = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        pairs.append(Pair(f"{height} x {width}", lambda photo=photo, mask=mask: (photo, mask)))
    return read_pairs(pairs, [image_size])[image_size]


def test_validation_counts_at_the_size_of_each_photo():
    sizes = [(64, 64), (64, 48), (33, 64), (64, 1)]
    photos = make_bright_set(sizes, 64)  # fitted without scaling: every pixel must agree
    _, counts = evaluate(make_brightness_model(), photos, dataclasses.replace(TINY, image_size=64), CPU)
    expected = [[[np.count_nonzero(mask), 0, 0]] for mask in photos.native_masks]
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


@given(st.integers(20, 150), st.integers(20, 150), st.sampled_from([32, 64, 96]))
def test_logits_go_back_to_where_the_photo_was(height, width, image_size):
    """Scaled to any square and back, the cat lies where it lay, up to the width of the scaled-down pixels."""
    photos = make_bright_set([(height, width)], image_size)
    _, counts = evaluate(make_brightness_model(), photos, dataclasses.replace(TINY, image_size=image_size), CPU)
    hits, false_alarms, misses = counts[0, 0]
    pixel = max(1.0, max(height, width) / image_size)  # of the scaled photo, in pixels of the photo
    assert false_alarms + misses <= pixel * (height + width) / 2 + 4
    assert hits > false_alarms + misses


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([32, 64]), st.integers(1, 3))
def test_restored_labels_have_the_photos_size_and_no_new_class(height, width, image_size, num_classes):
    logits = torch.randn(num_classes, image_size, image_size, generator=torch.Generator().manual_seed(height))
    labels = restore_labels(logits, height, width)
    assert labels.shape == (height, width) and labels.dtype == torch.uint8
    assert labels.max() <= num_classes


@given(st.integers(1, 32), st.integers(1, 32))
def test_what_lies_beyond_the_photo_is_not_scaled_into_it(height, width):
    """Logits beyond the photo are high, on it they are low: nothing of them may be seen."""
    fitted = torch.tensor(fit_mask(np.zeros((height, width), np.uint8), 32))
    logits = torch.where(fitted == VOID, 100.0, -1.0).unsqueeze(0)
    assert restore_labels(logits, height, width).max() == 0


def test_validation_ignores_void_pixels():
    photo, mask = np.full((32, 32, 3), 255, np.uint8), np.ones((32, 32), np.uint8)
    mask[:8] = VOID
    photos = read_pairs([Pair("a", lambda: (photo, mask))], [32])[32]
    _, counts = evaluate(make_brightness_model(), photos, TINY, CPU)
    assert counts.tolist() == [[[24 * 32, 0, 0]]]


def test_validation_loss_is_that_of_all_photos_together(make_set):
    photos, model = make_set(5), make_unet(UNetConfig(2), seed=0).eval()
    loss, counts = evaluate(model, photos, dataclasses.replace(TINY, batch_size=2), CPU)
    with torch.inference_mode():
        logits = model(to_input(torch.tensor(photos.photo_NSS3), CPU))
        together = compute_loss(TINY.loss, logits, torch.tensor(photos.mask_NSS))
    assert loss == pytest.approx(together.item(), rel=1e-5)
    labels = [restore_labels(logits_KSS, 48, 64) for logits_KSS in logits]
    expected = [
        count_pixels(label, torch.tensor(mask), 1).tolist()
        for label, mask in zip(labels, photos.native_masks, strict=True)
    ]
    assert counts.tolist() == expected


def test_validation_changes_no_weight_and_no_statistic(make_set):
    model = make_unet(UNetConfig(2), seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, make_set(), TINY, CPU)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


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


def step_through(schedule: str, num_steps: int, lr: float = 0.5) -> list[float]:
    """The learning rates with which `num_steps` steps are taken."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    scheduler = SCHEDULES[schedule](optimizer, dataclasses.replace(TINY, lr=lr), num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
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
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_short_schedules_hold(schedule, num_steps):
    rates = step_through(schedule, num_steps)
    assert all(0 < rate <= 0.5 for rate in rates)


def test_constant_schedule_is_constant():
    assert step_through("constant", 5) == [0.5] * 5


def test_epoch_reports_the_learning_rate_of_its_first_step(make_set):
    photos = make_set()
    rates = step_through("one_cycle", 4 * 3, lr=0.01)
    epochs = run(photos, epochs=4, batch_size=2, lr=0.01)
    assert [epoch.lr for epoch in epochs] == pytest.approx([rates[0], rates[3], rates[6], rates[9]])


def test_weight_decay_is_adamws_and_not_adams(make_set):
    losses = {
        (optimizer, decay): list_losses(run(make_set(), optimizer=optimizer, weight_decay=decay, lr=0.1))
        for optimizer in ("adam", "adamw")
        for decay in (0.0, 0.9)
    }
    assert losses["adam", 0.0] == losses["adam", 0.9]
    assert losses["adamw", 0.0] != losses["adamw", 0.9]


def test_input_is_between_zero_and_one_and_channels_come_first():
    photo_BSS3 = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    photo_BSS3[1, 2, 3] = torch.tensor([255, 51, 0])
    photo_B3SS = to_input(photo_BSS3, CPU)
    assert photo_B3SS.shape == (2, 3, 4, 4) and photo_B3SS.dtype == torch.float32
    np.testing.assert_allclose(photo_B3SS[1, :, 2, 3], [1, 0.2, 0])
    assert photo_B3SS.sum() == pytest.approx(1.2)
    assert photo_B3SS.is_contiguous(memory_format=torch.channels_last)


def test_photos_are_placed_as_bytes(make_set):
    photos = make_set(3)
    photo_NSS3, mask_NSS = place(photos, CPU)
    assert photo_NSS3.dtype == mask_NSS.dtype == torch.uint8
    np.testing.assert_array_equal(photo_NSS3, photos.photo_NSS3)
    np.testing.assert_array_equal(mask_NSS, photos.mask_NSS)


def test_one_fitted_photo_is_predicted_at_the_size_asked_for():
    photo = np.zeros((40, 64, 3), np.uint8)
    photo[:, 32:] = 255
    labels = predict_fitted(make_brightness_model(), fit_photo(photo, 64), (40, 64), "float32", CPU)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, photo[..., 0] // 255)


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
        ({"image_size": 16}, "image_size"),
        ({"image_size": 100}, "image_size"),
        ({"image_size": 8192}, "image_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**settings)


@pytest.mark.slow
def test_tutorials_cats_are_learnt_by_heart(real_data):
    from catseg.dataset import load_photo_set

    photos = load_photo_set(str(real_data / "tutorial-cats"), ("cat",), 64)
    config = dataclasses.replace(TINY, image_size=64, epochs=60, batch_size=8, lr=0.005)
    *_, last = train(make_unet(UNetConfig(8), 0), photos, photos, config, CPU)
    assert compute_metrics(last.val_counts_NK3)["miou"] > 0.8
