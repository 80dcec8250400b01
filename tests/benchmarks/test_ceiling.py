"""A ceiling counts what it should, and the least time follows from it as it does by hand."""

import pytest
import torch

from catseg.settings import UNetConfig, compute_forward_gflop
from catseg.unet import make_unet
from tests.benchmarks import ceiling as room
from tests.benchmarks.ceiling import Ceiling, measure_ceiling, search_algorithms
from tests.benchmarks.roofline import compute_roofline_seconds, list_layers

CPU = torch.device("cpu")
H200 = Ceiling(989e3, 989e3, 4800)  # bfloat16, of the data sheet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_ceiling_is_measured(monkeypatch, dtype):
    monkeypatch.setattr(room, "CPU", room.Sizes(128, 1, 16, 2**20))
    monkeypatch.setattr(room, "TOTAL_SECONDS", 0.05)
    ceiling = measure_ceiling(CPU, dtype)
    assert min(vars(ceiling).values()) > 0.01


def test_a_ceiling_counts_a_multiply_add_as_two_and_a_byte_copied_as_two(monkeypatch):
    monkeypatch.setattr(room, "CPU", room.Sizes(64, 2, 16, 2**20))
    called = []

    def take_half_a_second(work, device):
        called.append(work())
        return 0.5

    monkeypatch.setattr(room, "_measure_seconds", take_half_a_second)
    ceiling = measure_ceiling(CPU, torch.float32)
    assert ceiling.matmul_gflop_per_second == pytest.approx(2 * 64**3 / 0.5 / 1e9)
    assert ceiling.convolution_gflop_per_second == pytest.approx(2 * 9 * 256**2 * (2 * 16 * 16) / 0.5 / 1e9)
    assert ceiling.copy_gb_per_second == pytest.approx((4 + 4) * 2**20 / 0.5 / 1e9)
    product, convolved, copy = called
    assert product.shape == (64, 64) and convolved.shape == (2, 256, 16, 16) and copy.numel() == 2**20
    assert convolved.is_contiguous(memory_format=torch.channels_last) and not convolved.requires_grad


def test_the_search_for_algorithms_is_on_within_and_as_before_after():
    before = torch.backends.cudnn.benchmark
    with search_algorithms():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize(("init_features", "image_size"), [(8, 64), (16, 128), (32, 256)])
def test_the_layers_are_those_of_the_network(init_features, image_size):
    layers = list(list_layers(init_features, image_size))
    kernels = [weight.numel() for weight in make_unet(UNetConfig(init_features), 0).parameters() if weight.dim() == 4]
    assert sorted(layer.num_weights for layer in layers) == sorted(kernels)
    assert sum(layer.flop for layer in layers) == pytest.approx(1e9 * compute_forward_gflop(init_features, image_size))
    assert sum(layer.has_norm for layer in layers) == 18


@pytest.mark.parametrize(("init_features", "train", "inference"), [(16, 32, 59), (32, 52, 84), (64, 70, 95)])
def test_the_shares_of_an_h200_that_can_be_reached(init_features, train, inference):
    """Per cent of its bfloat16 peak at 256 px and a large batch, within one."""
    batch_size = 1024
    for training, share in ((True, train), (False, inference)):
        seconds = compute_roofline_seconds(init_features, 256, batch_size, H200, 2, training)
        gflop = (3 if training else 1) * batch_size * compute_forward_gflop(init_features, 256)
        assert 100 * gflop / seconds / H200.matmul_gflop_per_second == pytest.approx(share, abs=1)


def test_the_least_time_of_a_device_that_only_computes_is_its_flops_and_of_one_that_only_copies_its_bytes():
    only_computes, only_copies = Ceiling(1e3, 1e3, 1e12), Ceiling(1e12, 1e12, 1e3)
    assert compute_roofline_seconds(8, 64, 4, only_computes, 4, training=True) == pytest.approx(
        3 * 4 * compute_forward_gflop(8, 64) / 1e3, rel=1e-3
    )
    layers = list(list_layers(8, 64))
    num_bytes = sum(4 * (4 * (layer.num_in + layer.num_out) + layer.num_weights) for layer in layers)
    norm_bytes = sum(4 * 4 * layer.num_out for layer in layers if layer.has_norm)
    inference, step = (compute_roofline_seconds(8, 64, 4, only_copies, 4, training) for training in (False, True))
    assert inference == pytest.approx(num_bytes / 1e12, rel=1e-3)
    assert step == pytest.approx((3 * num_bytes + 8 * norm_bytes) / 1e12, rel=1e-3)
