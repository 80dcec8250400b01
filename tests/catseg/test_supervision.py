"""Losses at the decoder's lower levels: they teach, and leave no trace in the model."""

import dataclasses

import pytest
import torch
from torch import nn

from catseg.losses import compute_loss
from catseg.optimizer import list_views
from catseg.photo import VOID
from catseg.settings import TrainConfig, UNetConfig
from catseg.supervision import compute_deep_loss, make_deep_supervision
from catseg.train import Epoch, advance, make_training
from catseg.unet import make_unet

CPU = torch.device("cpu")
TINY = TrainConfig(image_size=32, epochs=2, batch_size=2, precision="float32", deep_supervision=True)


def make_batch(num_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    mask = torch.randint(0, num_classes + 2, (2, 32, 48), generator=numbers, dtype=torch.uint8)
    return torch.rand(2, 3, 32, 48, generator=numbers), torch.where(mask == num_classes + 1, VOID, mask)


def test_levels_are_the_photos_size_a_half_a_quarter_an_eighth():
    unet, (photo, _) = make_unet(UNetConfig(2, num_classes=2), 0).eval(), make_batch()
    levels = make_deep_supervision(unet, 0)(photo)
    assert [tuple(logits.shape) for logits in levels] == [(2, 2, 32 // k, 48 // k) for k in (1, 2, 4, 8)]
    assert torch.equal(levels[0], unet(photo))


def test_loss_is_the_weighted_mean_of_the_levels_losses():
    photo, mask = make_batch()
    levels = make_deep_supervision(make_unet(UNetConfig(2, num_classes=2), 0), 0)(photo)
    expected = 0.0
    for level, logits in enumerate(levels):
        size = (32 >> level, 48 >> level)
        small = nn.functional.interpolate(mask[:, None].float(), size, mode="nearest")[:, 0].to(torch.uint8)
        expected += 0.5**level * compute_loss("bce_dice", logits, small).item()
    assert compute_deep_loss("bce_dice", levels, mask).item() == pytest.approx(expected / 1.875)


def test_all_void_is_no_loss():
    levels = make_deep_supervision(make_unet(UNetConfig(2), 0), 0)(make_batch()[0])
    assert compute_deep_loss("bce_dice", levels, torch.full((2, 32, 48), VOID, dtype=torch.uint8)).item() == 0


def test_heads_follow_from_the_seed_alone():
    before = torch.get_rng_state()
    first, again, other = (make_deep_supervision(make_unet(UNetConfig(2), 0), seed).heads for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0].weight, again[0].weight) and not torch.equal(first[0].weight, other[0].weight)


def test_every_level_is_trained_and_the_model_is_what_it_is_without(make_set):
    photos = make_set()
    training = make_training(make_unet(UNetConfig(2), 0), TINY, 6, CPU)
    before = [view.clone() for view in list_views(training.optimizer)]
    losses = [event.train_loss for event in advance(training, photos, photos) if isinstance(event, Epoch)]
    assert all(not torch.equal(view, old) for view, old in zip(list_views(training.optimizer), before, strict=True))
    plain = make_training(make_unet(UNetConfig(2), 0), dataclasses.replace(TINY, deep_supervision=False), 6, CPU)
    assert losses != [event.train_loss for event in advance(plain, photos, photos) if isinstance(event, Epoch)]
    shapes = {name: tensor.shape for name, tensor in plain.model.state_dict().items()}
    for weights in (training.judged.state_dict(), training.best.weights):
        assert {name: tensor.shape for name, tensor in weights.items()} == shapes
