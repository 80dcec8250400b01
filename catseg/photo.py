"""Photo and mask files <-> arrays, fitted to a square and back, and painted.

In:  files that may be broken or hostile.   Out: photo_HW3 and mask_HW, both uint8; PNG files.
Knows nothing of folders, annotations or models.      (H height, W width, S side, in pixels)
"""

import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from catseg.errors import InputError

UInt8 = npt.NDArray[np.uint8]

VOID = 255  # the label of pixels outside every loss and every metric (`__ignore__`)
MAX_PIXELS = 80_000_000  # below Pillow's own alarm; a 64-megapixel camera passes
# Whatever the suffix says. Not EPS, which would run Ghostscript, nor ICO, which decodes before it tells its size.
PHOTO_KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
OVERLAY_ALPHA = 0.3  # share of the mask in an overlay, the tutorial's
GAP = 4  # px, white, between the pictures of a panel

# Okabe and Ito's colours: told apart by colour-blind eyes too.
HIT, MISS, FALSE_ALARM, VOID_GREY = (0, 158, 115), (213, 94, 0), (86, 180, 233), (128, 128, 128)

# `open_checked` refuses large photos by their header, with a line of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF: the photo is shown as it lies in the file, as every viewer does.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF: 1 upright, 2 to 8 turned or mirrored


@dataclass(frozen=True)
class Header:
    """What a photo file says of itself before it is decoded. `width` x `height` as shown, EXIF applied."""

    kind: str  # JPEG, PNG, ...
    mode: str  # Pillow's: RGB, L, P, RGBA, CMYK, I;16, ...
    width: int
    height: int
    turned: bool  # by its EXIF orientation


def make_voc_palette() -> list[int]:
    """The 256 colours of PASCAL VOC, flat: black, then 255 that differ in many bits; void (255) pale."""

    def voc_color(label: int) -> tuple[int, int, int]:
        red = green = blue = 0
        for bit in range(7, -1, -1):
            red |= (label & 1) << bit
            green |= (label >> 1 & 1) << bit
            blue |= (label >> 2 & 1) << bit
            label >>= 3
        return red, green, blue

    return [channel for label in range(256) for channel in voc_color(label)]


VOC_PALETTE = make_voc_palette()
# Predictions: the tutorial paints its cat green, VOC's second colour.
PALETTE = VOC_PALETTE[:3] + VOC_PALETTE[6:9] + VOC_PALETTE[3:6] + VOC_PALETTE[9:]


def open_checked(source: Path | bytes, where: Path | str | None = None, upright: bool = False) -> Image.Image:
    """Decode an image whole, once, turned as its EXIF says; a line for the user if that cannot be done.

    `source` is a file, or the bytes of one that stood inside the file `where`; `upright`: it is not to be turned.
    """
    where = source if isinstance(source, Path) else where
    try:
        with _open(source) as image:
            _check_size(image, where)
            image.load()
            return image if upright else ImageOps.exif_transpose(image)
    except InputError:
        raise
    except Exception as error:  # decoders of broken files raise nearly anything
        raise _explain(error, where) from None


def read_header(source: Path | bytes, where: Path | str | None = None) -> Header:
    """What a photo says of itself, without decoding its pixels."""
    where = source if isinstance(source, Path) else where
    try:
        with _open(source) as image:
            _check_size(image, where)
            exif = image.getexif()
            orientation = exif.get(ORIENTATION, 1)
            # Pillow turns the size of a TIFF when it opens it, that of others never
            width, height = (exif[256], exif[257]) if image.format == "TIFF" else image.size
            if orientation in (5, 6, 7, 8):
                width, height = height, width
            return Header(image.format or "", image.mode, width, height, orientation in range(2, 9))
    except InputError:
        raise
    except Exception as error:  # as in `open_checked`
        raise _explain(error, where) from None


@contextmanager
def _open(source: Path | bytes) -> Iterator[Image.Image]:
    """By file, not by name: Pillow maps a TIFF that it opens by name into memory, and scrambles one that is turned."""
    with (
        source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file,
        Image.open(file, formats=PHOTO_KINDS) as image,
    ):
        yield image


def _check_size(image: Image.Image, where: Path | str | None) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{where}: {image.width} x {image.height} pixels is over {MAX_PIXELS:,}; scale it down")


def _explain(error: Exception, where: Path | str | None) -> InputError:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return InputError(f"{where}: no such file; check the path")
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, twice ours and more
        return InputError(f"{where}: over {MAX_PIXELS:,} pixels; scale it down")
    reason = "neither JPEG, PNG nor another known kind" if isinstance(error, UnidentifiedImageError) else error
    return InputError(f"{where}: cannot be decoded ({reason}); replace or remove the file")


def read_photo(source: Path | bytes, where: Path | str | None = None, upright: bool = False) -> UInt8:
    """Photo file -> photo_HW3 as a viewer shows it: EXIF orientation applied, alpha laid on white.

    Grey, palette and CMYK photos become RGB. More than 8 bits a channel is refused by name, for
    Pillow would clip it to white.
    """
    image = open_checked(source, where, upright)
    if image.mode.startswith(("I", "F")):
        where = source if isinstance(source, Path) else where
        raise InputError(f"{where}: pixels of mode {image.mode} (more than 8 bits); save it with 8 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> UInt8:
    """Mask file -> mask_HW of label ids: palette indices or grey values, never colours."""
    image = open_checked(path)
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path}: a mask of mode {image.mode} has more than 8 bits; save label ids as 8-bit grey PNG")
    if image.mode not in ("P", "L", "1"):
        raise InputError(
            f"{path}: a mask of mode {image.mode} holds colours; save label ids as a palette or 8-bit grey PNG"
        )
    return np.asarray(image).astype(np.uint8)


def fit_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Height and width after scaling the longer side to `image_size`; the shape is kept, never squashed."""
    scale = image_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def fit_photo(photo_HW3: UInt8, image_size: int) -> UInt8:
    """photo_HW3 -> photo_SS3: scaled with antialiasing into the top left, black beyond."""
    height, width = fit_size(photo_HW3.shape[0], photo_HW3.shape[1], image_size)
    scaled = Image.fromarray(photo_HW3).resize((width, height), Image.Resampling.BILINEAR)
    photo_SS3 = np.zeros((image_size, image_size, 3), np.uint8)
    photo_SS3[:height, :width] = np.asarray(scaled)
    return photo_SS3


def fit_mask(mask_HW: UInt8, image_size: int) -> UInt8:
    """mask_HW -> mask_SS: nearest neighbour, so no new label appears; void beyond."""
    height, width = fit_size(mask_HW.shape[0], mask_HW.shape[1], image_size)
    scaled = Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
    mask_SS = np.full((image_size, image_size), VOID, np.uint8)
    mask_SS[:height, :width] = np.asarray(scaled)
    return mask_SS


def count_valid_pixels(masks: Sequence[UInt8]) -> npt.NDArray[np.int64]:
    """pixels_N: how many of each mask's are not void."""
    return np.array([np.count_nonzero(mask_HW != VOID) for mask_HW in masks], dtype=np.int64)


def paint_overlay(photo_HW3: UInt8, labels_HW: UInt8) -> UInt8:
    """The photo with its label map laid over it, 30 % mask, as the tutorial shows predictions."""
    labels = Image.fromarray(labels_HW)
    labels.putpalette(PALETTE)
    return np.asarray(Image.blend(Image.fromarray(photo_HW3), labels.convert("RGB"), OVERLAY_ALPHA))


def paint_panel(photo_HW3: UInt8, mask_HW: UInt8, prediction_HW: UInt8) -> UInt8:
    """Four pictures in a square: photo | truth over prediction | errors.

    All but the photo are grey where nothing is. Truth and prediction are green; of the errors,
    hits are green, misses orange, false alarms blue (a wrong class is a false alarm). Void is a
    plain grey. A square, for MLflow's thumbnails are: a row of four would be a strip in them.
    """
    void, true, predicted = mask_HW == VOID, (mask_HW > 0) & (mask_HW != VOID), prediction_HW > 0
    hit = true & (prediction_HW == mask_HW)
    grey_HW3 = np.repeat(photo_HW3.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    truth, prediction, errors = grey_HW3.copy(), grey_HW3.copy(), grey_HW3.copy()
    for picture, region, color in (
        (truth, true, HIT),
        (truth, void, VOID_GREY),
        (prediction, predicted, HIT),
        (errors, true & ~predicted, MISS),
        (errors, predicted & ~hit & ~void, FALSE_ALARM),
        (errors, hit, HIT),
        (errors, void, VOID_GREY),
    ):
        picture[region] = (0.4 * picture[region] + 0.6 * np.asarray(color)).astype(np.uint8)
    height, width = mask_HW.shape
    panel = np.full((2 * height + GAP, 2 * width + GAP, 3), 255, np.uint8)
    panel[:height, :width], panel[:height, width + GAP :] = photo_HW3, truth
    panel[height + GAP :, :width], panel[height + GAP :, width + GAP :] = prediction, errors
    return panel


def encode_png(pixels: UInt8, palette: list[int] | None = None, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Pixels (HW3, or HW of label ids with a palette) -> the bytes of a PNG file.

    Photos in which nothing repeats take two thirds of the time with zlib.Z_RLE, and as many bytes (5 % more or less).
    """
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    # level 3: half the time of the default 6, a fifteenth larger
    image.save(buffer, "PNG", compress_level=3, compress_type=strategy)
    return buffer.getvalue()
