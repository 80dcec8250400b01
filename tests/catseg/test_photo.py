"""Files of every kind and state of repair; fitting and painting counted by hand."""

import gc
import io
import struct
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from catseg.errors import InputError
from catseg.photo import (
    PALETTE,
    VOID,
    count_valid_pixels,
    encode_png,
    fit_mask,
    fit_photo,
    fit_size,
    paint_overlay,
    paint_panel,
    read_header,
    read_mask,
    read_photo,
)

HIT, MISS, FALSE_ALARM, GREY = (0, 158, 115), (213, 94, 0), (86, 180, 233), (128, 128, 128)  # Okabe and Ito's
PHOTO = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


@contextmanager
def no_file_left_open():
    """Python says so when it has to close a file that the code forgot."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda photo: photo),
        (2, np.fliplr),
        (3, lambda photo: np.rot90(photo, 2)),
        (4, np.flipud),
        (5, lambda photo: photo.swapaxes(0, 1)),
        (6, lambda photo: np.rot90(photo, -1)),  # the camera was turned: the photo is shown turned clockwise
        (7, lambda photo: np.rot90(photo, 2).swapaxes(0, 1)),
        (8, lambda photo: np.rot90(photo, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), turn(PHOTO))


def test_exif_orientation_of_a_jpeg_swaps_its_sides(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "a.jpg", exif=exif)
    assert read_photo(tmp_path / "a.jpg").shape == (40, 60, 3)


def make_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with these (tag, type, count, value), well-formed or not."""
    fields = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + fields + b"\0\0\0\0"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no TIFF header",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        make_exif((0x0112, 3, 1, b"\x63\0")),  # an orientation that there is not
        make_exif((0x0112, 2, 2, b"6\0")),  # an orientation in words
    ],
    ids=["no header", "cut short", "orientation 99", "orientation in words"],
)
def test_photo_whose_orientation_cannot_be_read_is_taken_as_upright(tmp_path, exif):
    Image.new("RGB", (40, 60), (255, 0, 0)).save(tmp_path / "a.jpg", exif=exif)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.shape == (60, 40, 3)
    assert photo[..., 0].min() > 250


@pytest.mark.parametrize("entry", [(0x010F, 11, 1, b"AAAA"), (0x0111, 2, 2, b"A\0")], ids=["maker", "offset"])
def test_photo_that_pillow_cannot_turn_is_turned_or_refused_by_name(tmp_path, entry):
    """A maker that is a float, an offset that is a letter: Pillow raises AttributeError and struct.error."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 60)).save(path, exif=make_exif((0x0112, 3, 1, b"\6\0"), entry))
    try:
        assert read_photo(path).shape == (40, 60, 3)
    except InputError as refusal:
        assert str(refusal).startswith(f"{path}: ")


def test_transparent_pixels_are_laid_on_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo[0, 0].tolist() == [200, 100, 0]
    assert photo[0, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(photo[0, 2], [244, 224, 204], atol=1)  # 0.2 of the colour, 0.8 of white


def test_transparent_entry_of_a_palette_is_laid_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_photo(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_palette_photo_gets_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png")
    dark, light = [10, 20, 30], [40, 50, 60]
    assert read_photo(tmp_path / "a.png").tolist() == [[dark, light], [light, dark]]


@pytest.mark.parametrize(("mode", "white"), [("L", 255), ("1", 1), ("LA", (255, 255))])
def test_grey_photo_has_three_equal_channels(tmp_path, mode, white):
    image = Image.new(mode, (2, 1), 0 if mode != "LA" else (0, 255))
    image.putpixel((1, 0), white)
    image.save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_photo_gets_its_colours(tmp_path, suffix):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"a.{suffix}")  # magenta and yellow make red
    photo = read_photo(tmp_path / f"a.{suffix}").astype(int)
    np.testing.assert_allclose(photo, np.broadcast_to([255, 0, 0], photo.shape), atol=6)


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        (np.full((4, 4), 40_000, np.uint16), "png"),
        (np.full((4, 4), 40_000, np.uint16), "tif"),
        (np.full((4, 4), 40_000, np.int32), "tif"),
        (np.full((4, 4), 0.5, np.float32), "tif"),
    ],
)
def test_grey_photo_of_more_than_eight_bits_is_refused(tmp_path, refusal, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    line = refusal(read_photo, path)
    assert line.startswith(f"{path}: ") and "8 bits" in line


def make_jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("read", [read_photo, read_mask])
@pytest.mark.parametrize(
    "content",
    [b"", b"no photo, a text", make_jpeg()[:2], make_jpeg()[:30], make_jpeg()[: len(make_jpeg()) // 2]],
    ids=["empty", "text", "two bytes", "header only", "truncated"],
)
def test_broken_file_is_refused_by_name(tmp_path, refusal, read, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with no_file_left_open():
        line = refusal(read, path)
    assert line.startswith(f"{path}: cannot be decoded") and "replace or remove" in line


@pytest.mark.parametrize("side", [9_000, 12_000, 20_000, 60_000])  # below and above Pillow's own two alarms
def test_photo_that_claims_to_be_huge_is_refused_by_its_header(tmp_path, refusal, png_bomb, side):
    path = tmp_path / "a.png"
    path.write_bytes(png_bomb(side, side))
    with no_file_left_open():
        line = refusal(read_photo, path)
    assert line.startswith(f"{path}: ") and "pixels" in line


@pytest.mark.parametrize("read", [read_photo, read_mask, read_header])
@pytest.mark.parametrize(("kind", "suffix"), [("EPS", "jpg"), ("ICO", "png"), ("PPM", "bmp"), ("TGA", "tif")])
def test_file_of_a_kind_that_photos_never_have_is_refused(tmp_path, refusal, read, kind, suffix):
    """An EPS file would run Ghostscript; an ICO decodes what lies in it before it tells its size."""
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (16, 16)).save(path, kind)
    line = refusal(read, path)
    assert line.startswith(f"{path}: cannot be decoded (neither JPEG, PNG nor another known kind)")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_photo_is_read_whatever_its_suffix_says(tmp_path, kind):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 12), "white").save(path, kind)
    assert read_photo(path).shape == (12, 16, 3) and read_photo(path).min() > 250
    assert read_header(path).kind == kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_header_says_how_large_the_photo_is_as_shown(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    header = read_header(path)
    assert (header.height, header.width) == read_photo(path).shape[:2]
    assert (header.height, header.width) == ((30, 20) if orientation > 4 else (20, 30))
    assert header.turned == (orientation > 1) and header.mode == "RGB"


def test_bytes_are_read_as_the_file_they_stood_in_and_not_turned_where_that_is_asked(tmp_path, refusal):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    data, where = buffer.getvalue(), tmp_path / "cat.json"
    assert read_photo(data, where).shape == (30, 20, 3)
    assert read_photo(data, where, True).shape == (20, 30, 3)
    assert refusal(read_photo, data[:100], where).startswith(f"{where}: cannot be decoded")
    assert refusal(read_header, b"", where).startswith(f"{where}: cannot be decoded")


def test_missing_photo_and_folder_are_refused(tmp_path, refusal):
    assert str(tmp_path / "gone.jpg") in refusal(read_photo, tmp_path / "gone.jpg")
    assert str(tmp_path) in refusal(read_photo, tmp_path)


@pytest.mark.parametrize(("suffix", "form"), [("jpg", "MPO"), ("tif", "TIFF"), ("png", "PNG"), ("webp", "WEBP")])
def test_file_of_two_frames_gives_the_first_and_is_closed(tmp_path, suffix, form):
    """Phones write such JPEGs; Pillow keeps files of several frames open."""
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")
    first.save(path, form, save_all=True, append_images=[second])
    with no_file_left_open():
        photo = read_photo(path)
    assert photo.min() > 250


def test_palette_mask_is_read_as_indices(tmp_path):
    labels = np.array([[0, 1, 2], [20, 255, 1]], np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([200] * 768)  # colours say nothing
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


def test_grey_mask_is_read_as_label_ids(tmp_path):
    labels = np.array([[0, 1, 2], [20, 255, 1]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


def test_mask_of_one_bit_is_background_and_first_class(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png")
    assert mask.dtype == np.uint8 and mask.tolist() == [[1, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_mask_of_colours_is_refused(tmp_path, refusal, mode):
    path = tmp_path / "a.png"
    Image.new(mode, (4, 4)).save(path)
    line = refusal(read_mask, path)
    assert line.startswith(f"{path}: ") and mode in line and "label ids" in line


sides = st.integers(1, 400)
image_sizes = st.integers(1, 20).map(lambda factor: 16 * factor)


@given(sides, sides, image_sizes)
def test_fitted_size_has_the_side_asked_for_and_keeps_the_shape(height, width, image_size):
    fitted_height, fitted_width = fit_size(height, width, image_size)
    assert max(fitted_height, fitted_width) == image_size
    assert min(fitted_height, fitted_width) >= 1
    scale = image_size / max(height, width)
    assert abs(fitted_height - height * scale) <= 1 and abs(fitted_width - width * scale) <= 1


masks = array_shapes(min_dims=2, max_dims=2, max_side=40).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 7, VOID]))
)


@given(masks, image_sizes)
def test_fitting_a_mask_makes_no_new_label(mask, image_size):
    fitted = fit_mask(mask, image_size)
    height, width = fit_size(*mask.shape, image_size)
    assert fitted.shape == (image_size, image_size) and fitted.dtype == np.uint8
    assert set(np.unique(fitted[:height, :width])) <= set(np.unique(mask))
    assert np.all(fitted[height:] == VOID) and np.all(fitted[:, width:] == VOID)


@given(masks)
def test_fitting_to_the_own_size_changes_no_pixel(mask):
    side = max(mask.shape)
    np.testing.assert_array_equal(fit_mask(mask, side)[: mask.shape[0], : mask.shape[1]], mask)
    photo = np.repeat(mask[..., None], 3, axis=2)
    np.testing.assert_array_equal(fit_photo(photo, side)[: mask.shape[0], : mask.shape[1]], photo)


@given(sides, sides, image_sizes)
def test_photo_fills_what_its_mask_fills_and_is_black_beyond(height, width, image_size):
    photo = fit_photo(np.full((height, width, 3), 200, np.uint8), image_size)
    mask = fit_mask(np.ones((height, width), np.uint8), image_size)
    np.testing.assert_array_equal(photo, np.where(mask == 1, 200, 0)[..., None].repeat(3, axis=2))


@given(st.integers(20, 200), st.integers(20, 200), image_sizes)
def test_photo_and_mask_stay_aligned(height, width, image_size):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 :, width // 2 :] = 1
    photo = np.repeat(mask[..., None] * 255, 3, axis=2)
    bright = fit_photo(photo, image_size)[..., 0] > 127
    different = bright != (fit_mask(mask, image_size) == 1)
    different &= fit_mask(mask, image_size) != VOID
    assert np.count_nonzero(different) <= 2 * image_size  # at most the one row and the one column of the edge


def test_overlay_is_three_tenths_mask():
    photo = np.full((1, 2, 3), 200, np.uint8)
    overlay = paint_overlay(photo, np.array([[0, 1]], np.uint8)).astype(int)
    np.testing.assert_allclose(overlay[0, 0], [140, 140, 140], atol=1)  # background is black, as the tutorial's is
    np.testing.assert_allclose(overlay[0, 1], [140, 0.7 * 200 + 0.3 * 128, 140], atol=1)


def shade(color: tuple[int, int, int]) -> list[int]:
    """A colour as a panel lays it on black."""
    return [int(0.6 * channel) for channel in color]


def test_panel_shows_truth_prediction_hits_misses_and_false_alarms():
    photo = np.zeros((1, 5, 3), np.uint8)
    truth = np.array([[1, 1, 0, VOID, 0]], np.uint8)
    prediction = np.array([[1, 0, 1, 1, 0]], np.uint8)
    panel = paint_panel(photo, truth, prediction)
    assert panel.shape == (2 * 1 + 4, 2 * 5 + 4, 3)
    hit, miss, false_alarm, void, none = (shade(color) for color in (HIT, MISS, FALSE_ALARM, GREY, (0, 0, 0)))
    assert panel[0, :5].tolist() == [none] * 5
    assert panel[0, -5:].tolist() == [hit, hit, none, void, none]
    assert panel[-1, :5].tolist() == [hit, none, hit, hit, none]
    assert panel[-1, -5:].tolist() == [hit, miss, false_alarm, void, none]
    assert np.all(panel[1:5] == 255) and np.all(panel[:, 5:9] == 255)


def test_panel_lets_the_photo_shine_through_and_leaves_it_alone():
    photo = np.full((2, 2, 3), 100, np.uint8)
    panel = paint_panel(photo, np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8))
    np.testing.assert_allclose(panel[0, -1].astype(int), 40 + 0.6 * np.array(HIT), atol=1)
    assert np.all(photo == 100)


def test_wrong_class_is_shown_as_false_alarm():
    photo, truth, prediction = np.zeros((1, 1, 3), np.uint8), np.array([[1]], np.uint8), np.array([[2]], np.uint8)
    assert paint_panel(photo, truth, prediction)[-1, -1].tolist() == shade(FALSE_ALARM)


def test_palette_is_black_then_the_tutorials_green_then_pascal_vocs():
    colors = np.reshape(PALETTE, (256, 3)).tolist()
    assert colors[0] == [0, 0, 0]
    assert colors[1] == [0, 128, 0]
    assert colors[2] == [128, 0, 0]
    assert colors[3] == [128, 128, 0]
    assert colors[15] == [192, 128, 128]
    assert colors[VOID] == [224, 224, 192]
    assert len({tuple(color) for color in colors}) == 256


def test_encoded_label_map_keeps_its_indices():
    labels = np.array([[0, 1, 2], [20, 255, 1]], np.uint8)
    image = Image.open(io.BytesIO(encode_png(labels, PALETTE)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    assert image.getpalette()[:6] == [0, 0, 0, 0, 128, 0]


def test_encoded_photo_is_lossless():
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(PHOTO)))), PHOTO)


def test_valid_pixels_are_those_that_are_not_void():
    masks = [np.array([[0, 1, VOID]], np.uint8), np.full((2, 2), VOID, np.uint8), np.zeros((4, 5), np.uint8)]
    assert count_valid_pixels(masks).tolist() == [2, 0, 20]
