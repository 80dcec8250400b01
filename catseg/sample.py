"""The built-in dataset: drawn cats with exact outlines, as many as wanted, always the same.

In:  the number of a photo.   Out: photo_HW3 and its mask_HW, 192 x 192.
Knows nothing of files. It is hard on purpose, as far as a grid of minutes allows: coats of many
colours, furniture that now and then has the colour of fur, cushions with a cat's coat and no head,
several cats, small cats, bars and leaves in front of them, and one photo in twelve without a cat.
How hard was measured: experiments/LOG.md.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from catseg.photo import UInt8

SAMPLE, NUM_PHOTOS, SEED = "sample", 128, 2026
SIDE = 192  # px
SCALE = 2  # drawn at twice the side, then halved: smooth edges, and the outline is that of what is seen

FUR = ((34, 32, 32), (80, 78, 78), (140, 134, 128), (214, 134, 58), (232, 224, 212), (176, 116, 60), (176, 170, 166))
COATS = ("solid", "tabby", "patches", "bib")
CLUTTER = ((50, 120, 60), (40, 80, 150), (110, 60, 130), (150, 50, 60), (50, 130, 140), (120, 150, 60), (70, 70, 160))

Point = tuple[float, float]
Color = tuple[int, int, int]


def draw_photo(number: int, seed: int = SEED) -> tuple[UInt8, UInt8]:
    """Photo and mask of one number; the same number gives the same pixels (with the same Pillow and numpy)."""
    rng = np.random.default_rng([seed, number])
    side = SIDE * SCALE
    photo = _draw_background(rng, side)
    mask = Image.new("L", (side, side), 0)
    num_cats = int(rng.choice([0, 1, 2, 3], p=[0.08, 0.52, 0.25, 0.15]))
    if rng.random() < 0.15:
        _draw_cushion(photo, rng)
    for _ in range(num_cats):
        _draw_cat(photo, mask, rng)
    _draw_occluders(photo, mask, rng)
    return _finish(photo, rng), np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX)) // 128


def name_photo(number: int) -> str:
    """What a drawn photo is called, in memory and on disk."""
    return f"{SAMPLE}-{number:04d}"


def _draw_background(rng: np.random.Generator, side: int) -> Image.Image:
    """A wall over a floor, and furniture: most of it in colours of its own, a little in those of fur."""
    wall, floor = (_jitter(CLUTTER[rng.integers(len(CLUTTER))], rng, 20) for _ in range(2))
    photo = Image.new("RGB", (side, side), wall)
    draw = ImageDraw.Draw(photo)
    horizon = int(side * rng.uniform(0.25, 0.7))
    draw.rectangle((0, horizon, side, side), fill=floor)
    if rng.random() < 0.5:  # floorboards
        step = int(rng.integers(16, 48))
        for y in range(horizon, side, step):
            draw.line((0, y, side, y), fill=_jitter(floor, rng, 30), width=3)
    for _ in range(rng.integers(6, 16)):
        x, y, width, height = rng.uniform((0, 0, 0.05, 0.05), (1, 1, 0.4, 0.4)) * side
        palette = FUR if rng.random() < 0.03 else CLUTTER
        color = _jitter(palette[rng.integers(len(palette))], rng, 20)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        shape = rng.integers(3)
        if shape == 0:
            draw.rectangle(box, fill=color)
        elif shape == 1:
            draw.ellipse(box, fill=color)
        else:
            draw.polygon([(float(px), float(py)) for px, py in rng.uniform(box[:2], box[2:], (3, 2))], fill=color)
    return photo


def _draw_cushion(photo: Image.Image, rng: np.random.Generator) -> None:
    """A cat's coat without a cat: what a network that goes by texture alone takes for one."""
    side = photo.width
    x, y = rng.uniform(0.1, 0.9, 2) * side
    rx, ry = rng.uniform(0.06, 0.14, 2) * side
    layer = Image.new("L", photo.size, 0)
    ImageDraw.Draw(layer).rounded_rectangle((x - rx, y - ry, x + rx, y + ry), radius=min(rx, ry) / 2, fill=255)
    photo.paste(_make_coat(rng, photo.size), (0, 0), layer)


def _draw_cat(photo: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    """One cat in one of three poses, somewhere; its silhouette goes into the mask as well."""
    side = photo.width
    size = side * float(rng.choice([rng.uniform(0.14, 0.24), rng.uniform(0.26, 0.48)], p=[0.15, 0.85]))
    center = rng.uniform(0.15, 0.85, 2) * side
    flip, tilt = float(rng.choice([-1, 1])), rng.uniform(-0.3, 0.3)

    def place(x: float, y: float) -> Point:
        """From the cat's own frame (unit: `size`, nose to the left, y down) to the photo's."""
        turned_x = x * math.cos(tilt) - y * math.sin(tilt)
        turned_y = x * math.sin(tilt) + y * math.cos(tilt)
        return float(center[0] + flip * size * turned_x), float(center[1] + size * turned_y)

    silhouette = Image.new("L", photo.size, 0)
    draw = ImageDraw.Draw(silhouette)
    pose = POSES[rng.integers(len(POSES))]
    head_x, head_y, head_radius = pose(draw, place, size, rng)
    _draw_disc(draw, place(head_x, head_y), head_radius * size, 255)
    for ear in (-1, 1):
        base_x = head_x + ear * 0.6 * head_radius
        draw.polygon(
            [
                place(base_x - 0.4 * head_radius, head_y - 0.5 * head_radius),
                place(base_x + ear * 0.25 * head_radius, head_y - 1.6 * head_radius),
                place(base_x + 0.4 * head_radius, head_y - 0.5 * head_radius),
            ],
            fill=255,
        )
    photo.paste(_make_coat(rng, photo.size), (0, 0), silhouette)
    mask.paste(255, (0, 0), silhouette)
    _draw_face(ImageDraw.Draw(photo), place, size, (head_x, head_y, head_radius), rng)


Place = Callable[[float, float], Point]
Head = tuple[float, float, float]  # x, y, radius in the cat's own frame


def _sit(draw: ImageDraw.ImageDraw, place: Place, size: float, rng: np.random.Generator) -> Head:
    _draw_blob(draw, place, [(0.0, 0.25, 0.42), (0.0, 0.0, 0.3), (-0.05, -0.25, 0.24)], size)
    _draw_tail(draw, place, [(0.3, 0.5), (0.6, 0.55), (0.75, 0.35), (0.7, rng.uniform(-0.2, 0.3))], size)
    return -0.12, -0.6, 0.27


def _walk(draw: ImageDraw.ImageDraw, place: Place, size: float, rng: np.random.Generator) -> Head:
    _draw_blob(draw, place, [(-0.45, 0.0, 0.26), (-0.15, 0.0, 0.27), (0.15, 0.0, 0.27), (0.45, 0.0, 0.26)], size)
    for x in (-0.5, -0.35, 0.4, 0.52):
        foot = x + rng.uniform(-0.15, 0.15)
        draw.line([place(x, 0.1), place(foot, 0.62)], fill=255, width=max(2, int(0.13 * size)))
    _draw_tail(draw, place, [(0.6, -0.05), (0.85, -0.15), (0.95, -0.4), (0.85, rng.uniform(-0.8, -0.5))], size)
    return -0.78, -0.25, 0.25


def _lie(draw: ImageDraw.ImageDraw, place: Place, size: float, rng: np.random.Generator) -> Head:
    _draw_blob(draw, place, [(-0.3, 0.1, 0.3), (0.0, 0.05, 0.36), (0.35, 0.1, 0.34)], size)
    _draw_tail(draw, place, [(0.6, 0.25), (0.8, 0.42), (0.5, 0.5), (rng.uniform(0.0, 0.3), 0.5)], size)
    return -0.6, -0.1, 0.26


POSES = (_sit, _walk, _lie)


def _draw_blob(draw: ImageDraw.ImageDraw, place: Place, discs: list[Head], size: float) -> None:
    """A body: the hull along a row of discs."""
    for (x0, y0, r0), (x1, y1, r1) in itertools.pairwise(discs):
        for step in range(9):
            t = step / 8
            _draw_disc(draw, place(x0 + t * (x1 - x0), y0 + t * (y1 - y0)), size * (r0 + t * (r1 - r0)), 255)


def _draw_tail(draw: ImageDraw.ImageDraw, place: Place, controls: list[Point], size: float) -> None:
    """A Bezier curve of four control points, as thick as a tail."""
    p0, p1, p2, p3 = (np.asarray(point) for point in controls)
    for t in np.linspace(0, 1, 40):
        x, y = (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3
        _draw_disc(draw, place(x, y), 0.07 * size, 255)


def _draw_face(draw: ImageDraw.ImageDraw, place: Place, size: float, head: Head, rng: np.random.Generator) -> None:
    x, y, radius = head
    eye: Color = (150, 170, 60) if rng.random() < 0.7 else (90, 140, 170)
    for side in (-1, 1):
        middle = place(x + side * 0.4 * radius, y - 0.1 * radius)
        _draw_disc(draw, middle, 0.17 * radius * size, eye)
        _draw_disc(draw, middle, 0.08 * radius * size, (10, 10, 10))
    _draw_disc(draw, place(x, y + 0.35 * radius), 0.1 * radius * size, (200, 120, 120))


def _draw_disc(draw: ImageDraw.ImageDraw, middle: Point, radius: float, fill: int | Color) -> None:
    x, y = middle
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _make_coat(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Fur for the whole photo, of which a silhouette is cut."""
    width, height = size[0] // SCALE, size[1] // SCALE  # half the side is fine enough and four times faster
    base, other = (_jitter(FUR[rng.integers(len(FUR))], rng, 12) for _ in range(2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) * SCALE
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 6)
    match COATS[rng.integers(len(COATS))]:
        case "tabby":
            wave = (x * math.cos(angle) + y * math.sin(angle)) / rng.uniform(5, 10) + 1.5 * np.sin(y / 17 + phase)
            share = 0.5 * (np.sin(wave) > 0.3)
        case "patches":
            share = 1.0 * (np.sin(x / 23 + phase) + np.sin(y / 19 + 2 * phase) + np.sin((x + y) / 31) > 0.4)
        case "bib":
            share = 1.0 * (np.sin((x * math.cos(angle) + y * math.sin(angle)) / 60 + phase) > 0.75)
        case _:
            share = np.zeros_like(x)
    fur = np.asarray(base) + share[..., None] * (np.asarray(other) - np.asarray(base))
    fur = fur + rng.normal(0, 12, (height, width, 1))
    return Image.fromarray(fur.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def _draw_occluders(photo: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    """Bars or leaves in front of everything; where they cover a cat, there is no cat."""
    if rng.random() < 0.7:
        return
    side = photo.width
    color = _jitter(CLUTTER[rng.integers(len(CLUTTER))], rng, 30)
    layers = ((ImageDraw.Draw(photo), color), (ImageDraw.Draw(mask), 0))
    if rng.random() < 0.5:  # the bars of a cage
        starts = np.arange(rng.uniform(0, 60), side, rng.uniform(50, 90))
        lines = [((float(x), 0.0), (float(x + rng.uniform(-20, 20)), float(side))) for x in starts]
        width = int(rng.integers(4, 9))
    else:  # leaves, from the ground up
        starts = rng.uniform(0, side, 25)
        lines = [
            ((float(x), float(side)), (float(x + rng.uniform(-60, 60)), float(rng.uniform(0.45, 0.8) * side)))
            for x in starts
        ]
        width = int(rng.integers(3, 9))
    for line in lines:
        for draw, fill in layers:
            draw.line(line, fill=fill, width=width)


def _finish(photo: Image.Image, rng: np.random.Generator) -> UInt8:
    """The camera: light from one side, a little blur, exposure, noise."""
    small = photo.resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    pixels = np.asarray(small).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    light = rng.uniform(0.8, 1.15) * (1 + rng.uniform(0, 0.25) * (x * math.cos(angle) + y * math.sin(angle)))
    pixels = pixels * light[..., None] + rng.normal(0, rng.uniform(1, 5), pixels.shape)
    exposed: UInt8 = pixels.clip(0, 255).astype(np.uint8)
    return exposed


def _jitter(color: Color, rng: np.random.Generator, spread: int) -> Color:
    red, green, blue = (int(np.clip(channel + rng.integers(-spread, spread + 1), 0, 255)) for channel in color)
    return red, green, blue
