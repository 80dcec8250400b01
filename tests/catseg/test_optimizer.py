"""The optimizer steps views of the network's memory: the same numbers as one that steps the parameters themselves."""

import pytest
import torch

from catseg.optimizer import BETAS, hand_over_gradients, list_views, make_optimizer, name_averages
from catseg.settings import TrainConfig, UNetConfig
from catseg.unet import make_unet

CONVOLUTIONS = torch.nn.Conv2d | torch.nn.ConvTranspose2d
RMSPROP = {"optimizer": "rmsprop", "momentum": 0.9}


def compute_loss(model):
    photo = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model(photo).square().mean()


def check_three_steps(ours, optimizer, theirs, reference, **tolerances):
    """Both networks take them, each by its own optimizer, and end with the same weights."""
    for _ in range(3):
        compute_loss(ours).backward()
        hand_over_gradients(ours, optimizer)
        optimizer.step()
        reference.zero_grad()
        compute_loss(theirs).backward()
        reference.step()
    for (key, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, **tolerances, msg=key)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weights_after_three_steps_equal_those_of_torchs_own_use(name):
    config = TrainConfig(lr=0.01, optimizer=name, weight_decay=0.1)
    ours, theirs = make_unet(UNetConfig(2), 0), make_unet(UNetConfig(2), 0)
    optimizer = make_optimizer(ours, config)
    make = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    reference = make(theirs.parameters(), 0.01, BETAS, weight_decay=0.0 if name == "adam" else 0.1)
    check_three_steps(ours, optimizer, theirs, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay_norms", [True, False])
@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_norms_and_biases_decay_only_where_they_are_to(name, decay_norms):
    """The reference groups the parameters by the kind of their module."""
    config = TrainConfig(lr=0.01, optimizer=name, weight_decay=0.5, momentum=0.9, decay_norms=decay_norms)
    ours, theirs = make_unet(UNetConfig(2), 0), make_unet(UNetConfig(2), 0)
    optimizer = make_optimizer(ours, config)
    assert all(view.is_contiguous() for view in list_views(optimizer))
    kernels = {id(module.weight) for module in theirs.modules() if isinstance(module, CONVOLUTIONS)}
    groups = [
        {"params": [p for p in theirs.parameters() if id(p) in kernels], "weight_decay": 0.5},
        {"params": [p for p in theirs.parameters() if id(p) not in kernels], "weight_decay": 0.5 * decay_norms},
    ]
    if name == "adamw":
        reference = torch.optim.AdamW(groups, 0.01, BETAS)
    else:
        reference = torch.optim.RMSprop(groups, 0.01, momentum=0.9)
    check_three_steps(ours, optimizer, theirs, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam"}, {"optimizer": "rmsprop"}, RMSPROP], ids=str)
def test_the_averages_that_it_keeps_are_those_that_are_named(settings):
    model, config = make_unet(UNetConfig(2), 0), TrainConfig(**settings)
    optimizer = make_optimizer(model, config)
    compute_loss(model).backward()
    hand_over_gradients(model, optimizer)
    optimizer.step()
    for view in list_views(optimizer):
        assert set(optimizer.state[view]) == {"step", *name_averages(config)}
        assert all(optimizer.state[view][name].shape == view.shape for name in name_averages(config))


def test_what_it_steps_is_contiguous_and_shares_the_networks_memory():
    model = make_unet(UNetConfig(2), 0)
    views = list_views(make_optimizer(model, TrainConfig()))
    assert all(view.is_contiguous() for view in views)
    assert [view.data_ptr() for view in views] == [parameter.data_ptr() for parameter in model.parameters()]


def test_gradients_are_handed_over_and_not_kept_twice():
    model = make_unet(UNetConfig(2), 0)
    optimizer = make_optimizer(model, TrainConfig())
    compute_loss(model).backward()
    hand_over_gradients(model, optimizer)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(view.grad is not None and view.grad.is_contiguous() for view in list_views(optimizer))
    optimizer.zero_grad()
    assert all(view.grad is None for view in list_views(optimizer))
