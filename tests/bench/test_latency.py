"""Speeds of networks: in turn, warmed up, beside the plain network, and told when they say little."""

import numpy as np
import pytest
import torch

from bench.latency import PLAIN, ROUNDS, Speed, format_speeds, is_noisy, make_plain, measure_speeds
from catseg.inference import Predictor, compute_logits, make_predictor
from catseg.settings import UNetConfig
from catseg.unet import make_unet

CPU = torch.device("cpu")


class Called(torch.nn.Module):
    """Remembers that it was called."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, photo_B3HW):
        self.calls.append((self.name, len(photo_B3HW)))
        return photo_B3HW[:, :1]


@pytest.fixture
def photo_NSS3():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def test_each_is_timed_alone_and_in_batches_and_first_equally_often(photo_NSS3):
    calls = []
    names = ["torch", "onnx", PLAIN]
    speeds = measure_speeds({name: Predictor(Called(name, calls), torch.float32, CPU) for name in names}, photo_NSS3)
    assert list(speeds) == names
    rounds = [calls[start : start + 6] for start in range(0, len(calls), 6)]
    assert len(rounds) == ROUNDS + 1
    assert [turn[0][0] for turn in rounds[:4]] == ["torch", "onnx", PLAIN, "torch"]
    for turn in rounds:
        assert sorted(turn) == sorted((name, size) for name in names for size in (1, 8))  # of 3 photos, 8 are made


def test_the_plain_network_computes_the_same_and_leaves_the_model_alone(photo_NSS3):
    model = make_unet(UNetConfig(init_features=4), seed=0)
    photo_BSS3 = torch.tensor(photo_NSS3)
    mine, plain = (compute_logits(p, photo_BSS3) for p in (make_predictor(model, "float32", CPU), make_plain(model)))
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    assert model.training
    assert model.head.weight.is_contiguous(memory_format=torch.channels_last)


QUIET = Speed(10.0, 9.0, 12.0, 100.0)


@pytest.mark.parametrize(
    ("speed", "says"), [(QUIET, False), (Speed(10, 9, 21, 100), True), (Speed(10, 4, 12, 100), True)]
)
def test_a_round_of_twice_the_median_says_that_the_machine_was_busy(speed, says):
    assert is_noisy({"torch": QUIET, "onnx": speed}) is says


def test_the_words_say_how_many_times_as_fast_as_plain():
    words = format_speeds({"onnx": QUIET, PLAIN: Speed(25.0, 24.0, 26.0, 40.0)}, {"cpu": "some"})
    assert words["speeds"]["onnx"]["times_as_fast_as_plain"] == 2.5
    assert (words["machine_was_busy"], words["environment"]) == (False, {"cpu": "some"})
