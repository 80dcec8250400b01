"""Scores of files: what differs is counted, what loses too much is told."""

import numpy as np
import pytest
import torch

from bench.certificate import Score, find_losses, format_per_photo, format_scores, score_photos
from catseg.dataset import PhotoSet
from catseg.inference import Predictor

CPU = torch.device("cpu")


class Reds(torch.nn.Module):
    """Calls red pixels cats, all but those of the first `num_missed` columns."""

    def __init__(self, num_missed):
        super().__init__()
        self.num_missed = num_missed

    def forward(self, photo_B3HW):
        logits_B1HW = 4 * (photo_B3HW[:, :1] - 0.5)
        logits_B1HW[..., : self.num_missed] = -2
        return logits_B1HW


@pytest.fixture
def photos():
    """Six photos of 32 x 16, fitted into 32 x 32, red all over, of which all is cat; beyond them nothing is."""
    photo_NSS3 = np.zeros((6, 32, 32, 3), np.uint8)
    photo_NSS3[:, :, :16, 0] = 255
    masks = tuple(np.ones((32, 16), np.uint8) for _ in range(6))
    used_N2 = np.tile([32, 16], (6, 1))
    return PhotoSet(tuple(f"p{i}" for i in range(6)), photo_NSS3, np.zeros((6, 32, 32), np.uint8), masks, (), used_N2)


@pytest.fixture
def scores(photos):
    scores = {}
    missed = {"torch": 0, "onnx": 0, "int8": 1}
    predictors = {name: Predictor(Reds(num), torch.float32, CPU) for name, num in missed.items()}
    assert sum(1 for _ in score_photos(predictors, photos, scores)) == 6
    return scores


def test_pixels_that_differ_are_counted_at_the_photos_size(scores):
    assert [score.num_pixels for score in scores.values()] == [6 * 32 * 16] * 3
    assert scores["onnx"].disagreement_ppm == 0 == scores["onnx"].max_difference
    assert scores["int8"].disagreement_ppm == pytest.approx(1e6 / 16)
    sigmoid = 1 / (1 + np.exp(-2))
    assert scores["int8"].max_difference == pytest.approx(sigmoid - (1 - sigmoid), abs=1e-6)
    assert (scores["torch"].miou, scores["int8"].miou) == (1, pytest.approx(15 / 16))


def make_score(hits):
    """Of 100,000 pixels."""
    return Score([np.array([[hits, 0, 100_000 - hits]])], 0.0, 0, 100_000)


@pytest.mark.parametrize(
    ("runtime", "hits", "is_told"),
    [
        ("onnx", 79_960, False),
        ("onnx", 79_940, True),
        ("openvino", 79_940, True),
        ("onnx", 90_000, False),
        ("int8", 79_510, False),
        ("int8", 79_490, True),
        ("openvino-bfloat16", 79_510, False),
    ],
)
def test_a_loss_beyond_the_limit_of_its_precision_is_told(runtime, hits, is_told):
    losses = find_losses({"torch": make_score(80_000), runtime: make_score(hits)})
    assert list(losses) == ([runtime] if is_told else [])


def test_the_words_hold_every_runtime_and_a_line_for_each_photo(scores, photos):
    words = format_scores(scores)
    assert words["int8"]["loses"] == pytest.approx(1 / 16)
    assert (words["int8"]["file"], words["int8"]["may_lose"]) == ("model.int8.onnx", 0.005)
    lines = format_per_photo(scores, photos, ("cat",)).decode().splitlines()
    assert len(lines) == 1 + 3 * 6
    assert "int8,p0,cat,480,0,32" in lines
