"""Light augmentation: photo and mask stay together, labels stay labels, a photo's draws are its own."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from catseg.augment import NUM_DRAWS, RANGES, Ranges, augment, draw, draw_changes, make_changes, make_color_matrices
from catseg.dataset import PhotoSet
from catseg.inference import evaluate, to_input
from catseg.losses import compute_loss
from catseg.photo import VOID, fit_mask, fit_photo
from catseg.settings import TrainConfig, UNetConfig, compute_augment_strength
from catseg.train import Epoch, train
from catseg.unet import make_unet

CPU = torch.device("cpu")
SIDE = 48
MIRRORED, ANGLE, SCALE, RIGHT, DOWN, BRIGHTNESS, CONTRAST = range(NUM_DRAWS)
TINY = TrainConfig(image_size=32, epochs=2, batch_size=4, precision="float32", augment="light")

a_draw = st.floats(-1, 1, width=32)
draws_of_one = arrays(np.float64, (1, NUM_DRAWS), elements=a_draw)
shapes = st.tuples(st.integers(20, 60), st.integers(20, 60))


def change(photo_HW3, mask_HW, draws_N7, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """One photo fitted and augmented by each row of draws: photo_NSS3 and mask_NSS."""
    num = len(draws_N7)
    photo_NSS3 = torch.tensor(fit_photo(photo_HW3, side)).expand(num, -1, -1, -1)
    mask_NSS = torch.tensor(fit_mask(mask_HW, side)).expand(num, -1, -1)
    used_N2 = np.tile(measure_used(mask_HW, side), (num, 1))
    photo, mask = augment(photo_NSS3, mask_NSS, make_changes(draws_N7, used_N2), CPU)
    return photo.numpy(), mask.numpy()


def measure_used(mask_HW, side: int) -> tuple[int, int]:
    fitted = fit_mask(np.zeros_like(mask_HW), side) == 0
    return fitted.any(1).sum(), fitted.any(0).sum()


def make_draws(**values: float) -> np.ndarray:
    """One row: what is named, and nothing else is changed."""
    draws_17 = np.zeros((1, NUM_DRAWS))
    for name, value in values.items():
        draws_17[0, globals()[name.upper()]] = value
    return draws_17


def draw_blob(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo whose mask is a function of its colours: bright where the cat is, dark elsewhere, and never black."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    mask_HW = (ndimage.gaussian_filter(noise, 5) > 0).astype(np.uint8)
    return np.repeat(np.where(mask_HW, 160, 96).astype(np.uint8)[:, :, None], 3, axis=2), mask_HW


def draw_noise(height: int, width: int, num_labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(0)
    labels = numbers.choice([*range(num_labels), VOID], (height, width)).astype(np.uint8)
    return numbers.integers(0, 256, (height, width, 3), np.uint8), labels


def test_draws_of_zero_change_nothing():
    photo, mask = draw_noise(SIDE, 36)
    (photo_SS3,), (mask_SS,) = change(photo, mask, np.zeros((1, NUM_DRAWS)))
    np.testing.assert_allclose(photo_SS3, fit_photo(photo, SIDE) / 255, atol=1e-4)
    np.testing.assert_array_equal(mask_SS, fit_mask(mask, SIDE))


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, 36), (SIDE, 35), (36, SIDE)], ids=str)
def test_a_mirrored_photo_stays_in_its_corner(shape):
    photo, mask = draw_noise(*shape)
    (photo_SS3,), (mask_SS,) = change(photo, mask, make_draws(mirrored=-0.5))
    np.testing.assert_allclose(photo_SS3, fit_photo(photo[:, ::-1], SIDE) / 255, atol=1e-4)
    np.testing.assert_array_equal(mask_SS, fit_mask(mask[:, ::-1], SIDE))


def test_a_shift_is_a_share_of_the_photos_own_size_to_the_right_and_down():
    """The whole draw is a tenth: 4 of 40 pixels to the right; half of it 1 of 20 down."""
    photo, mask = draw_noise(20, 40)
    (photo_SS3,), (mask_SS,) = change(photo, mask, make_draws(right=1, down=0.5), side=40)
    expected = np.full((40, 40), VOID)
    expected[1:21, 4:] = mask[:, :-4]
    np.testing.assert_array_equal(mask_SS, expected)
    np.testing.assert_allclose(photo_SS3[1:21, 4:], photo[:, :-4] / 255, atol=1e-4)
    assert photo_SS3[0].max() <= 1e-4 and photo_SS3[:, :4].max() <= 1e-4 and photo_SS3[21:].max() <= 1e-4


def test_scale_is_about_the_middle_of_the_photo():
    """A square of 20 in the middle of 40 becomes one of 25, or of 16."""
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    photo = np.repeat(mask[:, :, None], 3, axis=2)
    (_, _), (larger, smaller) = change(photo, mask, np.concatenate([make_draws(scale=1), make_draws(scale=-1)]), 40)
    assert 24**2 <= (larger == 1).sum() <= 26**2  # its edges fall on the middle of pixels
    assert (smaller == 1).sum() == 16**2
    assert (smaller != VOID).sum() == 32**2
    for labels in (larger, smaller):
        assert ndimage.center_of_mass(labels == 1) == pytest.approx((19.5, 19.5), abs=0.5)


def test_a_full_turn_is_of_15_degrees():
    """A thin line through the middle, and how steeply it lies after it."""
    mask = np.zeros((65, 65), np.uint8)
    mask[32] = 1
    (_, _), (clockwise, other) = change(
        np.repeat(mask[:, :, None], 3, axis=2), mask, np.concatenate([make_draws(angle=1), make_draws(angle=-1)]), 65
    )
    for labels, sign in ((clockwise, 1), (other, -1)):
        rows, columns = np.nonzero(labels == 1)
        slope = np.polyfit(columns, rows, 1)[0]
        assert math.degrees(math.atan(slope)) == pytest.approx(sign * 15, abs=0.5)


@pytest.mark.parametrize(
    ("draws", "before", "after"),
    [
        ({"brightness": 1}, 0.2, 0.24),
        ({"brightness": -1}, 0.6, 0.48),
        ({"contrast": 1}, 0.2, 0.14),  # further from the middle by a fifth
        ({"contrast": -1}, 0.2, 0.26),
        ({"contrast": 1}, 0.8, 0.86),
        ({"brightness": 1, "contrast": -1}, 0.4, 1.2 * 0.42),
        ({"brightness": 1}, 1.0, 1.0),
        ({"contrast": 1}, 0.0, 0.0),
    ],
)
def test_brightness_and_contrast_by_hand(draws, before, after):
    photo = np.full((32, 32, 3), round(before * 255), np.uint8)
    (photo_SS3,), _ = change(photo, np.zeros((32, 32), np.uint8), make_draws(**draws), side=32)
    np.testing.assert_allclose(photo_SS3, after, atol=0.003)


@given(draws_of_one, st.sampled_from([(SIDE, SIDE), (30, SIDE), (SIDE, 31)]), st.integers(0, 5))
def test_mask_and_photo_stay_together(draws_17, shape, seed):
    """Where a pixel and its neighbours have one label, the photo's colour is that label's."""
    photo, mask = draw_blob(*shape, seed)
    (photo_SS3,), (mask_SS,) = change(photo, mask, draws_17)
    gain, offset = make_changes(draws_17, np.ones((1, 2)))[0, 6:8].tolist()
    bright_SS = photo_SS3[:, :, 0] > gain * 128 / 255 + offset
    around = np.ones((3, 3))
    for label, expected in ((1, True), (0, False)):
        certain = ndimage.binary_erosion(mask_SS == label, around)
        assert (bright_SS[certain] == expected).all()
        assert certain.sum() >= 50
    nothing = ndimage.binary_erosion(mask_SS == VOID, around, border_value=1)
    assert (photo_SS3[nothing] == 0).all()


@given(draws_of_one, shapes, st.integers(1, 254))
def test_no_label_appears_but_void(draws_17, shape, num_labels):
    photo, mask = draw_noise(*shape, num_labels)
    (photo_SS3,), (mask_SS,) = change(photo, mask, draws_17)
    assert mask_SS.dtype == np.uint8 and mask_SS.shape == (SIDE, SIDE)
    assert set(np.unique(mask_SS)) <= {*np.unique(fit_mask(mask, SIDE)), VOID}
    assert photo_SS3.dtype == np.float32 and photo_SS3.shape == (SIDE, SIDE, 3)
    assert photo_SS3.min() >= 0 and photo_SS3.max() <= 1


@given(draws_of_one, shapes)
def test_void_stays_void(draws_17, shape):
    photo, mask = draw_noise(*shape)
    _, (mask_SS,) = change(photo, np.full_like(mask, VOID), draws_17)
    assert (mask_SS == VOID).all()


@given(draws_of_one, shapes)
def test_nothing_but_void_lies_on_what_is_not_of_the_photo(draws_17, shape):
    """The rim that the warp brings in and the one that was there before are alike: black and void."""
    white, cat = np.full((*shape, 3), 255, np.uint8), np.ones(shape, np.uint8)
    (photo_SS3,), (mask_SS,) = change(white, cat, draws_17)
    assert (photo_SS3[mask_SS != VOID] > 0.15).all()  # at least a quarter of a white pixel that was darkened
    assert (photo_SS3[ndimage.binary_erosion(mask_SS == VOID, np.ones((3, 3)), border_value=1)] == 0).all()


@given(draws_of_one, st.tuples(st.integers(8, 512), st.integers(8, 512)))
def test_changes_are_within_their_limits(draws_17, used):
    changes_10 = make_changes(draws_17, np.array([used]))[0].double().numpy()
    matrix_22, shift_2 = changes_10[:6].reshape(2, 3)[:, :2], changes_10[:6].reshape(2, 3)[:, 2]
    scale = math.sqrt(abs(np.linalg.det(matrix_22)))
    assert 0.8 - 1e-5 <= scale <= 1.25 + 1e-5
    assert (np.linalg.det(matrix_22) < 0) == (draws_17[0, MIRRORED] < 0)
    np.testing.assert_allclose(matrix_22 @ matrix_22.T, scale**2 * np.eye(2), atol=1e-5)  # neither sheared nor squashed
    assert abs(math.degrees(math.atan2(-matrix_22[0, 1], matrix_22[1, 1]))) <= 15 + 1e-3
    middle_2 = (np.array(used)[::-1] - 1) / 2
    moved_2 = matrix_22 @ middle_2 + shift_2 - middle_2
    assert (np.abs(moved_2) <= 0.1 * np.array(used)[::-1] + 1e-3).all()
    gain, offset = changes_10[6:8]
    assert 0.64 - 1e-6 <= gain <= 1.44 + 1e-6 and abs(offset) <= 0.12 + 1e-6


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.integers(1, 40), st.integers(1, 40))
def test_draws_are_a_function_of_seed_epoch_and_photo(seed, epoch, num, more):
    draws_N7 = draw(seed, epoch, num)
    assert draws_N7.shape == (num, NUM_DRAWS) and np.abs(draws_N7).max() <= 1
    np.testing.assert_array_equal(draw(seed, epoch, num + more)[:num], draws_N7)
    for other in (draw(seed + 1, epoch, num), draw(seed, epoch + 1, num), draw(seed, epoch, num + 1)[1:]):
        assert not np.any(other == draws_N7)


def test_draws_fill_their_range_evenly():
    draws_N7 = draw(0, 1, 4000)
    np.testing.assert_allclose(draws_N7.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(draws_N7.std(axis=0), 1 / math.sqrt(3), atol=0.02)


@given(st.permutations(range(7)), st.integers(1, 7))
def test_batch_and_order_change_nothing(order, batch_size):
    numbers = np.random.default_rng(1)
    photo_NSS3 = torch.tensor(numbers.integers(0, 256, (7, 32, 32, 3), np.uint8))
    mask_NSS = torch.tensor(numbers.integers(0, 3, (7, 32, 32)).astype(np.uint8))
    changes_N10 = draw_changes(0, 1, np.full((7, 2), 32))
    photo, mask = augment(photo_NSS3, mask_NSS, changes_N10, CPU)
    for batch in torch.split(torch.tensor(order), batch_size):
        part = augment(photo_NSS3[batch], mask_NSS[batch], changes_N10[batch], CPU)
        assert torch.equal(part[0], photo[batch]) and torch.equal(part[1], mask[batch])


def test_photos_that_are_given_stay_as_they_are():
    photo, mask = draw_noise(32, 32)
    photo_1SS3, mask_1SS = torch.tensor(photo)[None], torch.tensor(mask)[None]
    changed, _ = augment(photo_1SS3, mask_1SS, draw_changes(0, 1, np.full((1, 2), 32)), CPU)
    before = changed.clone()
    assert torch.equal(to_input(changed, CPU), before.permute(0, 3, 1, 2))  # floats 0..1: not divided by 255 again
    assert torch.equal(changed, before)
    np.testing.assert_array_equal(photo_1SS3[0], photo)
    np.testing.assert_array_equal(mask_1SS[0], mask)


def run(photos: PhotoSet, **settings) -> list[Epoch]:
    config = dataclasses.replace(TINY, **settings)
    return list(train(make_unet(UNetConfig(2), 0), photos, photos, config, CPU))


def list_losses(epochs: list[Epoch]) -> list[float]:
    return [loss for epoch in epochs for loss in (epoch.train_loss, epoch.val_loss)]


def test_same_seed_gives_the_same_losses_and_none_gives_others(make_set):
    photos = make_set()
    torch.manual_seed(1)
    first = list_losses(run(photos))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert list_losses(run(photos)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert list_losses(run(photos, augment="none")) != first


def test_photos_are_changed_otherwise_in_every_epoch(make_set):
    """One batch of all photos, in whatever order, and weights that do not move: without it, every epoch is the same."""
    settings = {"epochs": 3, "batch_size": 6, "lr": 1e-20, "optimizer": "adam", "schedule": "constant"}
    assert len({round(epoch.train_loss, 4) for epoch in run(make_set(), **settings)}) == 3
    assert len({round(epoch.train_loss, 4) for epoch in run(make_set(), augment="none", **settings)}) == 1


def test_every_photo_is_changed_by_its_own_draws_wherever_it_stands_in_the_batch(make_set):
    """One batch of all photos: its loss does not depend on their order, so it can be had without it."""
    photos, model = make_set(), make_unet(UNetConfig(2), 0).train()
    changes_N10 = draw_changes(0, 1, photos.used_N2)
    photo, mask = augment(torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS), changes_N10, CPU)
    expected = compute_loss(TINY.loss, model(to_input(photo, CPU)), mask).item()
    (epoch,) = run(photos, epochs=1, batch_size=6, schedule="constant")
    assert epoch.train_loss == pytest.approx(expected, abs=1e-5)


def test_validation_photos_are_not_changed(make_set):
    train_set, val_set, model = make_set(), make_set(3), make_unet(UNetConfig(2), 0)
    for epoch in train(model, train_set, val_set, TINY, CPU):
        val_loss, counts_NK3 = evaluate(model, val_set, TINY.loss, TINY.batch_size, TINY.precision, CPU)
        assert epoch.val_loss == val_loss
        np.testing.assert_array_equal(epoch.val_counts_NK3, counts_NK3)


def test_augmented_cats_are_learnt(make_set):
    epochs = run(make_set(), epochs=8, lr=0.02, schedule="constant")
    assert epochs[-1].train_loss < 0.9 * epochs[0].train_loss


def test_kornia_is_waited_for_only_where_photos_are_augmented():
    script = "import catseg.train, sys; print('kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"False\n"


@given(arrays(np.float64, (4, 2), elements=st.floats(-1, 1)))
def test_grey_stays_grey_whatever_its_colours_would_become(draws_N2):
    matrix_N33 = make_color_matrices(draws_N2, RANGES["strong"]).numpy()
    np.testing.assert_allclose(matrix_N33 @ np.ones(3), 1, atol=1e-5)


def test_saturation_is_the_distance_from_grey_and_hue_turns_around_it():
    """Red is 0.299 of brightness: half as saturated, it is half way there. A third of a turn would make it green."""
    less, turned = make_color_matrices(np.array([[-1, 0], [0, 1]]), Ranges(0, 1, 0, 0, 0.5, 120)).numpy()
    red = np.array([1, 0, 0])
    np.testing.assert_allclose(less @ red, [0.6495, 0.1495, 0.1495], atol=1e-5)
    np.testing.assert_allclose(turned @ red, [0, 1, 0], atol=1e-5)


def test_strong_is_light_gone_further_and_in_colours():
    used_N2 = np.full((500, 2), SIDE)
    light, strong = (draw_changes(0, 1, used_N2, name).numpy() for name in ("light", "strong"))
    assert (light.shape[1], strong.shape[1]) == (10, 19)
    sizes = [np.sqrt(np.abs(np.linalg.det(changes[:, [[0, 1], [3, 4]]]))) for changes in (light, strong)]
    assert sizes[0].max() <= 1.25 + 1e-6 < sizes[1].max() <= 1.6 + 1e-6
    angles = [np.degrees(np.arctan2(changes[:, 1], changes[:, 4])) for changes in (light, strong)]
    assert np.abs(angles[0]).max() <= 15 + 1e-4 < np.abs(angles[1]).max() <= 30 + 1e-4


def test_colours_are_changed_before_brightness_black_stays_black_and_labels_labels():
    photo, mask = draw_noise(SIDE, 36)
    photo_1SS3, mask_1SS = torch.tensor(fit_photo(photo, SIDE))[None], torch.tensor(fit_mask(mask, SIDE))[None]
    plain = make_changes(make_draws(brightness=-1), np.array([[SIDE, 36]]))
    matrix_133 = make_color_matrices(np.array([[-1.0, 1.0]]), RANGES["strong"])
    (photo_SS3,), (mask_SS,) = augment(photo_1SS3, mask_1SS, torch.cat([plain, matrix_133.flatten(1)], 1), CPU)
    expected = (0.8 * (fit_photo(photo, SIDE) / 255 @ matrix_133[0].numpy().T)).clip(0, 1)
    np.testing.assert_allclose(photo_SS3, expected, atol=1e-4)
    np.testing.assert_array_equal(mask_SS, fit_mask(mask, SIDE))
    assert photo_SS3[:, 36:].max() <= 1e-4


def test_augmentation_fades_in_equal_parts_over_the_last_epochs_but_for_mirroring():
    config = TrainConfig(epochs=10, augment_fade=0.4)
    strengths = [compute_augment_strength(config, epoch) for epoch in range(1, 11)]
    assert strengths == pytest.approx([1.0] * 6 + [0.75, 0.5, 0.25, 0.0])
    assert [compute_augment_strength(TrainConfig(epochs=3), epoch) for epoch in (1, 2, 3)] == [1.0] * 3
    used_N2 = np.full((50, 2), SIDE)
    full, none = (draw_changes(0, 1, used_N2, "strong", strength).numpy() for strength in (1.0, 0.0))
    mirrored = full[:, 0] * full[:, 4] < 0  # before it is turned by less than a right angle
    expected = np.where(mirrored[:, None], [-1, 0, SIDE - 1, 0, 1, 0], [1, 0, 0, 0, 1, 0])
    np.testing.assert_allclose(none[:, :6], expected, atol=1e-4)
    np.testing.assert_allclose(none[:, 6:8], [[1, 0]] * 50, atol=1e-6)
    np.testing.assert_allclose(none[:, 10:], np.eye(3).reshape(1, 9).repeat(50, 0), atol=1e-6)


def test_a_faded_epoch_is_trained_on_photos_as_they_are_or_mirrored(make_set):
    assert list_losses(run(make_set(), augment_fade=1.0)) != list_losses(run(make_set()))
