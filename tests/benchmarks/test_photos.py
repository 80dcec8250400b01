"""How fast photo files become what training reads: decoded and fitted once, then from memory."""

import os
from functools import partial
from pathlib import Path

import clock
import numpy as np
import pytest
from contest import Contest, Contestant, read_replayed
from PIL import Image
from work import Work, draw

from catseg.dataset import decode, read_pairs
from catseg.folder import Pair, list_pairs
from catseg.inference import place, to_input

pytestmark = pytest.mark.benchmark(timer=read_replayed)

NUM_PHOTOS, NUM_SETS, IMAGE_SIZE, CAMERA_SIDE = 16, 3, 128, 768  # px
READ, AGAIN, PLAIN, CACHED = "read once, in threads", "the same again", "Pillow, one by one", "from memory"


@pytest.fixture(scope="session")
def drawn_photos(tmp_path_factory) -> list[Pair]:
    """A VOC folder of drawn cats, as large as a camera's photos are after a first scaling."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir()
    for number in range(NUM_PHOTOS * NUM_SETS):
        photo, mask = (Image.fromarray(pixels) for pixels in draw(number))
        photo.resize((CAMERA_SIDE, CAMERA_SIDE), Image.Resampling.BICUBIC).save(
            folder / "JPEGImages" / f"{number:03d}.jpg", quality=90
        )
        large = mask.resize((CAMERA_SIDE, CAMERA_SIDE), Image.Resampling.NEAREST)
        large.putpalette([0, 0, 0, 0, 128, 0])
        large.save(folder / "SegmentationClass" / f"{number:03d}.png")
    return list_pairs(str(folder), ("cat",))


@pytest.fixture(scope="session")
def real_photos() -> list[Pair]:
    """Street cats with Labelme's outlines."""
    if "CATSEG_REAL_DATA" not in os.environ:
        pytest.skip("CATSEG_REAL_DATA does not name a folder of real photos")
    return list_pairs(str(Path(os.environ["CATSEG_REAL_DATA"]) / "feral-cats" / "valid"), ("cat",))


def make_contest(name: str, pairs: list[Pair]) -> Contest:
    """Each round reads other files than the one before."""
    sets = [pairs[start::NUM_SETS][:NUM_PHOTOS] for start in range(NUM_SETS)]
    makers = {
        READ: partial(make_reading, sets),
        PLAIN: partial(make_plain_reading, sets),
        AGAIN: partial(make_reading, sets),
        CACHED: partial(make_cached, sets),
    }
    return Contest(
        f"{name}, {len(sets[0])} at a time to {IMAGE_SIZE} px",
        tuple(Contestant(contestant, make, len(sets[0])) for contestant, make in makers.items()),
        twins=(READ, AGAIN),
        base=PLAIN,
    )


def make_reading(sets: list[list[Pair]]) -> Work:
    """As `bench run` reads its photos, once: checked, decoded, hashed, fitted, masks kept at their own size."""
    return lambda number: decode(sets[number % NUM_SETS], [IMAGE_SIZE], hashed=False)


def make_plain_reading(sets: list[list[Pair]]) -> Work:
    """As a simple Dataset reads them, anew in each epoch: photo and, where it is a file, mask; squashed, unchecked."""
    paths = [[pair.photo_path for pair in pairs] for pairs in sets]

    def read(number: int) -> list[np.ndarray]:
        arrays = []
        for path in paths[number % NUM_SETS]:
            mask_path = path.parents[1] / "SegmentationClass" / f"{path.stem}.png"
            for file, mode in ((path, "RGB"), (mask_path, "P")):
                if file.exists():
                    with Image.open(file) as image:
                        arrays.append(np.asarray(image.convert(mode).resize((IMAGE_SIZE, IMAGE_SIZE))))
        return arrays

    return read


def make_cached(sets: list[list[Pair]]) -> Work:
    """As every epoch has them: a batch picked from what was read, floats on the device."""
    device = clock.find_device()
    placed = [place(read_pairs(pairs, [IMAGE_SIZE])[IMAGE_SIZE], device) for pairs in sets]
    order_N = np.random.default_rng(0).permutation(len(sets[0]))
    return lambda number: to_input(placed[number % NUM_SETS].photo_NSS3[order_N], device)


@pytest.mark.parametrize("name", [READ, PLAIN, AGAIN, CACHED])
def test_drawn_photos(enter, drawn_photos, name):
    enter(make_contest("drawn photos", drawn_photos), name)


@pytest.mark.parametrize("name", [READ, PLAIN, AGAIN, CACHED])
def test_real_photos(enter, real_photos, name):
    enter(make_contest("real photos", real_photos), name)
