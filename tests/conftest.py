"""What the tests of several rooms share: drawn cats in folders of both layouts, real photos, refusals."""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before anything imports mlflow

import json
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.errors import InputError
from catseg.sample import draw_photo

TESTS = Path(__file__).parent
BENCHMARKS = TESTS / "benchmarks"


def pytest_configure(config):
    """Tests compute on one thread, benchmarks on all: with tiny networks two threads only wait for each other."""
    if config.getoption("benchmark_only", False):
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from hypothesis import settings  # benchmarks run without it

    # The same examples every time: a check that passed once fails only when something changed.
    settings.register_profile("catseg", deadline=None, derandomize=True, database=None, max_examples=50)
    settings.load_profile("catseg")


def pytest_ignore_collect(collection_path, config):
    """`pytest --benchmark-only` looks at the benchmarks alone: they run where little else is installed."""
    if config.getoption("benchmark_only", False) and TESTS in collection_path.parents:
        return True if collection_path != BENCHMARKS and BENCHMARKS not in collection_path.parents else None
    return None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos that CATSEG_REAL_DATA names; without it the test is skipped."""
    folder = os.environ.get("CATSEG_REAL_DATA")
    if not folder:
        pytest.skip("CATSEG_REAL_DATA does not name a folder of real photos")
    return Path(folder)


@pytest.fixture(scope="session")
def refusal():
    """refusal(call, *args): the one printable line with which a call refuses what the user gave it."""

    def refuse(call, *args) -> str:
        with pytest.raises(InputError) as caught:
            call(*args)
        (line,) = caught.value.problems
        assert line.isprintable(), f"more than one line: {line!r}"
        return line

    return refuse


@pytest.fixture(scope="session")
def png_bomb():
    """png_bomb(width, height): a few bytes that claim to be a grey photo of that size."""

    def make(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )

    return make


@cache
def _draw_cat(index: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    number, left = 0, index
    while True:
        photo, mask = draw_photo(number)
        if mask.mean() > 0.08:  # large enough to survive the shrinking
            if left == 0:
                break
            left -= 1
        number += 1
    small = Image.fromarray(photo).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small), np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


@pytest.fixture(scope="session")
def draw_cat():
    """draw_cat(index, width, height): photo_HW3 and mask_HW of the built-in sample's index-th large cat, shrunk."""

    def draw(index: int, width: int = 64, height: int = 48) -> tuple[np.ndarray, np.ndarray]:
        return _draw_cat(index, width, height)

    return draw


@pytest.fixture(scope="session")
def write_labelme_folder(draw_cat):
    """write_labelme_folder(folder, num): cat-0.jpg and cat-0.json, ...; each outline is the cat's bounding box."""

    def write(folder: Path, num: int = 6, width: int = 64, height: int = 48) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(num):
            photo, mask = draw_cat(index, width, height)
            ys, xs = (values.tolist() for values in np.nonzero(mask))
            left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            Image.fromarray(photo).save(folder / f"cat-{index}.jpg", quality=95)
            annotation = {
                "version": "6.3.1",
                "flags": {},
                "shapes": [{"label": "cat", "shape_type": "polygon", "points": corners, "group_id": None, "flags": {}}],
                "imagePath": f"cat-{index}.jpg",
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            }
            (folder / f"cat-{index}.json").write_text(json.dumps(annotation), "utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def write_voc_folder(draw_cat):
    """write_voc_folder(folder, num, mask_folder): JPEGImages/cat-0.jpg and its exact palette mask, ..."""

    def write(
        folder: Path, num: int = 6, width: int = 64, height: int = 48, mask_folder: str = "SegmentationClass"
    ) -> Path:
        for name in ("JPEGImages", mask_folder):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(num):
            photo, mask = draw_cat(index, width, height)
            Image.fromarray(photo).save(folder / "JPEGImages" / f"cat-{index}.jpg", quality=95)
            palette_mask = Image.fromarray(mask)
            palette_mask.putpalette([0, 0, 0, 128, 0, 0])
            palette_mask.save(folder / mask_folder / f"cat-{index}.png")
        return folder

    return write


@pytest.fixture
def labelme_folder(tmp_path, write_labelme_folder) -> Path:
    """Six drawn cats as Labelme keeps them."""
    return write_labelme_folder(tmp_path / "labelme")


@pytest.fixture
def voc_folder(tmp_path, write_voc_folder) -> Path:
    """Six drawn cats as labelme2voc writes them."""
    return write_voc_folder(tmp_path / "voc")
