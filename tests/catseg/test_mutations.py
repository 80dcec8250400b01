"""Ten thousand files that broke, or were broken on purpose: each is read, or refused in a few short lines.

They are read in a process of their own, in bounded memory and time, for a decoder may crash or hang.
"""

import base64
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.errors import InputError
from catseg.labelme import decode_image_data, draw_mask, load_annotation
from catseg.photo import read_header, read_mask, read_photo

ROOT = Path(__file__).parent.parent.parent
WIDTH, HEIGHT = 48, 40
NUM_FILES = 2_500  # of each batch, four batches
MAX_BYTES = 3 * 2**30  # of address space
MAX_SECONDS = 5.0  # per file, on a busy machine

NASTY = [
    *(None, True, False, 0, -1, 1, 7, 1.5, -0.0, 1e6, 999_999.9, -999_999.0, 1e308, float("nan"), float("inf")),
    *(10**30, -(10**400), "", "cat", "kat", "猫", "\ud800", "\n\0\x1b[31m", "x" * 20_000, "polygon", "mask", "circle"),
    *([], {}, [[]], [None], [1, 2], [[1, 2], [3, 4]], {"points": []}, [0] * 1_000, "AAAA", "../../etc/passwd", "\x00"),
]


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_photos() -> dict[str, bytes]:
    """Small files of every kind that people have."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    labels = Image.fromarray((rng.random((HEIGHT, WIDTH)) < 0.5).astype(np.uint8))
    palette = labels.copy()
    palette.putpalette([0, 0, 0, 128, 0, 0])
    deep = Image.fromarray(rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb.jpg": encode(photo, "JPEG", exif=exif),
        "progressive.jpg": encode(photo, "JPEG", progressive=True),
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "two.jpg": encode(photo, "MPO", save_all=True, append_images=[photo]),
        "rgb.png": encode(photo, "PNG", exif=exif),
        "rgba.png": encode(photo.convert("RGBA"), "PNG"),
        "deep.png": encode(deep, "PNG"),
        "palette.png": encode(palette, "PNG"),
        "clear.png": encode(palette, "PNG", transparency=b"\x00\xff"),
        "grey.png": encode(labels, "PNG"),
        "bit.png": encode(labels.convert("1"), "PNG"),
        "lossy.webp": encode(photo, "WEBP", exif=exif),
        "lossless.webp": encode(photo, "WEBP", lossless=True),
        "two.webp": encode(photo, "WEBP", save_all=True, append_images=[photo.rotate(90)]),
        "plain.tif": encode(photo, "TIFF"),
        "turned.tif": encode(labels, "TIFF", exif=exif),
        "deflate.tif": encode(photo, "TIFF", compression="tiff_deflate"),
        "lzw.tif": encode(labels, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encode(photo, "TIFF", compression="jpeg"),
        "two.tif": encode(photo, "TIFF", save_all=True, append_images=[photo]),
        "gif.jpg": encode(palette, "GIF"),
        "moving-gif.jpg": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "rgb.bmp": encode(photo, "BMP"),
        "palette.bmp": encode(palette, "BMP"),
    }


def make_annotations() -> list[dict]:
    bits = base64.b64encode(encode(Image.new("1", (6, 5), 1), "PNG")).decode()
    outline = [[2.5, 3], [30, 3], [30, 20.25]]
    return [
        {
            "version": "6.3.1",
            "flags": {},
            "shapes": [
                {"label": "cat", "points": outline, "group_id": None, "shape_type": "polygon", "flags": {}},
                {"label": "cat", "points": [[1, 2], [20, 30]], "group_id": 1, "shape_type": "rectangle"},
                {"label": "cat", "points": [[9, 9], [12, 13]], "shape_type": "circle"},
            ],
            "imagePath": "cat.jpg",
            "imageData": None,
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
        },
        {
            "shapes": [
                {"label": "cat", "points": [[3, 4], [8, 8]], "shape_type": "mask", "mask": bits},
                {"label": "cat", "points": [[3.4, 4.2], [8.3, 8.1]], "shape_type": "mask", "mask": bits},
                {"label": "__ignore__", "points": [[3, 4], [8, 8], [30, 20]], "shape_type": "linestrip"},
                {"label": "_background_", "points": [[3, 4]], "shape_type": "point"},
            ],
            "imagePath": "cat.jpg",
        },
        {
            "shapes": [{"label": "cat", "line_color": None, "points": outline, "shape_type": None}],
            "fillColor": [255, 0, 0, 128],
            "imagePath": "cat.jpg",
            "imageData": base64.b64encode(encode(Image.new("RGB", (WIDTH, HEIGHT)), "JPEG")).decode(),
        },
    ]


def mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flipped, cut, spliced, doubled; sizes and offsets replaced by extreme ones. The header more often."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 100)
        at = rng.randrange(reach) if reach else 0
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << rng.randrange(8)] if changed else b"x")
            case 2:
                del changed[rng.randrange(len(changed) + 1) :]
            case 3:
                changed[at:] = other[rng.randrange(len(other)) :]
            case 4:
                del changed[at : at + rng.randrange(1, 50)]
            case 5:
                changed[at:at] = changed[at : at + rng.randrange(1, 50)]
            case 6:
                extreme = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000, 9_000])
                form = rng.choice("<>") + ("I" if extreme > 0xFFFF else rng.choice("HI"))
                field = struct.pack(form, extreme)
                changed[at : at + len(field)] = field
    return bytes(changed)


def mutate_tree(rng: random.Random, tree: object) -> object:
    """A copy with one thing dropped, replaced, renamed, repeated or buried."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        return mutate_dict(rng, tree)
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        return mutate_list(rng, tree)
    if isinstance(tree, str) and tree and rng.random() < 0.5:
        at = rng.randrange(len(tree))
        return tree[:at] + rng.choice(["", "=", "\n", "猫", "A" * 100, tree]) + tree[at + 1 :]
    if rng.random() < 0.1:
        for _ in range(rng.choice([1, 50, 300])):
            tree = [tree]
        return tree
    return rng.choice(NASTY)


def mutate_dict(rng: random.Random, tree: dict) -> dict:
    key = rng.choice(list(tree))
    match rng.randrange(6):
        case 0:
            return {name: value for name, value in tree.items() if name != key}
        case 1:
            return tree | {key: rng.choice(NASTY)}
        case 2:
            return {(f"{name}2" if name == key else name): value for name, value in tree.items()}
        case 3:
            return tree | {key: tree[rng.choice(list(tree))]}
    return tree | {key: mutate_tree(rng, tree[key])}


def mutate_list(rng: random.Random, tree: list) -> list:
    at = rng.randrange(len(tree))
    match rng.randrange(6):
        case 0:
            return tree[:at] + tree[at + 1 :]
        case 1:
            return [*tree[:at], rng.choice(NASTY), *tree[at + 1 :]]
        case 2:
            return tree * rng.choice([2, 100])
    return [*tree[:at], mutate_tree(rng, tree[at]), *tree[at + 1 :]]


def write_annotation(rng: random.Random, folder: Path) -> Path:
    annotations = make_annotations()
    tree: object = rng.choice(annotations)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        tree = mutate_tree(rng, tree)
    data = json.dumps(tree).encode()
    if rng.random() < 0.3:
        data = mutate_bytes(rng, data, json.dumps(annotations[0]).encode())
    path = folder / "cat.json"
    path.write_bytes(data)
    return path


def write_photo(rng: random.Random, folder: Path) -> Path:
    name, other = rng.choices(list(PHOTOS), k=2)
    path = folder / name
    path.write_bytes(mutate_bytes(rng, PHOTOS[name], PHOTOS[other]))
    return path


def read_annotation(path: Path) -> None:
    annotation = load_annotation(path)
    draw_mask(annotation, HEIGHT, WIDTH, ("cat",))
    if annotation.image_data is not None:
        read_photo(decode_image_data(annotation), path, upright=True)


def read_whole_mask(path: Path) -> None:
    mask = read_mask(path)
    assert mask.dtype == np.uint8 and mask.ndim == 2


def read_whole_photo(path: Path) -> None:
    photo = read_photo(path)
    assert photo.dtype == np.uint8 and photo.shape[2:] == (3,)
    header = read_header(path)
    assert photo.shape[:2] == (header.height, header.width)


BATCHES: dict[str, tuple[Callable, tuple[Callable, ...]]] = {
    "annotations": (write_annotation, (read_annotation,)),
    "photos": (write_photo, (read_whole_photo, read_whole_mask, read_header)),
}
PHOTOS = make_photos()


def read_or_complain(read: Callable, path: Path) -> str:
    """`read`, `refused`, or what is wrong with how it was refused."""
    try:
        read(path)
    except InputError as refusal:
        for line in refusal.problems:
            if not line.isprintable() or not line.startswith(f"{path}: ") or len(line) - len(str(path)) >= 1_000:
                return f"a bad line: {line[:2_000]!r}"
        return "refused" if refusal.problems else "refused without a word"
    except BaseException:
        return traceback.format_exc()
    return "read"


def read_batch(kind: str, first: int, num: int) -> None:
    """What the child process does: one line of JSON per file that is not as it should be, then a summary."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    write, readers = BATCHES[kind]
    counts = {"read": 0, "refused": 0}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + num):
            path = write(random.Random(seed), Path(folder))
            print(json.dumps({"now": seed}), flush=True)  # the last one is named if this process dies
            for read in readers:
                start = time.perf_counter()
                outcome = read_or_complain(read, path)
                seconds = time.perf_counter() - start
                slowest = max(slowest, seconds)
                if outcome in counts:
                    counts[outcome] += 1
                if outcome not in counts or seconds > MAX_SECONDS:
                    print(json.dumps({"wrong": [kind, seed, read.__name__, path.name, outcome, seconds]}), flush=True)
            path.unlink()
    print(json.dumps({"counts": counts, "slowest": slowest}), flush=True)


def run_child(*arguments: object, timeout: int = 300) -> list[dict]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libtiff and libpng say what they think of such files
        timeout=timeout,
        check=False,
    )
    lines = [json.loads(line) for line in child.stdout.decode().splitlines()]
    assert child.returncode == 0, f"died ({child.returncode}) at {lines[-1:]}"
    return lines


@pytest.mark.parametrize("first", [0, NUM_FILES])
@pytest.mark.parametrize("kind", BATCHES)
def test_broken_file_is_read_or_refused_in_short_lines(kind, first):
    lines = run_child("batch", kind, first, NUM_FILES)
    wrong = [line["wrong"] for line in lines if "wrong" in line]
    assert not wrong, "\n".join(map(str, wrong[:3])) + f"\n{len(wrong)} in all"
    counts = lines[-1]["counts"]
    assert counts["read"] > 200 and counts["refused"] > 1_000  # neither all harmless nor all hopeless


def claim_size(name: str, data: bytes, side: int) -> bytes:
    """The same file with `side` x `side` in its header."""
    changed = bytearray(data)
    if name.endswith(".png"):
        changed[16:24] = struct.pack(">II", side, side)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif name == "rgb.jpg":
        at = data.index(b"\xff\xc0\x00\x11\x08") + 5
        changed[at : at + 4] = struct.pack(">HH", side, side)
    elif name == "gif.jpg":
        changed[6:10] = struct.pack("<HH", side, side)
    elif name.endswith(".bmp"):
        changed[18:26] = struct.pack("<II", side, side)
    elif name == "lossless.webp":
        changed[21:25] = struct.pack("<I", (16_383 | 16_383 << 14))  # all it can hold
    elif name.endswith(".tif"):
        (start,) = struct.unpack("<I", data[4:8])
        (num,) = struct.unpack("<H", data[start : start + 2])
        for at in range(start + 2, start + 2 + 12 * num, 12):
            if struct.unpack("<H", data[at : at + 2])[0] in (256, 257):  # width, height
                changed[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(changed)


HUGE = ("rgb.png", "palette.png", "rgb.jpg", "gif.jpg", "rgb.bmp", "lossless.webp", "plain.tif", "deflate.tif")


def read_huge() -> None:
    """What the child process does: the refusals of huge photos, and by how much its memory grew."""
    with tempfile.TemporaryDirectory() as folder:
        for name in HUGE:
            path = Path(folder) / name
            path.write_bytes(PHOTOS[name])
            read_or_complain(read_whole_photo, path)  # the decoder is loaded
            path.write_bytes(claim_size(name, PHOTOS[name], 30_000))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            problems = []
            for read in (read_photo, read_mask, read_header):
                try:
                    read(path)
                except InputError as refusal:
                    problems += refusal.problems
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps({"name": name, "problems": problems, "grown": grown}))


def test_photo_that_claims_to_be_huge_is_refused_before_it_takes_any_memory():
    lines = run_child("huge", timeout=60)
    assert [line["name"] for line in lines] == list(HUGE)
    for line in lines:
        assert len(line["problems"]) == 3, line
        assert all("pixels" in problem for problem in line["problems"]), line
        assert line["grown"] < 20_000, line  # kB, of 900,000 at the least


if __name__ == "__main__":
    if sys.argv[1] == "batch":
        read_batch(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        read_huge()
