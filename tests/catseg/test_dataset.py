"""Folders as people keep them: both layouts, what is missing in them, and how they are split."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from catseg.dataset import (
    NUM_SHOWN,
    SHOWN_SIDE,
    DataConfig,
    Pair,
    list_pairs,
    load_data,
    load_photo_set,
    read_pairs,
    split_pairs,
)
from catseg.errors import InputError
from catseg.photo import VOID, fit_mask, fit_photo, read_photo

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


def test_labelme_folder_gives_photos_with_their_outlines_sorted_by_name(labelme_folder, draw_cat):
    pairs = read_all(labelme_folder)
    assert list(pairs) == [f"cat-{index}" for index in range(6)]
    for index, (photo, mask) in enumerate(pairs.values()):
        drawn, outline = draw_cat(index)
        ys, xs = np.nonzero(outline)
        box = np.zeros_like(outline)
        box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = 1
        np.testing.assert_array_equal(mask, box)
        assert photo.shape == drawn.shape
        assert np.abs(photo.astype(int) - drawn).mean() < 10  # a JPEG of it


@pytest.mark.parametrize("mask_folder", ["SegmentationClass", "SegmentationClassPNG"])
def test_voc_folder_gives_photos_with_their_exact_masks(tmp_path, write_voc_folder, draw_cat, mask_folder):
    pairs = read_all(write_voc_folder(tmp_path / "voc", num=3, mask_folder=mask_folder))
    assert list(pairs) == ["cat-0", "cat-1", "cat-2"]
    for index, (photo, mask) in enumerate(pairs.values()):
        np.testing.assert_array_equal(mask, draw_cat(index)[1])
        assert photo.shape == (48, 64, 3)


def test_class_names_file_says_what_the_ids_mean(voc_folder):
    (voc_folder / "class_names.txt").write_text("_background_\ndog\ncat\n猫")
    mask_path = voc_folder / "SegmentationClass" / "cat-0.png"
    Image.fromarray(np.resize(np.array([0, 1, 2, 3, VOID], np.uint8), (48, 64))).save(mask_path)
    mask = read_all(voc_folder, ("猫", "cat", "dog"))["cat-0"][1]
    np.testing.assert_array_equal(mask, np.resize(np.array([0, 3, 2, 1, VOID], np.uint8), (48, 64)))


def test_without_class_names_the_ids_are_in_the_order_of_the_classes(voc_folder):
    labels = np.resize(np.array([0, 1, 2, VOID], np.uint8), (48, 64))
    Image.fromarray(labels).save(voc_folder / "SegmentationClass" / "cat-0.png")
    np.testing.assert_array_equal(read_all(voc_folder, ("cat", "dog"))["cat-0"][1], labels)


@pytest.mark.parametrize(("value", "label"), [(1, "dog"), (3, "id 3"), (254, "id 254")])
def test_class_that_was_not_asked_for_is_refused_by_name(voc_folder, value, label):
    (voc_folder / "class_names.txt").write_text("_background_\ndog\ncat\n")
    for path in (voc_folder / "SegmentationClass").iterdir():
        Image.new("L", (64, 48), 2).save(path)
    Image.new("L", (64, 48), value).save(voc_folder / "SegmentationClass" / "cat-4.png")
    (line,) = list_problems(voc_folder)
    assert "cat-4.png" in line and f"unknown label {label!r}" in line and "cat" in line


def test_class_names_that_are_no_text_are_refused(voc_folder):
    (voc_folder / "class_names.txt").write_bytes(b"_background_\nch\xe2t\n")
    (line,) = list_problems(voc_folder)
    assert "class_names.txt" in line


def test_missing_folder_is_refused(tmp_path, refusal):
    line = refusal(list_pairs, str(tmp_path / "gone"), CAT)
    assert line.startswith(f"{tmp_path / 'gone'}: ") and "no such folder" in line


def test_file_in_place_of_a_folder_is_refused(tmp_path, refusal):
    (tmp_path / "file").touch()
    assert "no such folder" in refusal(list_pairs, str(tmp_path / "file"), CAT)


def test_empty_folder_and_folder_of_photos_alone_are_refused(tmp_path, refusal):
    assert "neither Labelme annotations" in refusal(list_pairs, str(tmp_path), CAT)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert "neither Labelme annotations" in refusal(list_pairs, str(tmp_path), CAT)


def test_annotations_without_photos_are_refused(tmp_path, refusal):
    write_annotation(tmp_path, "a")
    assert str(tmp_path) in refusal(list_pairs, str(tmp_path), CAT)


def test_voc_photos_without_a_folder_of_masks_are_refused(tmp_path, refusal):
    (tmp_path / "JPEGImages").mkdir()
    line = refusal(list_pairs, str(tmp_path), CAT)
    assert "SegmentationClass" in line and "SegmentationClassPNG" in line


def test_every_photo_without_a_mask_and_every_mask_without_a_photo_is_listed(voc_folder):
    masks, photos = voc_folder / "SegmentationClass", voc_folder / "JPEGImages"
    for path in (masks / "cat-1.png", masks / "cat-3.png", photos / "cat-5.jpg"):
        path.unlink()
    without_mask, also_without_mask, without_photo = list_problems(voc_folder)
    assert "cat-1.jpg: photo without mask" in without_mask
    assert "cat-3.jpg: photo without mask" in also_without_mask
    assert "cat-5.png: no photo" in without_photo


def test_every_photo_without_annotation_and_every_annotation_without_a_photo_is_listed(labelme_folder):
    (labelme_folder / "cat-2.json").unlink()
    (labelme_folder / "cat-4.jpg").unlink()
    without_annotation, without_photo = list_problems(labelme_folder)
    assert "cat-2.jpg: photo without annotation" in without_annotation
    assert "cat-4.json: no photo" in without_photo


def test_every_file_that_cannot_be_read_is_listed(labelme_folder):
    photo = labelme_folder / "cat-0.jpg"
    photo.write_bytes(photo.read_bytes()[:500])
    (labelme_folder / "cat-1.json").write_text("no JSON")
    Image.new("RGB", (10, 10)).save(labelme_folder / "cat-2.jpg")
    content = json.loads((labelme_folder / "cat-3.json").read_text())
    content["shapes"][0]["label"] = "kat"
    (labelme_folder / "cat-3.json").write_text(json.dumps(content))
    (labelme_folder / "cat-4.jpg").write_text("no photo")
    problems = list_problems(labelme_folder)
    assert len(problems) == 5
    for index, (line, says) in enumerate(
        zip(problems, ["decoded", "not a JSON", "10 x 10", "unknown label 'kat'", "decoded"], strict=True)
    ):
        assert f"cat-{index}." in line and says in line


def test_files_that_are_missing_and_files_that_are_broken_are_listed_at_once(voc_folder):
    (voc_folder / "SegmentationClass" / "cat-1.png").unlink()
    (voc_folder / "JPEGImages" / "cat-3.jpg").write_text("no photo")
    problems = list_problems(voc_folder)
    assert ["cat-1" in line or "cat-3" in line for line in problems] == [True, True]


def test_every_problem_is_listed_on_whichever_side_of_the_split_it_lies(labelme_folder):
    for path in labelme_folder.glob("*.jpg"):
        path.write_text("no photo")
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(str(labelme_folder)), [32])
    assert sorted(line.split(":")[0] for line in caught.value.problems) == [
        str(labelme_folder / f"cat-{index}.jpg") for index in range(6)
    ]


def test_mask_of_another_size_than_its_photo_is_refused(voc_folder):
    Image.new("L", (48, 64)).save(voc_folder / "SegmentationClass" / "cat-1.png")  # height and width changed over
    (line,) = list_problems(voc_folder)
    assert "cat-1.png" in line and "48 x 64" in line and "64 x 48" in line


def test_coloured_mask_is_refused(voc_folder):
    Image.new("RGB", (64, 48)).save(voc_folder / "SegmentationClass" / "cat-1.png")
    (line,) = list_problems(voc_folder)
    assert "cat-1.png" in line and "RGB" in line


def test_two_photos_of_one_stem_are_refused(labelme_folder, refusal):
    Image.new("RGB", (64, 48)).save(labelme_folder / "cat-3.png")
    line = refusal(list_pairs, str(labelme_folder), CAT)
    assert "cat-3.png" in line and "cat-3.jpg" in line


@pytest.mark.parametrize("stem", ["猫 ŷ 🐈", "a.b", "a.jpg", "with space", "-dash", "%s{}", "GROSS"])
def test_photo_of_any_name_finds_its_annotation(tmp_path, stem):
    write_pair(tmp_path, stem)
    ((name, (photo, mask)),) = read_all(tmp_path).items()
    assert name == stem
    assert photo.shape == (10, 20, 3) and mask.sum() == 20


def test_names_that_begin_alike_up_to_a_dot_are_different_photos(tmp_path):
    for stem, size in (("a", (20, 10)), ("a.b", (21, 10)), ("a.b.c", (22, 10))):
        write_pair(tmp_path, stem, size=size)
    assert {name: mask.shape[1] for name, (_, mask) in read_all(tmp_path).items()} == {"a": 20, "a.b": 21, "a.b.c": 22}


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".PNG", ".bmp", ".webp", ".tif"])
def test_photo_of_any_suffix_is_found(tmp_path, suffix):
    write_pair(tmp_path, "cat", suffix)
    assert list(read_all(tmp_path)) == ["cat"]


def test_hidden_files_of_macos_are_passed_over(labelme_folder, voc_folder):
    for folder, suffix in (
        (labelme_folder, ".jpg"),
        (labelme_folder, ".json"),
        (voc_folder / "JPEGImages", ".jpg"),
        (voc_folder / "SegmentationClass", ".png"),
    ):
        (folder / f"._cat-0{suffix}").write_bytes(b"\0\5\x16\7")
    assert len(read_all(labelme_folder)) == len(read_all(voc_folder)) == 6


def test_other_files_are_passed_over(labelme_folder):
    (labelme_folder / "notes.txt").write_text("cats")
    (labelme_folder / "old").mkdir()
    assert len(read_all(labelme_folder)) == 6


def test_photo_turned_by_exif_is_outlined_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20), "white").save(tmp_path / "cat.jpg", exif=exif)
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[15, 3], [30, 6]]}
    write_annotation(tmp_path, "cat", shapes=(shape,))
    photo, mask = read_all(tmp_path)["cat"]
    assert photo.shape[:2] == mask.shape == (10, 20)
    assert mask.sum() == 5 * 4


@pytest.mark.parametrize(
    "image_path",
    [
        "../outside.jpg",
        "..\\outside.jpg",
        "a/../../outside.jpg",
        "{outside}",
        "link.jpg",
        "links/outside.jpg",
        "cat\0.jpg",
        "\ud800.jpg",
        "new\nline.jpg",
        "x" * 5_000,
        "gone.jpg",
        ".",
    ],
)
def test_image_path_that_is_no_photo_of_the_folder_is_refused(tmp_path, refusal, image_path):
    write_pair(tmp_path, "outside")
    folder = tmp_path / "photos"
    write_pair(folder, "cat")
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "links").symlink_to(tmp_path)
    write_annotation(folder, "cat", image_path.format(outside=tmp_path / "outside.jpg"))
    write_annotation(folder, "link")
    pairs = {pair.name: pair for pair in list_pairs(str(folder), CAT)}
    line = refusal(pairs["cat"].read)
    assert str(folder) in line


def test_links_out_of_a_voc_folder_are_refused(tmp_path, voc_folder):
    for name in ("JPEGImages/cat-0.jpg", "SegmentationClass/cat-1.png"):
        path = voc_folder / name
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert len(list_problems(voc_folder)) == 2


def test_annotation_that_is_a_link_out_of_the_folder_is_refused(tmp_path, labelme_folder):
    path = labelme_folder / "cat-0.json"
    path.rename(tmp_path / "cat-0.json")
    path.symlink_to(tmp_path / "cat-0.json")
    (line,) = list_problems(labelme_folder)
    assert "cat-0.json" in line


def test_photo_in_another_folder_below_is_read(tmp_path):
    write_pair(tmp_path, "cat")
    (tmp_path / "raw").mkdir()
    Image.new("RGB", (30, 10)).save(tmp_path / "raw" / "cat.jpg")
    write_annotation(tmp_path, "cat", "raw\\cat.jpg")  # as Labelme writes it on Windows
    assert read_all(tmp_path)["cat"][0].shape == (10, 30, 3)


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


def make_pairs(names) -> list[Pair]:
    return [Pair(name, read=lambda: pytest.fail("splitting reads no photo")) for name in names]


def split_names(names, val_fraction: float) -> tuple[list[str], list[str]]:
    train, val = split_pairs(make_pairs(names), val_fraction)
    return [pair.name for pair in train], [pair.name for pair in val]


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


def test_overlays_show_the_first_photos_with_a_cat_made_small(tmp_path):
    for index in range(7):
        write_pair(tmp_path, f"{index}", size=(600, 300))
    for index in (0, 2):
        write_annotation(tmp_path, f"{index}")  # no cat in it
    photos = load_photo_set(str(tmp_path), CAT, 32)
    assert [shown.index for shown in photos.shown] == [1, 3, 4, 5][:NUM_SHOWN]
    for shown in photos.shown:
        assert shown.photo_HW3.shape == (SHOWN_SIDE // 2, SHOWN_SIDE, 3)
        assert shown.mask_HW.shape == (SHOWN_SIDE // 2, SHOWN_SIDE)
        assert set(np.unique(shown.mask_HW)) == {0, 1}


def test_small_photos_are_shown_at_their_own_size(labelme_folder):
    photos = load_photo_set(str(labelme_folder), CAT, 32)
    for shown in photos.shown:
        np.testing.assert_array_equal(shown.mask_HW, photos.native_masks[shown.index])


def test_sample_is_listed_without_being_drawn():
    pairs = list_pairs("sample", CAT)
    assert len(pairs) == 128
    assert [pair.name for pair in pairs] == sorted({pair.name for pair in pairs})
    photo, mask = pairs[7].read()
    assert photo.shape[:2] == mask.shape == (192, 192)


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


def test_labelmes_own_example_is_read_as_a_folder(real_data):
    folder = real_data / "labelme-voc"
    classes = tuple((folder / "labels.txt").read_text().split("\n")[2:])
    pairs = read_all(folder / "data_annotated", classes)
    assert list(pairs) == ["2011_000003", "2011_000006", "2011_000025"]
    assert {classes[label - 1] for _, mask in pairs.values() for label in np.unique(mask) if 0 < label < VOID} == {
        "person",
        "bottle",
        "chair",
        "sofa",
        "bus",
        "car",
    }


def test_tutorials_photos_are_read_with_their_masks(real_data):
    folder = real_data / "tutorial-cats"
    photos = load_photo_set(str(folder), CAT, 64)
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
