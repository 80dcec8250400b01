"""Photo and mask files <-> arrays, fitted to a square and back, and painted.

In:  files that may be broken or hostile.   Out: photo_HW3 and mask_HW, both uint8; PNG files.
Knows nothing of folders, annotations or models.      (H height, W width, S side, in pixels)
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from catseg.errors import InputError

UInt8 = npt.NDArray[np.uint8]

VOID = 255  # the label of pixels outside every loss and every metric (`__ignore__`)
MAX_PIXELS = 80_000_000  # below Pillow's own alarm; a 64-megapixel camera passes
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
OVERLAY_ALPHA = 0.3  # share of the mask in an overlay, the tutorial's
GAP = 4  # px, white, between the pictures of a panel

# Okabe and Ito's colours: told apart by colour-blind eyes too.
HIT, MISS, FALSE_ALARM, VOID_GREY = (0, 158, 115), (213, 94, 0), (86, 180, 233), (128, 128, 128)

# `open_checked` refuses large photos by their header, with a line of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def make_palette() -> list[int]:
    """The 256 colours of a mask file, flat: black, cat (0,128,0), then PASCAL VOC's, void pale."""

    def voc_color(label: int) -> tuple[int, int, int]:
        red = green = blue = 0
        for bit in range(7, -1, -1):
            red |= (label & 1) << bit
            green |= (label >> 1 & 1) << bit
            blue |= (label >> 2 & 1) << bit
            label >>= 3
        return red, green, blue

    colors = [voc_color(label) for label in range(256)]
    colors[1], colors[2] = colors[2], colors[1]  # the tutorial paints its cat green, VOC's second colour
    return [channel for color in colors for channel in color]


PALETTE = make_palette()


def open_checked(path: Path) -> Image.Image:
    """Decode an image file whole, once, turned as its EXIF says; a line for the user if that cannot be done."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels is over {MAX_PIXELS:,}; scale it down")
            image.load()
            return ImageOps.exif_transpose(image)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file; check the path") from None
    except InputError:
        raise
    except Exception as error:  # decoders of broken files raise nearly anything
        raise InputError(f"{path}: cannot be decoded ({error}); replace or remove the file") from None


def read_photo(path: Path) -> UInt8:
    """Photo file -> photo_HW3 as a viewer shows it: EXIF orientation applied, alpha laid on white.

    Grey, palette and CMYK photos become RGB. More than 8 bits a channel is refused by name, for
    Pillow would clip it to white.
    """
    image = open_checked(path)
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path}: pixels of mode {image.mode} (more than 8 bits); save it with 8 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> UInt8:
    """Mask file -> mask_HW of label ids: palette indices or grey values, never colours."""
    image = open_checked(path)
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


def paint_overlay(photo_HW3: UInt8, labels_HW: UInt8) -> UInt8:
    """The photo with its label map laid over it, 30 % mask, as the tutorial shows predictions."""
    colors_HW3 = np.asarray(PALETTE, np.uint8).reshape(256, 3)[labels_HW]
    return np.asarray(Image.blend(Image.fromarray(photo_HW3), Image.fromarray(colors_HW3), OVERLAY_ALPHA))


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


def encode_png(pixels: UInt8, palette: bool = False) -> bytes:
    """Pixels (HW3, or HW of label ids with `palette`) -> the bytes of a PNG file."""
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename, fsync the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
