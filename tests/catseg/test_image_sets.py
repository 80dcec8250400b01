"""Lists of a VOC folder's photos, as its authors and others write them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.dataset import DataConfig, load_data
from catseg.errors import InputError
from catseg.folder import list_pairs

CAT = ("cat",)


@pytest.fixture
def write(voc_folder):
    """write(text): ImageSets/Segmentation/trainval.txt of a folder with cat-0 to cat-5."""

    def write_list(content: str | bytes, name: str = "trainval.txt") -> Path:
        path = voc_folder / "ImageSets" / "Segmentation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_list


def list_names(path: Path) -> list[str]:
    return [pair.name for pair in list_pairs(str(path), CAT)]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("cat-1\ncat-4\n", ["cat-1", "cat-4"]),
        ("cat-4\ncat-1", ["cat-4", "cat-1"]),  # their order
        ("cat-2\ncat-2\ncat-0\ncat-2\n", ["cat-2", "cat-0"]),  # once each
        ("\n  cat-3  \n\n\tcat-5\n", ["cat-3", "cat-5"]),
        ("cat-3\r\ncat-5\r\n", ["cat-3", "cat-5"]),
        ("\ufeffcat-3\ncat-5\n", ["cat-3", "cat-5"]),
        ("cat-3  1\ncat-5 -1\n", ["cat-3", "cat-5"]),  # as in ImageSets/Main
        ("cat-3 37 1 2\n", ["cat-3"]),  # as Oxford's pets have it
    ],
)
def test_listed_photos_are_taken_in_their_order(write, content, names):
    assert list_names(write(content)) == names


def test_listed_photo_is_that_of_the_folder(write, voc_folder):
    whole = {pair.name: pair.read() for pair in list_pairs(str(voc_folder), CAT)}
    (pair,) = list_pairs(str(write("cat-3\n")), CAT)
    for got, expected in zip(pair.read(), whole["cat-3"], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_files_that_are_not_listed_need_no_other_half(write, voc_folder):
    """Pascal's own folder holds many photos without masks."""
    (voc_folder / "SegmentationClass" / "cat-1.png").unlink()
    (voc_folder / "JPEGImages" / "cat-2.jpg").unlink()
    Image.new("RGB", (4, 4)).save(voc_folder / "JPEGImages" / "bare.jpg")
    assert list_names(write("cat-3\ncat-5\n")) == ["cat-3", "cat-5"]


@pytest.mark.parametrize("name", ["cat-9", "cat-1", "bare", "../cat-3", "cat-3.jpg", "#", "/etc/passwd", "猫"])
def test_name_without_photo_and_mask_is_refused_by_name(write, voc_folder, refusal, name):
    (voc_folder / "SegmentationClass" / "cat-1.png").unlink()
    Image.new("RGB", (4, 4)).save(voc_folder / "JPEGImages" / "bare.jpg")
    path = write(f"cat-3\n{name}\n")
    known, unknown = list_pairs(str(path), CAT)
    assert known.name == "cat-3"
    assert refusal(unknown.read).startswith(f"{path}: {name!r} is no photo with a mask")


def test_every_unknown_name_is_listed(write):
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(str(write("cat-7\ncat-1\n# cat-2\ncat-8\n")), val="train"), [32])
    assert [line.split("'")[1] for line in caught.value.problems] == ["cat-7", "#", "cat-8"]


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_list_of_nothing_is_refused(write, refusal, content):
    path = write(content)
    assert refusal(list_pairs, str(path), CAT).startswith(f"{path}: names no photo")


def test_list_that_is_no_text_is_refused(write, refusal):
    path = write(b"ch\xe2t\n")
    assert refusal(list_pairs, str(path), CAT).startswith(f"{path}: not UTF-8")


def test_missing_list_is_refused(voc_folder, refusal):
    path = voc_folder / "ImageSets" / "Segmentation" / "gone.txt"
    assert refusal(list_pairs, str(path), CAT).startswith(f"{path}: no such list")


@pytest.mark.parametrize("missing", ["JPEGImages", "SegmentationClass"])
def test_list_without_its_folder_is_refused(write, voc_folder, refusal, missing):
    path = write("cat-1\n")
    (voc_folder / missing).rename(voc_folder / "elsewhere")
    assert str(voc_folder) in refusal(list_pairs, str(path), CAT)


def test_list_elsewhere_is_no_source(tmp_path, refusal):
    (tmp_path / "list.txt").write_text("cat-1\n")
    assert "no such folder" in refusal(list_pairs, str(tmp_path / "list.txt"), CAT)


def test_folder_named_like_a_list_is_refused(voc_folder, refusal):
    (voc_folder / "ImageSets" / "train.txt").mkdir(parents=True)
    assert "no such list" in refusal(list_pairs, str(voc_folder / "ImageSets" / "train.txt"), CAT)


def test_list_is_found_relative_to_the_folder_one_is_in(write, voc_folder, monkeypatch):
    write("cat-1\n")
    monkeypatch.chdir(voc_folder)
    assert [pair.name for pair in list_pairs("ImageSets/Segmentation/trainval.txt", CAT)] == ["cat-1"]


def test_list_in_a_folder_below_another_of_that_name_is_found(tmp_path, write_voc_folder):
    folder = write_voc_folder(tmp_path / "ImageSets" / "voc", num=2)
    path = folder / "ImageSets" / "train.txt"
    path.parent.mkdir()
    path.write_text("cat-1\n")
    assert list_names(path) == ["cat-1"]


def test_two_lists_of_one_folder_are_training_and_validation(write):
    train, val = write("cat-0\ncat-1\ncat-2\n", "train.txt"), write("cat-3\ncat-5\n", "val.txt")
    data = load_data(DataConfig(str(train), val=str(val)), [32])
    assert [photos.names for photos in data.sets[32]] == [("cat-0", "cat-1", "cat-2"), ("cat-3", "cat-5")]
    assert not data.val_is_train
