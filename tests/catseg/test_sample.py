"""The drawn cats: always the same, hard enough, and outlined where they are."""

import random
from functools import cache

import numpy as np
import pytest
import torch

from catseg.sample import NUM_PHOTOS, SIDE, draw_photo

draw_once = cache(draw_photo)


@pytest.mark.parametrize("number", [0, 1, NUM_PHOTOS - 1, 10**6])
def test_any_number_gives_a_photo_and_its_mask(number):
    photo, mask = draw_photo(number)
    assert photo.shape == (SIDE, SIDE, 3) and photo.dtype == np.uint8
    assert mask.shape == (SIDE, SIDE) and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    assert photo.std() > 5


def test_same_number_gives_the_same_pixels_whatever_the_global_generators_say():
    np.random.seed(1)
    photo, mask = draw_photo(3)
    np.random.seed(2)
    random.seed(2)
    torch.manual_seed(2)
    again = draw_photo(3)
    np.testing.assert_array_equal(photo, again[0])
    np.testing.assert_array_equal(mask, again[1])


def test_drawing_leaves_the_global_generators_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    draw_photo(5)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_no_two_photos_are_alike():
    assert len({draw_once(number)[0].tobytes() for number in range(40)}) == 40


def test_some_photos_have_no_cat_and_most_have_one():
    shares = np.array([draw_once(number)[1].mean() for number in range(NUM_PHOTOS)])
    assert 0.03 < (shares == 0).mean() < 0.17  # one in twelve
    assert 0.08 < shares[shares > 0].mean() < 0.4
    assert shares.max() < 0.9


def test_outlines_lie_on_the_edges_of_what_is_drawn():
    """Along the outline the photo changes more than along the same outline moved by 12 pixels."""
    on_outline, beside_it = [], []
    for number in range(40):
        photo, mask = draw_once(number)
        change = np.abs(np.diff(photo.astype(int), axis=1)).sum(axis=2)
        outline = np.diff(mask.astype(int), axis=1) != 0
        on_outline += change[outline].tolist()
        for shift in (-12, 12):
            beside_it += change[np.roll(outline, shift, axis=1)].tolist()
    assert np.mean(on_outline) > 1.8 * np.mean(beside_it)
