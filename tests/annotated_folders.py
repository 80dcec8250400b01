"""Small Labelme folders for the tests of reading, and what is said of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.dataset import read_pairs
from catseg.errors import InputError
from catseg.folder import list_pairs

CAT = ("cat",)


def read_all(folder: Path, classes: tuple[str, ...] = CAT) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {pair.name: pair.read() for pair in list_pairs(str(folder), classes)}


def list_problems(folder: Path, classes: tuple[str, ...] = CAT) -> tuple[str, ...]:
    """What is said about a folder that cannot be used: printable lines."""
    with pytest.raises(InputError) as caught:
        read_pairs(list_pairs(str(folder), classes), [32])
    assert all(line.isprintable() for line in caught.value.problems)
    return caught.value.problems


def write_annotation(folder: Path, stem: str, image_path: str | None = None, shapes: tuple = ()) -> None:
    content = {"imagePath": image_path or f"{stem}.jpg", "shapes": list(shapes)}
    (folder / f"{stem}.json").write_text(json.dumps(content), "utf-8")


def write_pair(folder: Path, stem: str, suffix: str = ".jpg", size: tuple[int, int] = (20, 10)) -> None:
    """A white photo and its annotation: a cat of 5 x 4 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(folder / f"{stem}{suffix}")
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[2, 3], [6, 6]]}
    write_annotation(folder, stem, f"{stem}{suffix}", (shape,))
