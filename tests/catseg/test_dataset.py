"""Folders read into memory: what is fitted, held out, shown, told apart by a fingerprint, and refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.data import write_sample
from catseg.dataset import (
    NUM_SHOWN,
    SHOWN_SIDE,
    DataConfig,
    Decoded,
    load_data,
    load_test_set,
    read_pairs,
    split,
)
from catseg.errors import InputError
from catseg.folder import Pair, list_pairs
from catseg.photo import VOID, fit_mask, fit_photo, read_photo
from catseg.sample import SEED, name_photo

CAT = ("cat",)


def read_all(folder: Path, classes: tuple[str, ...] = CAT) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {pair.name: pair.read() for pair in list_pairs(str(folder), classes)}


def test_photos_and_masks_are_fitted_to_every_size_and_kept_at_their_own(labelme_folder):
    data = load_data(DataConfig(str(labelme_folder), val="train"), [64, 32, 32])
    assert sorted(data.sets) == [32, 64]
    pairs = read_all(labelme_folder)
    for size, (train, val) in data.sets.items():
        assert train.names == val.names == tuple(pairs)
        assert train.native_masks == () and train.shown == ()  # nothing is scored on or shown of them
        assert train.photo_NSS3.shape == (6, size, size, 3) and train.mask_NSS.shape == (6, size, size)
        for index, (photo, mask) in enumerate(pairs.values()):
            np.testing.assert_array_equal(train.photo_NSS3[index], fit_photo(photo, size))
            np.testing.assert_array_equal(train.mask_NSS[index], fit_mask(mask, size))
            np.testing.assert_array_equal(val.native_masks[index], mask)
    assert data.sets[64][0].used_N2.tolist() == data.sets[64][1].used_N2.tolist() == [[48, 64]] * 6
    assert data.sets[32][0].used_N2.tolist() == [[24, 32]] * 6
    assert np.all(data.sets[64][0].mask_NSS[:, 48:] == VOID)  # 64 x 48 photos end there


def test_validation_on_the_training_photos_says_so(labelme_folder):
    data = load_data(DataConfig(str(labelme_folder), val="train"), [32])
    train, val = data.sets[32]
    assert data.val_is_train
    assert val.photo_NSS3 is train.photo_NSS3 and val.mask_NSS is train.mask_NSS  # read once, held once
    assert data.num_photos == (6, 6)


def test_validation_folder_of_its_own_is_read(tmp_path, labelme_folder, write_voc_folder):
    val = write_voc_folder(tmp_path / "val", num=2)
    data = load_data(DataConfig(str(labelme_folder), val=str(val)), [32])
    assert not data.val_is_train
    assert data.num_photos == (6, 2)


def test_held_out_photos_are_not_trained_on(labelme_folder):
    data = load_data(DataConfig(str(labelme_folder), val_fraction=0.34), [32])
    train, val = data.sets[32]
    assert not data.val_is_train
    assert sorted(train.names + val.names) == sorted(read_all(labelme_folder))
    assert train.names and val.names
    for name, mask in zip(val.names, val.native_masks, strict=True):
        np.testing.assert_array_equal(mask, read_all(labelme_folder)[name][1])


def test_broken_test_photos_are_found_before_the_training(tmp_path, labelme_folder, write_voc_folder, refusal):
    test = write_voc_folder(tmp_path / "test", num=2)
    (test / "JPEGImages" / "cat-1.jpg").write_text("no photo")
    assert "cat-1.jpg" in refusal(load_data, DataConfig(str(labelme_folder), test=str(test)), [32])


def test_problems_of_all_folders_are_listed_at_once(tmp_path, write_voc_folder):
    folders = {role: write_voc_folder(tmp_path / role, num=2) for role in ("train", "test")}
    for folder in folders.values():
        (folder / "JPEGImages" / "cat-1.jpg").write_text("no photo")
    config = DataConfig(str(folders["train"]), val=str(tmp_path / "gone"), test=str(folders["test"]))
    with pytest.raises(InputError) as caught:
        load_data(config, [32])
    assert [line.removeprefix(f"{tmp_path}/").split(":")[0] for line in caught.value.problems] == [
        "train/JPEGImages/cat-1.jpg",
        "gone",
        "test/JPEGImages/cat-1.jpg",
    ]


def test_training_photos_must_be_named(refusal):
    assert "--train" in refusal(load_data, DataConfig(), [32])


@pytest.mark.parametrize(("value", "role"), [(0, "train"), (VOID, "train"), (0, "val"), (VOID, "val")])
def test_photos_without_a_pixel_of_any_class_are_refused(tmp_path, write_voc_folder, refusal, value, role):
    folders = {name: write_voc_folder(tmp_path / name, num=2) for name in ("train", "val")}
    for path in (folders[role] / "SegmentationClass").iterdir():
        Image.new("L", (64, 48), value).save(path)
    config = DataConfig(str(folders["train"]), val=str(folders["val"]))
    line = refusal(load_data, config, [32])
    assert line.startswith(f"data.{role}: no pixel of cat")


def test_masks_of_black_and_white_are_refused_with_a_remedy(voc_folder, refusal):
    """The commonest mask of all, 0 and 255, would be background and void: nothing to learn."""
    for path in (voc_folder / "SegmentationClass").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)
    assert "label ids (1 for the first class" in refusal(load_data, DataConfig(str(voc_folder)), [32])


def test_one_photo_cannot_be_split(tmp_path, write_labelme_folder, refusal):
    folder = write_labelme_folder(tmp_path / "one", num=1)
    assert "cannot be split" in refusal(load_data, DataConfig(str(folder)), [32])
    assert load_data(DataConfig(str(folder), val="train"), [32]).num_photos == (1, 1)


def make_photos(names) -> list[Decoded]:
    """Photos that nothing is known of but their names."""
    nothing = np.zeros((1, 1), np.uint8)
    pairs = [Pair(name, read=lambda: pytest.fail("splitting reads no photo")) for name in names]
    return [Decoded(pair, {}, nothing, "", None) for pair in pairs]


def split_names(names, val_fraction: float) -> tuple[list[str], list[str]]:
    train, val = split(make_photos(names), val_fraction)
    return [photo.pair.name for photo in train], [photo.pair.name for photo in val]


names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30, unique=True)
fractions = st.floats(0.01, 0.99)


@given(names, fractions)
def test_split_takes_every_photo_once_and_leaves_some_on_both_sides(names, val_fraction):
    train, val = split_names(names, val_fraction)
    assert train and val
    assert sorted(train + val) == sorted(names)
    assert [name for name in names if name in set(train)] == train  # and keeps their order


@given(names, fractions, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_photos(names, val_fraction, shuffler):
    shuffled = list(names)
    shuffler.shuffle(shuffled)
    assert set(split_names(names, val_fraction)[1]) == set(split_names(shuffled, val_fraction)[1])


def test_split_takes_names_that_are_no_utf8():
    """Linux allows any bytes in a name; Python reads them as lone surrogates."""
    train, val = split_names(["ch\udce2t", "cat", "猫"], 0.34)
    assert sorted(train + val) == sorted(["ch\udce2t", "cat", "猫"])


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.2, 0.8))
def test_adding_photos_moves_no_more_than_were_added(first, num_added, val_fraction):
    names = [f"photo-{number}" for number in range(first, first + 64)]
    added = [f"new-{number}" for number in range(num_added)]
    held_out = set(split_names(names, val_fraction)[1])
    moved = (set(split_names(names + added, val_fraction)[1]) - set(added)) ^ held_out
    assert len(moved) <= num_added


@pytest.mark.parametrize("val_fraction", [0.1, 0.25, 0.5, 0.8])
def test_the_share_asked_for_is_held_out(val_fraction):
    _, val = split_names([f"group{number:04d}" for number in range(1000)], val_fraction)
    assert len(val) == 1000 * val_fraction


def test_photos_in_a_row_lie_on_both_sides():
    _, val = split_names([f"group{number:04d}" for number in range(1000)], 0.5)
    numbers = [int(name.removeprefix("group")) for name in val]
    assert 200 < sum(number < 500 for number in numbers) < 300


def test_same_data_in_either_layout_has_the_same_fingerprint(tmp_path, labelme_folder):
    voc = tmp_path / "same"
    (voc / "JPEGImages").mkdir(parents=True)
    (voc / "SegmentationClass").mkdir()
    for name, (_, mask) in read_all(labelme_folder).items():
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes((labelme_folder / f"{name}.jpg").read_bytes())
        Image.fromarray(mask).save(voc / "SegmentationClass" / f"{name}.png")
    prints = {load_data(DataConfig(str(folder)), [32]).fingerprint for folder in (labelme_folder, voc)}
    assert len(prints) == 1
    assert all(len(fingerprint) == 16 for fingerprint in prints)


def test_fingerprint_does_not_depend_on_the_image_sizes(labelme_folder):
    config = DataConfig(str(labelme_folder))
    assert load_data(config, [32]).fingerprint == load_data(config, [64, 48]).fingerprint


def test_fingerprint_changes_with_one_pixel_the_classes_and_the_split(voc_folder):
    base = DataConfig(str(voc_folder))
    other_classes = dataclasses.replace(base, classes=("dog",))
    other_split = dataclasses.replace(base, val="train")
    prints = {load_data(config, [32]).fingerprint for config in (base, other_classes, other_split)}
    path = voc_folder / "SegmentationClass" / "cat-0.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = VOID
    Image.fromarray(mask).save(path)
    prints.add(load_data(base, [32]).fingerprint)
    assert len(prints) == 4


def test_fingerprint_tells_a_tall_photo_from_a_wide_one(tmp_path, write_voc_folder):
    """Of one colour, with a mask of one label: the same bytes in another shape."""
    prints = set()
    for width, height in ((20, 10), (10, 20), (25, 8)):
        folder = write_voc_folder(tmp_path / f"{width}", num=1)
        Image.new("RGB", (width, height)).save(folder / "JPEGImages" / "cat-0.jpg")
        Image.new("L", (width, height), 1).save(folder / "SegmentationClass" / "cat-0.png")
        prints.add(load_data(DataConfig(str(folder), val="train"), [32]).fingerprint)
    assert len(prints) == 3


def test_overlays_show_the_first_photos_with_a_cat_made_small(tmp_path):
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[2, 3], [60, 60]]}
    for index in range(7):
        Image.new("RGB", (600, 300), "white").save(tmp_path / f"{index}.jpg")
        content = {"imagePath": f"{index}.jpg", "shapes": [] if index in {0, 2} else [shape]}
        (tmp_path / f"{index}.json").write_text(json.dumps(content), "utf-8")
    photos = read_pairs(list_pairs(str(tmp_path), CAT), [32])[32]
    assert [shown.index for shown in photos.shown] == [1, 3, 4, 5][:NUM_SHOWN]
    for shown in photos.shown:
        assert shown.photo_HW3.shape == (SHOWN_SIDE // 2, SHOWN_SIDE, 3)
        assert shown.mask_HW.shape == (SHOWN_SIDE // 2, SHOWN_SIDE)
        assert set(np.unique(shown.mask_HW)) == {0, 1}


def test_small_photos_are_shown_at_their_own_size(labelme_folder):
    photos = read_pairs(list_pairs(str(labelme_folder), CAT), [32])[32]
    for shown in photos.shown:
        np.testing.assert_array_equal(shown.mask_HW, photos.native_masks[shown.index])


def test_test_photos_have_a_fingerprint_whatever_they_are_called_and_fitted_to(tmp_path, voc_folder, refusal):
    photos, fingerprint = load_test_set(str(voc_folder), CAT, 32)
    assert photos.photo_NSS3.shape[1:3] == (32, 32)
    assert len(photos.native_masks) == len(photos.names) == len(list_pairs(str(voc_folder), CAT))
    assert load_test_set(str(voc_folder.rename(tmp_path / "renamed")), CAT, 64)[1] == fingerprint
    path = tmp_path / "renamed/SegmentationClass/cat-0.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = VOID
    Image.fromarray(mask).save(path)
    assert load_test_set(str(tmp_path / "renamed"), CAT, 32)[1] != fingerprint
    assert "no such folder" in refusal(load_test_set, str(voc_folder), CAT, 32)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"classes": ()}, "classes"),
        ({"classes": ("cat", "cat")}, "classes"),
        ({"classes": ("cat", "_background_")}, "classes"),
        ({"classes": ("__ignore__",)}, "classes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DataConfig(**settings)


def test_tutorials_photos_are_read_with_their_masks(real_data):
    folder = real_data / "tutorial-cats"
    photos = read_pairs(list_pairs(str(folder), CAT), [64])[64]
    assert len(photos.names) == 8
    for name, mask in zip(photos.names, photos.native_masks, strict=True):
        assert mask.shape == read_photo(folder / "JPEGImages" / f"{name}.jpg").shape[:2]
        assert set(np.unique(mask)) == {0, 1}


@pytest.mark.slow
def test_street_cats_are_all_read(real_data):
    data = load_data(
        DataConfig(str(real_data / "feral-cats" / "train"), val=str(real_data / "feral-cats" / "valid")), [32]
    )
    assert data.num_photos == (700, 195)


def test_drawn_cats_on_disk_leak_into_those_in_memory(tmp_path):
    write_sample(tmp_path / "cats", 3, SEED)
    leaks = load_data(DataConfig("sample", val=str(tmp_path / "cats")), [32]).leaks
    assert {leak.first.removeprefix("train ") for leak in leaks} == {name_photo(number) for number in range(3)}
