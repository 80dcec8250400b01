"""What the tests of the network's rooms share: drawn cats as training has them."""

from functools import partial

import pytest

from catseg.dataset import PhotoSet, read_pairs
from catseg.folder import Pair


@pytest.fixture(scope="session")
def make_set(draw_cat):
    """make_set(num, image_size): drawn cats of 64 x 48 as training has them."""

    def make(num: int = 6, image_size: int = 32) -> PhotoSet:
        pairs = [Pair(f"cat-{index}", partial(draw_cat, index)) for index in range(num)]
        return read_pairs(pairs, [image_size])[image_size]

    return make
