"""The optimizer steps views of the network's memory: the same numbers as one that steps the parameters themselves."""

import pytest
import torch

from catseg.optimizer import BETAS, hand_over_gradients, list_views, make_optimizer
from catseg.settings import TrainConfig, UNetConfig
from catseg.unet import make_unet


def compute_loss(model):
    photo = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model(photo).square().mean()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weights_after_three_steps_equal_those_of_torchs_own_use(name):
    config = TrainConfig(lr=0.01, optimizer=name, weight_decay=0.1)
    ours, theirs = make_unet(UNetConfig(2), 0), make_unet(UNetConfig(2), 0)
    optimizer = make_optimizer(ours, config)
    make = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    reference = make(theirs.parameters(), 0.01, BETAS, weight_decay=0.0 if name == "adam" else 0.1)
    for _ in range(3):
        compute_loss(ours).backward()
        hand_over_gradients(ours, optimizer)
        optimizer.step()
        reference.zero_grad()
        compute_loss(theirs).backward()
        reference.step()
    for (key, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=key)


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
