"""Folders as people keep them: both layouts, names of all kinds, and what is missing in them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.dataset import DataConfig, load_data
from catseg.errors import InputError
from catseg.folder import list_pairs
from catseg.photo import VOID
from tests.annotated_folders import CAT, list_problems, read_all, write_annotation, write_pair


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


def test_annotations_without_photos_are_refused(tmp_path):
    write_annotation(tmp_path, "a")
    (line,) = list_problems(tmp_path)
    assert line.startswith(f"{tmp_path / 'a.json'}: no photo 'a.jpg'")


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
    without_photo, without_annotation = list_problems(labelme_folder)
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


def test_two_photos_of_one_stem_are_refused_among_the_other_problems(labelme_folder):
    Image.new("RGB", (64, 48)).save(labelme_folder / "cat-3.png")
    (labelme_folder / "cat-5.json").write_text("no JSON")
    broken, double = list_problems(labelme_folder)
    assert "cat-5.json" in broken
    assert "cat-3.png" in double and "cat-3.jpg" in double and "rename" in double


def test_two_photos_or_masks_of_one_stem_in_a_voc_folder_are_refused(voc_folder):
    Image.new("RGB", (64, 48)).save(voc_folder / "JPEGImages" / "cat-3.png")
    Image.new("L", (64, 48)).save(voc_folder / "SegmentationClass" / "cat-4.PNG")
    photo, mask = list_problems(voc_folder)
    assert "cat-3.png" in photo and "cat-3.jpg" in photo
    assert "cat-4.PNG" in mask and "cat-4.png" in mask


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


def test_sample_is_listed_without_being_drawn():
    pairs = list_pairs("sample", CAT)
    assert len(pairs) == 128
    assert [pair.name for pair in pairs] == sorted({pair.name for pair in pairs})
    photo, mask = pairs[7].read()
    assert photo.shape[:2] == mask.shape == (192, 192)


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


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def test_broken_annotation_and_broken_photo_are_both_named(tmp_path, write_labelme_folder):
    folder = write_labelme_folder(tmp_path / "in", num=1)
    cut_short(folder / "cat-0.jpg")
    (folder / "cat-0.json").write_text("{")
    first, second = list_problems(folder)
    assert "cat-0.json: not a JSON file" in first and "cat-0.jpg: cannot be decoded" in second


def test_broken_photo_and_unknown_label_are_both_named(tmp_path, write_labelme_folder):
    folder = write_labelme_folder(tmp_path / "in", num=1)
    cut_short(folder / "cat-0.jpg")
    (folder / "cat-0.json").write_text((folder / "cat-0.json").read_text().replace('"cat"', '"dog"'))
    first, second = list_problems(folder)
    assert "cat-0.jpg: cannot be decoded" in first and "unknown label 'dog'" in second


def test_broken_photo_and_broken_mask_are_both_named(tmp_path, write_voc_folder):
    folder = write_voc_folder(tmp_path / "in", num=1)
    cut_short(folder / "JPEGImages/cat-0.jpg")
    (folder / "SegmentationClass/cat-0.png").write_bytes(b"")
    first, second = list_problems(folder)
    assert "cat-0.jpg: cannot be decoded" in first and "cat-0.png: cannot be decoded" in second
