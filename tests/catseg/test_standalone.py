"""The script that goes along with a model does what our own rooms do, to the pixel."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import catseg.standalone
from catseg.checkpoint import ModelCard
from catseg.inference import Predictor
from catseg.photo import PALETTE, fit_photo, read_photo
from catseg.predict import predict
from catseg.settings import UNetConfig
from catseg.standalone import make_palette, resize_linear
from catseg.standalone import predict as predict_alone
from catseg.standalone import read_photo as read_alone

RNG = np.random.default_rng(0)


def test_the_colours_are_ours():
    assert make_palette() == PALETTE


@pytest.mark.parametrize(
    ("before", "after"), [((7, 9), (50, 63)), ((50, 60), (13, 7)), ((1, 1), (4, 5)), ((8, 3), (1, 1))]
)
def test_scaling_is_torchs(before, after):
    values = RNG.normal(size=(2, *before)).astype(np.float32)
    expected = F.interpolate(torch.tensor(values)[None], after, mode="bilinear", align_corners=False)[0].numpy()
    assert np.abs(resize_linear(values, *after) - expected).max() < 2e-5


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_is_read_as_ours_is(tmp_path, mode, orientation):
    image = Image.fromarray(RNG.integers(0, 256, (20, 30, 4), np.uint8), "RGBA")
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    assert np.array_equal(np.asarray(read_alone(path)), read_photo(path))


def test_more_than_eight_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SystemExit, match=r"deep\.png: more than 8 bits"):
        read_alone(tmp_path / "deep.png")


class Colours(torch.nn.Module):
    """A logit for red and one for green, sharp enough to leave nothing to rounding."""

    def forward(self, photo_B3HW):
        return 20 * (photo_B3HW[:, :2] - 0.5)


class Session:
    """The same as onnxruntime has it; keeps what it was fed."""

    def run(self, outputs, feeds):
        assert outputs == ["logits_BKHW"]
        (self.photo_1SS3,) = feeds.values()
        return [Colours()(torch.tensor(self.photo_1SS3).permute(0, 3, 1, 2).float() / 255).numpy()]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 17), (64, 64), (100, 257), (200, 3)])
def test_fitting_classes_and_restoring_are_ours(height, width):
    photo_HW3 = RNG.integers(0, 256, (height, width, 3), np.uint8)
    session, card = Session(), ModelCard(UNetConfig(2, 2), ("a", "b"), 64, 1)
    labels_HW = predict_alone(session, Image.fromarray(photo_HW3), 64)
    assert np.array_equal(session.photo_1SS3[0], fit_photo(photo_HW3, 64))
    expected = predict(Predictor(Colours(), torch.float32, torch.device("cpu")), card, photo_HW3)
    assert labels_HW.dtype == np.uint8
    assert (labels_HW != expected).mean() <= 50e-6
    assert height * width < 100 or len(np.unique(expected)) == 3


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "a.webp"), ("a.jpg", "a_overlay.jpg"), ("a.png",)])
def test_nothing_is_written_over_a_photo_or_over_another_photos_mask(tmp_path, monkeypatch, names):
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 64, "classes": ["a", "b"]}))
    monkeypatch.setattr(catseg.standalone, "HERE", tmp_path)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: Session())
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in names:
        Image.fromarray(RNG.integers(0, 256, (8, 9, 3), np.uint8)).save(photos / name)
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    monkeypatch.setattr(sys, "argv", ["predict.py", str(photos), "--out", str(photos)])
    with pytest.raises(SystemExit, match="would overwrite"):
        catseg.standalone.main()
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


def test_a_mask_and_an_overlay_of_each_photo_are_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 64, "classes": ["a", "b"]}))
    monkeypatch.setattr(catseg.standalone, "HERE", tmp_path)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: Session())
    for name in ("one.jpg", "two.png"):
        Image.new("RGB", (9, 8), "red").save(tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["predict.py", str(tmp_path), "--out", str(tmp_path / "out")])
    catseg.standalone.main()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one.png", "one_overlay.png", "two.png", "two_overlay.png"
    ]  # fmt: skip
    assert capsys.readouterr().out.count(" of it -> ") == 2
