"""What leaves the folder: paths in annotations, links, names that are no names."""

import os

import pytest
from PIL import Image

from catseg.folder import list_pairs
from tests.annotated_folders import CAT, list_problems, read_all, write_annotation, write_pair


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


@pytest.mark.parametrize(
    "image_path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\etc\\passwd",
        "C:\\Users\\me\\cat.jpg",
        "C:/Users/me/cat.jpg",
        "\\\\server\\share\\cat.jpg",
        "//server/share/cat.jpg",
        "\\\\?\\C:\\cat.jpg",
        "../photos/../cat.jpg",
        "../cat.jpg",
        "cat\0.jpg",
        "link/cat.jpg",
    ],
)
def test_path_that_leaves_the_folder_is_refused_by_name(tmp_path, refusal, image_path):
    write_pair(tmp_path, "cat")  # there is a photo to be had
    folder = tmp_path / "photos"
    write_pair(folder, "cat")
    (folder / "link").symlink_to(tmp_path)
    write_annotation(folder, "cat", image_path)
    line = refusal(read_all, folder)
    assert line.startswith(f"{folder / 'cat.json'}: imagePath ") and "leaves the folder" in line
    assert repr(image_path) in line


@pytest.mark.parametrize("image_path", ["C:cat.jpg", "~/cat.jpg", "$HOME/cat.jpg", "file:///etc/cat.jpg"])
def test_path_that_only_a_shell_would_follow_is_a_name_like_any_other(tmp_path, refusal, image_path):
    write_pair(tmp_path, "cat")
    write_annotation(tmp_path, "cat", image_path)
    line = refusal(read_all, tmp_path)
    assert line.startswith(f"{tmp_path / 'cat.json'}: ") and repr(image_path) in line


def test_photo_that_is_a_link_out_of_the_folder_is_refused(tmp_path, refusal):
    write_pair(tmp_path, "cat")
    folder = tmp_path / "photos"
    write_pair(folder, "cat")
    (folder / "cat.jpg").unlink()
    (folder / "cat.jpg").symlink_to("../cat.jpg")
    line = refusal(read_all, folder)
    assert line.startswith(f"{folder / 'cat.json'}: imagePath 'cat.jpg' is a link that leaves the folder")


@pytest.mark.parametrize("name", ["cat.jpg", "cat.json"])
def test_links_in_a_circle_are_refused(tmp_path, name):
    write_pair(tmp_path, "cat")
    write_pair(tmp_path, "other")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("round.link")
    (tmp_path / "round.link").symlink_to(name)
    (line,) = list_problems(tmp_path)
    assert str(tmp_path / "cat.") in line


def test_links_in_a_circle_in_a_voc_folder_are_refused(voc_folder):
    for name in ("JPEGImages/cat-0.jpg", "SegmentationClass/cat-1.png"):
        (voc_folder / name).unlink()
        (voc_folder / name).symlink_to((voc_folder / name).name)
    problems = list_problems(voc_folder)
    assert ["cat-0" in line or "cat-1" in line for line in problems] == [True, True]


def test_links_within_the_folder_and_to_the_folder_are_followed(tmp_path):
    folder = tmp_path / "photos"
    write_pair(folder, "cat")
    (folder / "raw").mkdir()
    (folder / "cat.jpg").rename(folder / "raw" / "original.jpg")
    (folder / "cat.jpg").symlink_to("raw/original.jpg")
    (tmp_path / "link").symlink_to("photos")
    assert list(read_all(tmp_path / "link")) == ["cat"]


def test_photo_of_another_annotation_is_refused(tmp_path, refusal):
    """Two annotations of one photo would be two photos of one training set."""
    write_pair(tmp_path, "cat")
    write_annotation(tmp_path, "copy", "cat.jpg")
    line = refusal(read_all, tmp_path)
    assert line.startswith(f"{tmp_path / 'copy.json'}: imagePath 'cat.jpg' is another photo's name")
    assert "name the photo 'copy'" in line


@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.json"])
def test_pipe_named_like_a_photo_is_not_waited_for(tmp_path, name):
    write_pair(tmp_path, "cat")
    os.mkfifo(tmp_path / name)
    assert list(read_all(tmp_path)) == ["cat"]


def test_pipe_that_an_annotation_names_is_no_photo(tmp_path, refusal):
    write_pair(tmp_path, "cat")
    (tmp_path / "cat.jpg").unlink()
    os.mkfifo(tmp_path / "cat.jpg")
    assert "no photo 'cat.jpg' beside it" in refusal(read_all, tmp_path)


@pytest.mark.parametrize("name", ["folder.jpg", "folder.json"])
def test_folder_named_like_a_photo_is_passed_over(tmp_path, name):
    write_pair(tmp_path, "cat")
    (tmp_path / name).mkdir()
    assert list(read_all(tmp_path)) == ["cat"]
