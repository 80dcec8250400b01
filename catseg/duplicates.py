"""Photos -> those that are nearly the same: rescaled, recompressed, re-exposed, mirrored, cropped.

In:  photo_HW3, one after the other.   Out: pairs of their numbers with a distance; groups.
Knows nothing of files or folders.

The hash is ImageHash's pHash (the signs of low frequencies), 144 bits. Unrelated photos differ in
about half of them. A crop shifts all frequencies, so each photo is hashed whole, mirrored, and in
99 crops of its own, and two photos are as far apart as the nearest of these is from the other,
whole. Of 895 photos of street cats 43 pairs are the same by eye: 41 of them are within 30 bits, and no
other pair of 400,000 is (experiments/LOG.md).
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from catseg.photo import UInt8

Bits = npt.NDArray[np.bool_]

HASH_SIDE = 12
NUM_BITS = HASH_SIDE**2
MAX_DISTANCE = 30  # bits; the nearest unrelated photos were 36 bits apart, drawn ones 32
CROP_SIDE = 96  # px: a photo is made this small before it is cropped
BLOCK = 256  # photos compared with all others at a time: bounds the memory


def _make_spans() -> list[tuple[float, float]]:
    """Crops of a side of length 1: all of it; 90, 80 and 70 % of it at the start, in the middle, at the end."""
    starts = [(place * (1 - share), share) for share in (0.9, 0.8, 0.7) for place in (0, 0.5, 1)]
    return [(0.0, 1.0), *((start, start + share) for start, share in starts)]


BOXES = [(x0, y0, x1, y1) for (y0, y1), (x0, x1) in itertools.product(_make_spans(), repeat=2)]


@dataclass(frozen=True)
class Near:
    """Two photos by their numbers, first < second, and how many of 144 bits they differ in."""

    first: int
    second: int
    distance: int


def compute_hashes(photo_HW3: UInt8) -> Bits:
    """Hashes of one photo, (101, 144): mirrored, whole, then its 99 crops."""
    import imagehash  # here, for the sample trains where it is not installed

    def hash_box(image: Image.Image, box: tuple[float, float, float, float]) -> Bits:
        x0, y0, x1, y1 = (CROP_SIDE * value for value in box)
        side = HASH_SIDE * 4  # what pHash would scale to by itself
        scaled = image.resize((side, side), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
        bits: Bits = imagehash.phash(scaled, HASH_SIDE).hash.ravel()
        return bits

    small = Image.fromarray(photo_HW3).convert("L").resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BOX)
    return np.stack([hash_box(ImageOps.mirror(small), BOXES[0]), *(hash_box(small, box) for box in BOXES)])


def find_near(hashes: list[Bits]) -> list[Near]:
    """All pairs of photos within MAX_DISTANCE, nearest first."""
    if len(hashes) < 2:
        return []
    bits = np.stack(hashes)  # N, 101, 144
    num_photos, _, num_bits = bits.shape
    targets = _to_signs(bits[:, :2].transpose(1, 0, 2).reshape(-1, num_bits)).T  # all mirrored, then all whole
    found: dict[tuple[int, int], int] = {}  # numbers, first < second -> distance
    for start in range(0, num_photos, BLOCK):
        block = _to_signs(bits[start : start + BLOCK, 1:])
        alike = np.full((len(block), num_photos), -num_bits, np.float32)
        for crop in range(block.shape[1]):
            product = block[:, crop] @ targets
            np.maximum(alike, product[:, :num_photos], out=alike)
            np.maximum(alike, product[:, num_photos:], out=alike)
        distances = (num_bits - alike) / 2
        for row, column in np.argwhere(distances <= MAX_DISTANCE).tolist():
            pair = (min(start + row, column), max(start + row, column))
            if pair[0] != pair[1]:
                found[pair] = min(found.get(pair, MAX_DISTANCE), round(float(distances[row, column])))
    return sorted((Near(*pair, distance) for pair, distance in found.items()), key=lambda near: near.distance)


def _to_signs(bits: Bits) -> npt.NDArray[np.float32]:
    """-1 and 1: a product of two rows counts equal bits minus unequal ones, at the speed of a matrix product."""
    return np.where(bits, np.float32(1), np.float32(-1))


def make_groups(num_photos: int, pairs: list[Near]) -> list[list[int]]:
    """Photos by number, those that hang together by pairs in one group; groups by their first photo."""
    group_of = {number: [number] for number in range(num_photos)}
    for pair in pairs:
        first, second = group_of[pair.first], group_of[pair.second]
        if first is not second:
            first += second
            group_of.update(dict.fromkeys(second, first))
    return [sorted(group) for number, group in group_of.items() if number == min(group)]
