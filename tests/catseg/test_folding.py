"""A network without its batch norms says what it said with them, and the network itself is left alone."""

import pytest
import torch
from torch import nn

from catseg.device import autocast
from catseg.folding import fold_batch_norm
from catseg.inference import compute_logits, make_predictor, to_input
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import train
from catseg.unet import UNet, make_unet

CPU = torch.device("cpu")


def make_trained_looking(num_classes: int = 1, init_features: int = 4) -> UNet:
    """A U-Net whose batch norms have statistics, factors and summands of all sizes, as after a training."""
    model, generator = make_unet(UNetConfig(init_features, num_classes), seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.1, 4, generator=generator)
                module.weight.normal_(1, 0.5, generator=generator)
                module.bias.normal_(generator=generator)
    return model


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80)])
def test_folded_network_gives_the_same_logits(num_classes, height, width):
    model = make_trained_looking(num_classes)
    photo_B3HW = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    folded = fold_batch_norm(model)
    with torch.inference_mode():
        expected = model.eval()(photo_B3HW)
        torch.testing.assert_close(folded(photo_B3HW), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert expected.std() > 0.01  # and not because there was nothing to see


def test_folded_network_has_no_batch_norm_and_no_gradient_and_is_channels_last_still():
    folded = fold_batch_norm(make_trained_looking())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    for parameter in folded.parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)


def test_network_that_was_folded_is_as_it_was_in_training_mode_and_all():
    model = make_trained_looking().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in fold_batch_norm(model).parameters():
            parameter.zero_()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_network_without_batch_norm_is_folded_into_itself():
    convolution = nn.Conv2d(3, 1, 1)
    assert torch.equal(fold_batch_norm(convolution).weight, convolution.weight)


def test_batch_norm_that_follows_no_convolution_is_not_dropped():
    with pytest.raises(AssertionError, match="after no convolution"):
        fold_batch_norm(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("num_classes", [1, 2])
def test_half_the_bits_err_no_more_than_autocast_does(make_set, num_classes):
    """Weights cast once and batch norm folded in must cost no accuracy beside what training's own precision costs."""
    photos, model = make_set(12), make_unet(UNetConfig(8, num_classes), seed=0)
    list(train(model, photos, photos, TrainConfig(lr=0.01, image_size=32, epochs=8, batch_size=4), CPU))
    photo_NSS3 = torch.tensor(photos.photo_NSS3)
    with torch.inference_mode():
        exact = model.eval()(to_input(photo_NSS3, CPU))
        with autocast(CPU, torch.bfloat16):
            cast = model(to_input(photo_NSS3, CPU)).float()
    rounded = compute_logits(make_predictor(model, "bfloat16", CPU), photo_NSS3)
    assert (rounded - exact).norm() <= 1.25 * (cast - exact).norm()
