"""The same outline as every version of Labelme writes it, and what other programs and editors make of it."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.folder import list_pairs
from catseg.labelme import draw_mask, load_annotation

CAT = ("cat",)
WIDTH, HEIGHT = 40, 30
POINTS = [[10, 10], [19, 10], [19, 14], [10, 14]]  # 10 x 5 pixels


def encode_photo(color: str = "red", size: tuple[int, int] = (WIDTH, HEIGHT), form: str = "PNG", **options) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, form, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def write_photo(folder: Path, name: str = "cat.png", color: str = "red") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), color).save(folder / name)


def write_file(folder: Path, shapes: list, **keys) -> Path:
    path = folder / "cat.json"
    path.write_text(json.dumps({"shapes": shapes, "imagePath": "cat.png"} | keys), "utf-8")
    return path


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (pair,) = list_pairs(str(folder), CAT)
    return pair.read()


VERSIONS = {
    "3 with colours": {
        "flags": {},
        "shapes": [{"label": "cat", "line_color": None, "fill_color": [255, 0, 0, 128], "points": POINTS}],
        "lineColor": [0, 255, 0, 128],
        "fillColor": [255, 0, 0, 128],
        "imagePath": "cat.png",
        "imageData": encode_photo(),
    },
    "3.16": {
        "version": "3.16.7",
        "flags": {},
        "shapes": [
            {
                "label": "cat",
                "line_color": None,
                "fill_color": None,
                "points": POINTS,
                "shape_type": None,
                "flags": {"old": True},
            }
        ],
        "lineColor": [0, 255, 0, 128],
        "fillColor": [255, 0, 0, 128],
        "imagePath": "cat.png",
        "imageData": encode_photo(),
        "imageHeight": None,
        "imageWidth": None,
    },
    "4": {
        "version": "4.5.6",
        "flags": {},
        "shapes": [{"label": "cat", "points": POINTS, "group_id": None, "shape_type": "polygon", "flags": {}}],
        "imagePath": "cat.png",
        "imageData": encode_photo(form="JPEG", quality=95),
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    },
    "5": {
        "version": "5.4.1",
        "flags": {},
        "shapes": [
            {
                "label": "cat",
                "points": POINTS,
                "group_id": 3,
                "description": "a cat\nof two lines",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
        ],
        "imagePath": "cat.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    },
    "6": {
        "version": "6.3.1",
        "flags": {"indoors": False},
        "shapes": [
            {
                "label": "cat",
                "points": [[10.0, 10.0], [19.0, 14.0]],
                "group_id": None,
                "description": None,
                "shape_type": "rectangle",
                "flags": {},
                "mask": None,
            }
        ],
        "imagePath": "cat.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "model": "from another program",
    },
    "7": {
        "version": "7.1.0",
        "flags": {},
        "shapes": [
            {
                "label": "cat",
                "points": [[10.0, 10.0], [19.0, 10.0], [19.0, 14.0], [10.0, 14.0]],
                "group_id": None,
                "description": "",
                "shape_type": "oriented_rectangle",
                "flags": {},
                "mask": None,
                "score": 0.9,
            }
        ],
        "imagePath": "cat.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "checked": [1, {"two": None}],
    },
}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_says_the_same(tmp_path, version):
    write_photo(tmp_path)
    (tmp_path / "cat.json").write_text(json.dumps(VERSIONS[version], indent=2), "utf-8")
    photo, mask = read(tmp_path)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:15, 10:20] = 1
    np.testing.assert_array_equal(mask, expected)
    assert photo.shape == (HEIGHT, WIDTH, 3) and photo[..., 0].min() > 250 and photo[..., 1:].max() < 5


def test_keys_that_may_be_missing_are_not_missed(tmp_path):
    write_photo(tmp_path)
    write_file(tmp_path, [{"label": "cat", "points": POINTS}])
    annotation = load_annotation(tmp_path / "cat.json")
    assert (annotation.image_data, annotation.height, annotation.width) == (None, None, None)
    assert annotation.shapes[0].shape_type == "polygon" and annotation.shapes[0].group_id is None
    assert read(tmp_path)[1].sum() == 50


@pytest.mark.parametrize("keys", [{"imageHeight": HEIGHT}, {"imageWidth": WIDTH}])
def test_one_size_alone_is_compared(tmp_path, keys):
    path = write_file(tmp_path, [], **keys)
    assert draw_mask(load_annotation(path), HEIGHT, WIDTH, CAT).shape == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="outline it again"):
        draw_mask(load_annotation(path), HEIGHT + 1, WIDTH + 1, CAT)


@pytest.mark.parametrize("encode", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_file_saved_by_an_editor_is_read(tmp_path, encode, newline):
    write_photo(tmp_path)
    text = json.dumps(VERSIONS["5"], indent=2).replace("\n", newline)
    (tmp_path / "cat.json").write_bytes(text.encode(encode))
    assert read(tmp_path)[1].sum() == 50


@pytest.mark.parametrize("encode", ["utf-16", "utf-32-le"])
def test_file_in_another_encoding_is_refused(tmp_path, refusal, encode):
    path = tmp_path / "cat.json"
    path.write_bytes(json.dumps(VERSIONS["5"]).encode(encode))
    assert "not a JSON file" in refusal(load_annotation, path)


@pytest.mark.parametrize("name", ["sub\\cat.png", "sub/cat.png", ".\\sub\\cat.png", "sub\\..\\sub/cat.png"])
def test_photo_below_is_found_with_the_separators_of_either_system(tmp_path, name):
    write_photo(tmp_path, "sub/cat.png", "blue")
    write_file(tmp_path, [], imagePath=name)
    assert read(tmp_path)[0][0, 0].tolist() == [0, 0, 255]


def test_embedded_photo_needs_none_beside_it(tmp_path):
    write_file(tmp_path, [{"label": "cat", "points": POINTS}], imageData=encode_photo())
    photo, mask = read(tmp_path)
    assert photo[0, 0].tolist() == [255, 0, 0] and mask.sum() == 50


def test_embedded_photo_is_shown_and_the_one_beside_it_is_not(tmp_path):
    write_photo(tmp_path, color="blue")
    write_file(tmp_path, [], imageData=encode_photo("red"))
    assert read(tmp_path)[0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["/etc/passwd", "../../cat.png", "C:\\Users\\me\\other.jpg", "cat\0.png", "gone.jpg"])
def test_path_beside_an_embedded_photo_is_never_opened(tmp_path, name):
    write_file(tmp_path, [], imageData=encode_photo(), imagePath=name)
    assert read(tmp_path)[0].shape == (HEIGHT, WIDTH, 3)


def test_embedded_photo_is_not_turned(tmp_path):
    """Labelme writes it upright; where another program left an orientation in it, Labelme shows it as it lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write_file(tmp_path, [], imageData=encode_photo(form="JPEG", exif=exif), imageHeight=HEIGHT, imageWidth=WIDTH)
    assert read(tmp_path)[0].shape == (HEIGHT, WIDTH, 3)


def test_embedded_photo_of_another_size_than_said_is_refused(tmp_path, refusal):
    write_photo(tmp_path)
    path = write_file(tmp_path, [], imageData=encode_photo(size=(41, 30)), imageHeight=HEIGHT, imageWidth=WIDTH)
    line = refusal(read, tmp_path)
    assert line.startswith(f"{path}: ") and "40 x 30" in line and "41 x 30" in line


@pytest.mark.parametrize("break_at", [64, 76])
@pytest.mark.parametrize("newline", ["\n", "\r\n", " "])
def test_base64_may_have_line_breaks(tmp_path, break_at, newline):
    data = encode_photo()
    lines = newline.join(data[start : start + break_at] for start in range(0, len(data), break_at))
    write_file(tmp_path, [], imageData=lines + newline)
    assert read(tmp_path)[0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("not base64 !", "not base64"),
        ("猫", "not base64"),
        (encode_photo()[:-3], "not base64"),  # not a multiple of four
        ("=" * 8, "not base64"),
        ("", "cannot be decoded"),
        (base64.b64encode(b"no photo, a text").decode(), "neither JPEG, PNG nor another"),
        (base64.b64encode(base64.b64decode(encode_photo())[:40]).decode(), "cannot be decoded"),
        (5, "imageData is no text"),
        ([encode_photo()], "imageData is no text"),
        (False, "imageData is no text"),
    ],
)
def test_embedded_photo_that_is_none_is_refused(tmp_path, refusal, data, says):
    write_photo(tmp_path)  # the one beside it does not stand in
    path = write_file(tmp_path, [], imageData=data)
    line = refusal(read, tmp_path)
    assert line.startswith(f"{path}: ") and says in line and len(line) < 1_000


def test_embedded_photo_that_claims_to_be_huge_is_refused(tmp_path, refusal, png_bomb):
    write_file(tmp_path, [], imageData=base64.b64encode(png_bomb(30_000, 30_000)).decode())
    line = refusal(read, tmp_path)
    assert line.startswith(f"{tmp_path / 'cat.json'}: ") and "pixels" in line


def test_file_of_more_than_the_largest_photo_is_not_opened(tmp_path, refusal):
    path = tmp_path / "cat.json"
    with path.open("wb") as file:
        file.truncate(200_000_001)  # a hole: takes no room
    assert "over 200 MB" in refusal(load_annotation, path)


def test_every_problem_of_a_file_is_listed_at_once(tmp_path):
    path = write_file(
        tmp_path,
        [
            {"label": "cat", "points": POINTS[:2]},
            {"label": "cat", "points": POINTS},
            {"label": 5, "points": POINTS},
            {"label": "cat", "points": [[1, None], [2, 2], [3, 3]]},
            {"label": "cat", "points": POINTS, "group_id": "left"},
            {"label": "cat", "points": [[0, 0], [5, 5]], "shape_type": "mask"},
        ],
        imagePath="",
        imageData=5,
        imageHeight=-1,
        imageWidth="40",
    )
    with pytest.raises(ValueError) as caught:
        load_annotation(path)
    says = ["points, got 2", "no text `label`", "not a point", "group_id", "mask cannot be decoded"]
    says += ["imagePath", "imageData", "imageHeight is -1", "imageWidth is '40'"]
    assert [wanted in line for wanted, line in zip(says, caught.value.problems, strict=True)] == [True] * 9
    assert [line.split(":")[1].strip() for line in caught.value.problems[:5]] == [
        f"shapes[{index}]" for index in (0, 2, 3, 4, 5)
    ]


def test_every_unknown_label_is_listed_beside_the_wrong_size(tmp_path):
    shapes = [{"label": label, "points": POINTS} for label in ("kat", "cat", "dog", "")]
    path = write_file(tmp_path, shapes, imageHeight=1)
    with pytest.raises(ValueError) as caught:
        draw_mask(load_annotation(path), HEIGHT, WIDTH, CAT)
    size, kat, dog, empty = caught.value.problems
    assert "40 x 1" in size
    assert "shapes[0]: unknown label 'kat'" in kat and "shapes[2]" in dog and "shapes[3]: unknown label ''" in empty


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ({"label": LONG, "points": POINTS}, {}),
        ({"label": "cat", "points": POINTS, "shape_type": LONG}, {}),
        ({"label": "cat", "points": POINTS, "group_id": LONG}, {}),
        ({"label": "cat", "points": [LONG] * 3}, {}),
        ({"label": "cat", "points": [["long"] * 50_000] * 3}, {}),
        ({"label": "cat", "points": LONG}, {}),
        ({"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": LONG}, {}),
        ({"label": "cat", "points": POINTS}, {"imagePath": LONG}),
        ({"label": "cat", "points": POINTS}, {"imagePath": f"../{LONG}"}),
        ({"label": "cat", "points": POINTS}, {"imagePath": f"{'x' * 300}/cat.png"}),
        ({"label": "cat", "points": POINTS}, {"imagePath": f"{LONG}/cat.png"}),
        ({"label": "cat", "points": POINTS}, {"imageData": LONG + "!"}),
        ({"label": "cat", "points": POINTS}, {"imageHeight": LONG}),
        ({"label": "cat", "points": POINTS}, {"imageHeight": [LONG]}),
        ({"label": "cat", "points": POINTS}, {"imageWidth": 10**4_000}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_long_nonsense_gives_a_short_line(tmp_path, refusal, shape, keys):
    write_photo(tmp_path)
    write_file(tmp_path, [shape], **keys)
    assert len(refusal(read, tmp_path)) < 1_000
