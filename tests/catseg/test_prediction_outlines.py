"""Predictions as Labelme files to be corrected, and how sure a network is of what it predicts."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from catseg.checkpoint import ModelCard
from catseg.errors import InputError
from catseg.folder import list_pairs
from catseg.inference import Predictor, make_predictor
from catseg.labelme import load_labels
from catseg.photo import read_photo
from catseg.predict import estimate_iou, list_photos, predict, write_predictions
from catseg.settings import UNetConfig

CPU = torch.device("cpu")
CARD = ModelCard(UNetConfig(2), ("cat",), image_size=32, epoch=1)
TWO = ModelCard(UNetConfig(2, num_classes=2), ("猫", "dog"), image_size=32, epoch=1)


class Fixed(torch.nn.Module):
    """A network that answers the same to every photo."""

    def __init__(self, logits_KSS: torch.Tensor) -> None:
        super().__init__()
        self.logits_KSS = logits_KSS

    def forward(self, photo_B3HW: torch.Tensor) -> torch.Tensor:
        return self.logits_KSS.expand(len(photo_B3HW), *self.logits_KSS.shape)


def make_blob_model(num_classes: int = 1) -> Fixed:
    """Discs, one for each class, whatever the photo shows."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return Fixed(torch.stack([7 - torch.hypot(y - 8 - 9 * k, x - 9 - 9 * k) for k in range(num_classes)]))


def write_photo(path: Path, height: int = 300, width: int = 400, mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, (width, height))
    ImageDraw.Draw(image).ellipse((40, 30, 190, 120), fill="white")
    image.save(path, **options)
    return path


def run(photos: list[Path], out: Path, card: ModelCard = CARD, model: torch.nn.Module | None = None) -> list:
    model = model or make_blob_model(len(card.classes))
    return list(write_predictions(model, card, photos, out, CPU, labelme=True))


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def compute_iou(first: np.ndarray, second: np.ndarray) -> float:
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- outlines ------------------------------------------------------------------------------------------------------


def test_photo_outlines_and_labels_lie_together_apart_from_the_masks(tmp_path):
    photos = [write_photo(tmp_path / "in" / name) for name in ("a.jpg", "b.v2.png")]
    done = run(photos, tmp_path / "out")
    assert list_files(tmp_path / "out") == [
        "a.png",
        "a_overlay.png",
        "b.v2.png",
        "b.v2_overlay.png",
        "labelme/a.jpg",
        "labelme/a.json",
        "labelme/b.v2.json",
        "labelme/b.v2.png",
        "labelme/labels.txt",
    ]
    assert [one.annotation_path for one in done] == [tmp_path / f"out/labelme/{name}.json" for name in ("a", "b.v2")]
    for photo in photos:
        assert (tmp_path / "out/labelme" / photo.name).read_bytes() == photo.read_bytes()


def test_without_being_asked_for_there_are_no_outlines(tmp_path):
    photo = write_photo(tmp_path / "a.jpg")
    (done,) = write_predictions(make_blob_model(), CARD, [photo], tmp_path / "out", CPU)
    assert done.annotation_path is None
    assert list_files(tmp_path / "out") == ["a.png", "a_overlay.png"]


@pytest.mark.parametrize("card", [CARD, TWO], ids=["one class", "two classes"])
def test_outlines_drawn_by_labelmes_rules_are_the_mask_but_for_a_hundredth(tmp_path, card):
    run([write_photo(tmp_path / "a.jpg")], tmp_path / "out", card)
    labels, mask = load_labels(tmp_path / "out/labelme/labels.txt"), read_mask(tmp_path / "out/a.png")
    assert labels == card.classes
    ((photo, drawn),) = (pair.read() for pair in list_pairs(str(tmp_path / "out/labelme"), labels))
    np.testing.assert_array_equal(photo, read_photo(tmp_path / "a.jpg"))
    assert set(np.unique(mask)) == set(range(len(card.classes) + 1))
    for label in range(1, len(card.classes) + 1):
        assert compute_iou(mask == label, drawn == label) >= 0.99


def test_photo_on_which_nothing_is_found_has_a_file_without_shapes(tmp_path):
    run([write_photo(tmp_path / "a.jpg")], tmp_path / "out", model=Fixed(torch.full((1, 32, 32), -5.0)))
    assert json.loads((tmp_path / "out/labelme/a.json").read_text())["shapes"] == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_outlines_of_a_photo_that_exif_turns_fit_the_photo_as_it_is_shown(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = write_photo(tmp_path / "a.jpg", exif=exif)
    run([photo], tmp_path / "out")
    assert (tmp_path / "out/labelme/a.jpg").read_bytes() == photo.read_bytes()  # tag and all: Labelme turns it
    ((shown, drawn),) = (pair.read() for pair in list_pairs(str(tmp_path / "out/labelme"), CARD.classes))
    assert shown.shape == ((300, 400, 3) if orientation < 5 else (400, 300, 3))
    assert compute_iou(read_mask(tmp_path / "out/a.png") == 1, drawn == 1) >= 0.99


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P"])
def test_outlines_of_a_photo_of_any_mode_fit_it(tmp_path, mode):
    photo = tmp_path / "a.png"
    Image.new(mode, (400, 300)).save(photo)
    run([photo], tmp_path / "out")
    assert (tmp_path / "out/labelme/a.png").read_bytes() == photo.read_bytes()
    ((_, drawn),) = (pair.read() for pair in list_pairs(str(tmp_path / "out/labelme"), CARD.classes))
    assert compute_iou(read_mask(tmp_path / "out/a.png") == 1, drawn == 1) >= 0.99


def test_outlines_that_were_perhaps_corrected_are_never_overwritten(tmp_path, refusal):
    photos = [write_photo(tmp_path / "in" / name) for name in ("a.jpg", "b.jpg")]
    run(photos[1:], tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in list_files(tmp_path / "out")}
    line = refusal(run, photos, tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'out/labelme/b.json'}: is there already") and "--out" in line
    assert {name: (tmp_path / "out" / name).read_bytes() for name in list_files(tmp_path / "out")} == before
    run(photos[:1], tmp_path / "out")  # the other one may come beside it
    assert (tmp_path / "out/labelme/b.json").read_bytes() == before["labelme/b.json"]


@pytest.mark.parametrize("name", ["out/labelme/a.jpg", "out/a.png", "out/a_overlay.png"])
def test_photo_that_an_output_would_overwrite_is_refused_before_anything_is_written(tmp_path, refusal, name):
    photos = [write_photo(tmp_path / "in/a.jpg"), write_photo(tmp_path / name)]
    photos = photos[1:] if name.endswith("a.jpg") else photos
    before = list_files(tmp_path)
    assert "would overwrite a photo" in refusal(run, photos, tmp_path / "out")
    assert list_files(tmp_path) == before


def test_two_photos_whose_outlines_would_have_one_name_are_refused(tmp_path, refusal):
    photos = [write_photo(tmp_path / name) for name in ("a.jpg", "a.png")]
    assert "is also that of" in refusal(run, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_photo_gets_no_outlines_and_is_listed_after_the_others_were_done(tmp_path):
    photos = [tmp_path / "gone.jpg", write_photo(tmp_path / "a.jpg")]
    with pytest.raises(InputError) as caught:
        run(photos, tmp_path / "out")
    (line,) = caught.value.problems
    assert "gone.jpg" in line
    assert "labelme/a.json" in list_files(tmp_path / "out")
    assert "labelme/gone.json" not in list_files(tmp_path / "out")


@pytest.mark.parametrize("there", ["out", "out/labelme", "out/labelme/labels.txt/x"])
def test_place_for_outlines_that_is_none_is_refused(tmp_path, refusal, there):
    photo = write_photo(tmp_path / "a.jpg")
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert "cannot be made" in refusal(run, [photo], tmp_path / "out")


def test_labels_that_the_user_added_are_kept(tmp_path):
    photos = [write_photo(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    run(photos[:1], tmp_path / "out")
    labels = tmp_path / "out/labelme/labels.txt"
    labels.write_text(labels.read_text() + "dog\n")
    run(photos[1:], tmp_path / "out")
    assert labels.read_text().endswith("dog\n")


def test_another_photo_of_the_name_is_not_replaced_by_the_copy(tmp_path, refusal):
    photo, other = write_photo(tmp_path / "a.jpg"), tmp_path / "out/labelme/a.jpg"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"not outlined yet")
    assert "is there already, another than" in refusal(run, [photo], tmp_path / "out")
    assert other.read_bytes() == b"not outlined yet"


def test_photo_that_is_gone_is_said_to_be_gone_though_its_copy_is_there(tmp_path):
    (tmp_path / "out/labelme").mkdir(parents=True)
    (tmp_path / "out/labelme/gone.jpg").touch()
    with pytest.raises(InputError, match=r"gone\.jpg: no such file"):
        run([tmp_path / "gone.jpg"], tmp_path / "out")


def test_name_that_is_no_unicode_survives(tmp_path):
    photo = write_photo(tmp_path / os.fsdecode(b"c\xff.png"))
    run([photo], tmp_path / "out")
    (pair,) = list_pairs(str(tmp_path / "out/labelme"), CARD.classes)
    assert pair.read()[0].shape[2] == 3


# --- how sure ------------------------------------------------------------------------------------------------------


def make_fixed(logits_KSS: torch.Tensor) -> Predictor:
    return make_predictor(Fixed(logits_KSS), "float32", CPU)


def estimate(logits_KSS: torch.Tensor, height: int = 32, width: int = 32, card: ModelCard = CARD) -> float:
    return estimate_iou(make_fixed(logits_KSS), card, np.zeros((height, width, 3), np.uint8))


def test_expected_iou_is_counted_by_hand():
    """512 pixels of a photo of 16 x 32: 256 at 3/4, which are predicted, 256 at 1/4; below it no photo is."""
    logits = torch.full((1, 32, 32), -math.log(3))
    logits[:, :, :16] = math.log(3)
    logits[:, 16:] = 50
    smoothing = 0.001 * 512
    assert estimate(logits, 16, 32) == pytest.approx((192 + smoothing) / (256 + 64 + smoothing))
    assert estimate(logits, 160, 320) == estimate(logits, 16, 32)


def test_expected_iou_is_the_mean_over_the_classes():
    """The first as above, the second a little likely on half the photo and never the likelier."""
    logits = torch.stack([torch.full((32, 32), -math.log(3)), torch.full((32, 32), -60.0)])
    logits[0, :, :16] = math.log(3)
    logits[1, :16] = -math.log(9)  # 1/10
    smoothing = 0.001 * 1024
    first = (384 + smoothing) / (512 + 128 + smoothing)
    second = smoothing / (51.2 + smoothing)
    assert estimate(logits, card=TWO) == pytest.approx((first + second) / 2)


def test_pixel_of_two_classes_is_the_likelier_ones():
    """The first is predicted everywhere; the second, nearly as likely, nowhere."""
    logits = torch.stack([torch.full((32, 32), math.log(3)), torch.full((32, 32), math.log(2))])
    smoothing = 0.001
    expected = ((0.75 + smoothing) / (1 + smoothing) + smoothing / (2 / 3 + smoothing)) / 2
    assert estimate(logits, card=TWO) == pytest.approx(expected, rel=1e-5)


def test_sure_network_expects_1_whatever_it_predicts():
    cat = torch.full((1, 32, 32), -40.0)
    assert estimate(cat) == pytest.approx(1)  # nothing there
    cat[:, 5:20, 3:9] = 40
    assert estimate(cat) == pytest.approx(1)


def test_network_that_tosses_a_coin_expects_little():
    generator = torch.Generator().manual_seed(0)
    assert estimate(torch.randn(1, 32, 32, generator=generator) * 0.01) == pytest.approx(1 / 3, abs=0.02)
    assert estimate(torch.zeros(1, 32, 32)) < 0.01


def test_few_doubtful_pixels_on_an_empty_photo_are_no_doubt_and_many_are():
    few, many = torch.full((1, 32, 32), -20.0), torch.full((1, 32, 32), -20.0)
    few[:, 3, 3] = many[:, 3:20, 3:20] = -1
    assert estimate(few) > 0.7
    assert estimate(many) < 0.1


@given(st.integers(0, 10**6), st.integers(1, 2), st.floats(0, 100), st.integers(1, 70), st.integers(1, 70))
def test_expected_iou_is_a_share(seed, num_classes, scale, height, width):
    logits = torch.randn(num_classes, 32, 32, generator=torch.Generator().manual_seed(seed)) * scale
    assert 0 <= estimate(logits, height, width, (CARD, TWO)[num_classes - 1]) <= 1 + 1e-6


def test_more_certain_logits_are_expected_to_score_higher():
    logits = make_blob_model().logits_KSS
    values = [estimate(logits * factor) for factor in (0.1, 0.3, 1, 3, 10)]
    assert values == sorted(values)
    assert all(
        (predict(make_fixed(logits * factor), CARD, np.zeros((32, 32, 3), np.uint8)) == 1).any() for factor in (0.1, 10)
    )


# --- photos --------------------------------------------------------------------------------------------------------


def test_folder_is_the_photos_in_it_sorted_and_a_file_is_itself(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.webp"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "deeper").mkdir()
    single = tmp_path / "single.gif"
    names = [path.name for path in list_photos([single, tmp_path / "in"])]
    assert names == ["single.gif", "a.png", "b.JPG", "c.webp"]


def test_folder_without_photos_is_refused(tmp_path, refusal):
    (tmp_path / "notes.txt").touch()
    assert refusal(list_photos, [tmp_path]).startswith(f"{tmp_path}: no photos")
