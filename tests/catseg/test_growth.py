"""Small photos first: sizes by the epoch, the same photos, no new label."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from catseg.growth import Sized, shrink
from catseg.inference import to_input
from catseg.losses import compute_loss
from catseg.photo import VOID, fit_mask, fit_photo
from catseg.settings import STRIDE, TrainConfig, UNetConfig, compute_side
from catseg.train import Epoch, train
from catseg.unet import make_unet

CPU = torch.device("cpu")
TINY = TrainConfig(image_size=64, first_size=32, epochs=4, batch_size=6, precision="float32", schedule="constant")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 4}, [128] * 4),
        ({"epochs": 10, "first_size": 64}, [64] * 4 + [96] * 3 + [128] * 3),
        ({"epochs": 10, "first_size": 64, "grow_epochs": 0.4}, [64] * 2 + [96] * 2 + [128] * 6),
        ({"epochs": 4, "first_size": 48, "grow_epochs": 0.5}, [48, 96, 128, 128]),  # 88 lies between two
        ({"epochs": 4, "first_size": 64, "grow_epochs": 0.0}, [128] * 4),
        ({"epochs": 4, "first_size": 128}, [128] * 4),
        ({"epochs": 2, "first_size": 64, "grow_epochs": 0.99}, [64, 128]),
        ({"epochs": 1, "first_size": 64, "grow_epochs": 0.99}, [128]),
    ],
)
def test_sizes_by_hand(settings, expected):
    config = TrainConfig(**settings)
    assert [compute_side(config, epoch) for epoch in range(1, config.epochs + 1)] == expected


@given(st.integers(1, 60), st.integers(2, 30), st.integers(2, 30), st.floats(0, 0.999))
def test_sizes_never_fall_are_divisible_and_end_at_the_full_one(epochs, a, b, share):
    first, full = sorted((a * STRIDE, b * STRIDE))
    config = TrainConfig(epochs=epochs, image_size=full, first_size=first, grow_epochs=share)
    sides = [compute_side(config, epoch) for epoch in range(1, epochs + 1)]
    assert sides == sorted(sides) and sides[-1] == full and min(sides) >= first
    assert all(side % STRIDE == 0 for side in sides)
    assert sum(side < full for side in sides) <= share * epochs


def make_photos(height: int, width: int, side: int, num: int = 3) -> tuple[Sized, list[tuple]]:
    numbers = np.random.default_rng(0)
    photos = [
        (numbers.integers(0, 256, (height, width, 3), np.uint8), numbers.choice([0, 1, 2, VOID], (height, width)))
        for _ in range(num)
    ]
    photos = [(photo, mask.astype(np.uint8)) for photo, mask in photos]
    fitted = [(fit_photo(photo, side), fit_mask(mask, side)) for photo, mask in photos]
    return Sized(
        torch.tensor(np.stack([photo for photo, _ in fitted])),
        torch.tensor(np.stack([mask for _, mask in fitted])),
        np.array([[height, width]] * num),
    ), fitted


@pytest.mark.parametrize("side", [32, 48, 64, 80, 96])
def test_photos_are_made_smaller_as_pillow_does_it(side):
    full, fitted = make_photos(128, 128, 128)
    small = shrink(full, side)
    assert small.photo_NSS3.dtype == small.mask_NSS.dtype == torch.uint8 and small.side == side
    for number, (photo, mask) in enumerate(fitted):
        expected = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
        difference = np.asarray(expected).astype(int) - small.photo_NSS3[number].numpy().astype(int)
        assert np.abs(difference).max() <= 1
        if 128 % side == 0:  # else middles lie between pixels, and Pillow's rounding errors choose
            expected = Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)
            np.testing.assert_array_equal(small.mask_NSS[number], expected)


def test_the_mask_is_taken_at_the_middle_of_each_pixel_by_hand():
    """48 pixels to 32: the middles are 0.75, 2.25, 3.75, 5.25, ..."""
    mask_1SS = torch.arange(48, dtype=torch.uint8).expand(1, 48, 48)
    small = shrink(Sized(torch.zeros(1, 48, 48, 3, dtype=torch.uint8), mask_1SS, np.array([[48, 48]])), 32)
    assert small.mask_NSS[0, 0].tolist() == [int(0.75 + 1.5 * index) for index in range(32)]


def test_what_was_void_or_not_of_the_photo_stays_so():
    full, _ = make_photos(96, 128, 128)
    small = shrink(full, 64)
    assert small.used_N2.tolist() == [[48, 64]] * 3
    assert (small.mask_NSS[:, 48:] == VOID).all() and (small.photo_NSS3[:, 49:] == 0).all()
    assert set(small.mask_NSS.unique().tolist()) <= {0, 1, 2, VOID}
    everywhere = Sized(full.photo_NSS3, torch.full_like(full.mask_NSS, VOID), full.used_N2)
    assert (shrink(everywhere, 80).mask_NSS == VOID).all()


def run(photos, **settings) -> list[Epoch]:
    return list(train(make_unet(UNetConfig(2), 0), photos, photos, dataclasses.replace(TINY, **settings), CPU))


def test_the_first_epoch_is_trained_on_small_photos(make_set):
    """One batch of all photos: its loss does not depend on their order, so it can be had without the loop."""
    photos, model = make_set(6, 64), make_unet(UNetConfig(2), 0).train()
    small = shrink(Sized(torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS), photos.used_N2), 32)
    expected = compute_loss("bce_dice", model(to_input(small.photo_NSS3, CPU)), small.mask_NSS).item()
    epoch, *_ = run(photos)
    assert epoch.train_loss == pytest.approx(expected, abs=1e-5)


def test_growing_to_the_size_that_is_there_from_the_start_changes_nothing(make_set):
    photos = make_set(6, 64)
    plain = [epoch.train_loss for epoch in run(photos, first_size=None)]
    assert [epoch.train_loss for epoch in run(photos, first_size=64)] == plain
    assert [epoch.train_loss for epoch in run(photos)] != plain


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_small_photos_are_augmented_too(make_set, augment):
    assert all(np.isfinite(epoch.train_loss) for epoch in run(make_set(5, 64), augment=augment))
