"""The average of the weights is what a plain loop over them gives, and what is scored and kept."""

import dataclasses

import pytest
import torch

from catseg.average import compute_decay, follow, make_average
from catseg.inference import evaluate
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import Epoch, advance, make_training
from catseg.unet import make_unet

CPU = torch.device("cpu")
TINY = TrainConfig(image_size=32, epochs=3, batch_size=2, precision="float32", lr=0.02, ema=0.8)


def test_the_decay_rises_from_a_tenth_to_what_was_asked_for():
    assert [compute_decay(0.5, step) for step in (1, 2, 9, 10, 1000)] == pytest.approx([0.1, 2 / 11, 0.5, 0.5, 0.5])


def test_it_follows_weights_and_statistics_as_a_plain_loop_does():
    model, numbers = make_unet(UNetConfig(2), 0), torch.Generator().manual_seed(0)
    average = make_average(model)
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for step in range(1, 31):
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=numbers))
        follow(average, model, 0.7)
        decay = min(0.7, step / (9 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    for name, tensor in average.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_the_average_is_what_is_validated_and_kept(make_set):
    photos = make_set()
    training = make_training(make_unet(UNetConfig(2), 0), TINY, len(photos.names), CPU)
    for event in advance(training, photos, photos):
        if isinstance(event, Epoch):
            assert event.val_loss == evaluate(training.average.model, photos, "bce_dice", 2, "float32", CPU)[0]
            assert event.val_loss != evaluate(training.model, photos, "bce_dice", 2, "float32", CPU)[0]
            if training.best.epoch == event:
                for name, tensor in training.average.model.state_dict().items():
                    assert torch.equal(training.best.weights[name], tensor)
    assert training.judged is training.average.model


def test_what_is_trained_does_not_know_of_it(make_set):
    photos, losses = make_set(), []
    for ema in (0.8, None):
        training = make_training(make_unet(UNetConfig(2), 0), dataclasses.replace(TINY, ema=ema), 6, CPU)
        losses.append([event.train_loss for event in advance(training, photos, photos) if isinstance(event, Epoch)])
    assert losses[0] == losses[1]
    assert training.judged is training.model
