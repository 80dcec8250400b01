"""The network the tutorial draws, to the parameter and the FLOP, with batch norm that is trained."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from catseg.settings import STRIDE, UNetConfig, compute_forward_gflop, compute_num_parameters
from catseg.unet import UNet, count_parameters, make_unet


def make_photos(num: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand((num, 3, height, width), generator=torch.Generator().manual_seed(0))


def test_tutorials_network_has_7763041_parameters():
    assert count_parameters(make_unet(UNetConfig(init_features=32), seed=0)) == 7_763_041


def test_frozen_parameters_are_not_counted():
    model = make_unet(UNetConfig(2), seed=0)
    before = count_parameters(model)
    model.head.requires_grad_(False)
    assert count_parameters(model) == before - 3


def count_gflop(init_features: int, image_size: int) -> float:
    """torch's own count of one photo's forward pass; on the meta device nothing is computed."""
    with torch.device("meta"):
        model, photo_13SS = UNet(UNetConfig(init_features)).eval(), torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        model(photo_13SS)
    return counter.get_total_flops() / 1e9


def test_tutorials_network_costs_24_gflop_at_256_pixels():
    assert round(count_gflop(32, 256), 1) == 24.1
    assert round(compute_forward_gflop(32, 256), 1) == 24.1


@pytest.mark.parametrize(("init_features", "image_size"), [(1, 32), (8, 96), (16, 128), (24, 64), (32, 256)])
def test_formula_of_the_cost_equals_torchs_count(init_features, image_size):
    assert compute_forward_gflop(init_features, image_size) == pytest.approx(count_gflop(init_features, image_size))


@pytest.mark.parametrize(("init_features", "num_classes"), [(1, 1), (2, 1), (3, 7), (16, 2), (32, 1), (512, 254)])
def test_formula_of_the_parameters_equals_a_count_of_the_networks(init_features, num_classes):
    config = UNetConfig(init_features, num_classes)
    with torch.device("meta"):
        assert compute_num_parameters(config) == count_parameters(UNet(config))


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_logits_have_the_photos_height_and_width_and_one_channel_per_class(num_classes, rows, columns, num):
    with torch.device("meta"):
        model = UNet(UNetConfig(2, num_classes)).eval()
        logits_BKHW = model(torch.empty(num, 3, STRIDE * rows, STRIDE * columns))
    assert logits_BKHW.shape == (num, num_classes, STRIDE * rows, STRIDE * columns)


@pytest.mark.parametrize(("height", "width"), [(40, 32), (32, 40), (31, 32)])
def test_sides_that_cannot_be_halved_four_times_are_our_bug(height, width):
    with pytest.raises(AssertionError):
        make_unet(UNetConfig(1), seed=0)(make_photos(1, height, width))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"init_features": 0}, "init_features"),
        ({"init_features": 513}, "init_features"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 255}, "num_classes"),  # 255 is void
    ],
)
def test_impossible_network_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        UNetConfig(**settings)


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, same, other = (make_unet(UNetConfig(4), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_making_a_network_leaves_the_global_generator_alone_and_does_not_read_it():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make_unet(UNetConfig(4), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(first.head.weight, make_unet(UNetConfig(4), seed=1).head.weight)


def test_logits_are_not_squashed():
    model = make_unet(UNetConfig(2), seed=0).eval()
    with torch.inference_mode():
        model.head.bias.fill_(-30.0)
        assert model(make_photos()).max() < -20
        model.head.bias.fill_(30.0)
        assert model(make_photos()).min() > 20


def test_every_parameter_gets_a_gradient():
    model = make_unet(UNetConfig(4, num_classes=2), seed=0)
    model(make_photos()).square().sum().backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    # a bias before batch norm is taken out by it again, up to rounding: it need not move
    assert [name for name in still if not name.startswith("upsamplers")] == []


def test_batch_norm_is_registered_and_trained():
    model = make_unet(UNetConfig(4), seed=0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 * 9  # two in each of nine blocks
    registered = {id(parameter) for parameter in model.parameters()}
    assert all(id(norm.weight) in registered and id(norm.bias) in registered for norm in norms)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(make_photos()).square().mean().backward()
    optimizer.step()
    for norm in norms:
        assert torch.any(norm.weight != 1)
        assert torch.any(norm.running_mean != 0)
        assert norm.num_batches_tracked == 1


def test_in_eval_mode_a_photo_does_not_depend_on_the_others_in_its_batch():
    model, photos = make_unet(UNetConfig(4), seed=0), make_photos(3)
    model(photos)  # statistics that are not the initial ones
    model.eval()
    with torch.inference_mode():
        together, alone = model(photos)[:1], model(photos[:1])
        brighter = torch.cat((photos[:1], photos[1:] + 5))
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(model(brighter)[:1], alone, atol=1e-5)


def test_in_training_mode_it_does():
    model, photos = make_unet(UNetConfig(4), seed=0), make_photos(3)
    brighter = torch.cat((photos[:1], photos[1:] + 5))
    with torch.no_grad():
        assert (model(photos)[:1] - model(brighter)[:1]).abs().max() > 1e-3


def test_eval_mode_does_not_move_the_running_statistics():
    model = make_unet(UNetConfig(2), seed=0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        model(make_photos())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_skips_carry_what_the_bottleneck_cannot():
    """With nothing coming up from below, a single pixel still changes its own logit."""
    model = make_unet(UNetConfig(4), seed=0).eval()
    photos = make_photos(1)
    touched = photos.clone()
    touched[0, :, 9, 21] += 1
    with torch.inference_mode():
        for upsampler in model.upsamplers:
            upsampler.weight.zero_()
        change = (model(touched) - model(photos)).abs()[0, 0]
    assert change[9, 21] > 1e-4
    assert change[:, 40:].max() == 0  # and none that is far away
