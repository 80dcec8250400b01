"""Photos of every kind in a Labelme folder: colours, orientations, names, damage."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.dataset import read_pairs
from catseg.errors import InputError
from catseg.folder import list_pairs

CAT = ("cat",)
HEIGHT, WIDTH = 30, 40
TOP, BOTTOM, LEFT, RIGHT = 5, 12, 18, 33  # rows and columns of a bright rectangle, the last ones included


def make_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[TOP : BOTTOM + 1, LEFT : RIGHT + 1] = 1
    return mask


MASK = make_mask()


def annotate(folder: Path, name: str, **keys) -> Path:
    """The bright rectangle outlined in the photo as it is shown."""
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[LEFT, TOP], [RIGHT, BOTTOM]]}
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    path = folder / f"{Path(name).stem}.json"
    path.write_text(json.dumps({"imagePath": name, "shapes": [shape]} | size | keys), "utf-8")
    return path


def write_photo(folder: Path, name: str, mode: str = "RGB", **options) -> None:
    Image.fromarray(MASK * np.uint8(255)).convert(mode).save(folder / name, **options)
    annotate(folder, name)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (pair,) = list_pairs(str(folder), CAT)
    return pair.read()


def list_problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read_pairs(list_pairs(str(folder), CAT), [32])
    return caught.value.problems


def check(photo: np.ndarray, mask: np.ndarray) -> None:
    """The photo is bright where, and only where, the annotation says that the cat is."""
    assert photo.shape == (HEIGHT, WIDTH, 3) and photo.dtype == np.uint8
    np.testing.assert_array_equal(mask, MASK)
    np.testing.assert_array_equal(photo.min(axis=2) > 127, MASK == 1)
    np.testing.assert_array_equal(photo.max(axis=2) > 127, MASK == 1)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *[("cat.png", mode) for mode in ("RGB", "L", "1", "P", "LA", "RGBA")],
        *[("cat.jpg", mode) for mode in ("RGB", "L", "CMYK")],
        *[("cat.tif", mode) for mode in ("RGB", "L", "CMYK", "RGBA")],
        ("cat.bmp", "RGB"),
        ("cat.webp", "RGB"),
    ],
)
def test_cat_lies_where_it_is_outlined_whatever_the_colours_are_stored_as(tmp_path, name, mode):
    write_photo(tmp_path, name, mode, quality=100) if name == "cat.jpg" else write_photo(tmp_path, name, mode)
    check(*read(tmp_path))


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)  # black throughout,
    rgba[..., 3] = np.where(MASK, 0, 255)  # and where the cat is, nothing
    Image.fromarray(rgba).save(tmp_path / "cat.png")
    annotate(tmp_path, "cat.png")
    check(*read(tmp_path))


def test_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.fromarray(MASK)
    image.putpalette([0, 0, 0, 10, 10, 10])
    image.save(tmp_path / "cat.png", transparency=1)
    annotate(tmp_path, "cat.png")
    check(*read(tmp_path))


def test_photo_of_sixteen_bits_is_refused_by_name(tmp_path, refusal):
    Image.fromarray(MASK * np.uint16(60_000)).save(tmp_path / "cat.png")
    annotate(tmp_path, "cat.png")
    line = refusal(read, tmp_path)
    assert line.startswith(f"{tmp_path / 'cat.png'}: ") and "8 bits" in line


UNDO = {
    1: lambda photo: photo,
    2: np.fliplr,
    3: lambda photo: np.rot90(photo, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda photo: np.rot90(photo, 1),  # will be turned clockwise
    7: lambda photo: np.rot90(photo, 2).T,
    8: lambda photo: np.rot90(photo, -1),
}


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat.webp", "cat.tif"])
def test_cat_lies_where_it_is_outlined_however_the_camera_was_turned(tmp_path, name, orientation):
    """Labelme turns the photo before anything is outlined. Pillow scrambles turned TIFFs that it opens by name."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(UNDO[orientation](MASK * np.uint8(255)))
    Image.fromarray(stored).save(tmp_path / name, exif=exif, quality=100)
    annotate(tmp_path, name)
    check(*read(tmp_path))


def test_photo_turned_by_exif_is_outlined_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20), "white").save(tmp_path / "cat.jpg", exif=exif)
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[15, 3], [30, 6]]}
    (tmp_path / "cat.json").write_text(json.dumps({"imagePath": "cat.jpg", "shapes": [shape]}), "utf-8")
    photo, mask = read(tmp_path)
    assert photo.shape[:2] == mask.shape == (10, 20)
    assert mask.sum() == 5 * 4


def test_annotation_in_the_frame_of_the_stored_photo_is_refused(tmp_path, refusal):
    """As a program writes it that knows nothing of EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "cat.jpg", exif=exif)
    annotate(tmp_path, "cat.jpg")
    line = refusal(read, tmp_path)
    assert "outlined on a photo of 40 x 30, but the photo is 30 x 40" in line


@pytest.mark.parametrize(
    "name",
    ["猫 β.png", "two  spaces .png", "Kätzchen.jpg", "cat.JPG", "CAT.PNG", "cat.Jpeg", "cat.v2.jpg", "🐈‍⬛.webp"],
)
def test_photo_of_any_name_is_read(tmp_path, name):
    write_photo(tmp_path, name)
    check(*read(tmp_path))


@pytest.mark.parametrize("suffix", [".JSON", ".Json"])
def test_annotation_of_any_case_is_read(tmp_path, suffix):
    write_photo(tmp_path, "cat.png")
    (tmp_path / "cat.json").rename(tmp_path / f"cat{suffix}")
    check(*read(tmp_path))


@pytest.mark.parametrize("photo_form", ["NFC", "NFD"])
@pytest.mark.parametrize("file_form", ["NFC", "NFD"])
def test_umlaut_is_the_same_however_a_file_system_spells_it(tmp_path, photo_form, file_form):
    """macOS takes umlauts apart; a folder copied from there to Linux holds both spellings."""
    photo_name = unicodedata.normalize(photo_form, "Kätzchen.png")
    write_photo(tmp_path, photo_name)
    path = tmp_path / f"{Path(photo_name).stem}.json"
    path.rename(tmp_path / unicodedata.normalize(file_form, "Kätzchen.json"))
    (pair,) = list_pairs(str(tmp_path), CAT)
    assert pair.name == unicodedata.normalize("NFC", "Kätzchen") and pair.photo_path == tmp_path / photo_name
    check(*pair.read())


def test_photo_in_both_spellings_is_two_photos_of_one_name(tmp_path):
    for form in ("NFC", "NFD"):
        write_photo(tmp_path, unicodedata.normalize(form, "Kätzchen.png"))
    problems = list_problems(tmp_path)
    assert len(problems) == 2 and all("has the same name; rename one" in line for line in problems)


def test_names_that_differ_in_case_are_two_photos(tmp_path):
    write_photo(tmp_path, "cat.png")
    write_photo(tmp_path, "Cat.png")
    assert [pair.name for pair in list_pairs(str(tmp_path), CAT)] == ["Cat", "cat"]


def test_two_photos_of_one_name_are_refused_beside_the_other_problems(tmp_path):
    write_photo(tmp_path, "cat.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.JPG")
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.jpg")
    double, bare = list_problems(tmp_path)
    assert "cat.png: cat.JPG has the same name" in double and "bare.jpg: photo without annotation" in bare


@pytest.mark.parametrize("num_bytes", [0, 1, 20, 60, -20])
@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat.webp"])
def test_photo_cut_short_is_refused_by_name(tmp_path, refusal, name, num_bytes):
    write_photo(tmp_path, name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert refusal(read, tmp_path).startswith(f"{path}: cannot be decoded")
