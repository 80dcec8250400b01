"""A trial's key is the identity of its result: everything that changes the numbers, and nothing else."""

import dataclasses
import pickle

import pytest

import bench.trial
from bench.trial import LATER_SETTINGS, SETTINGS, Trial
from catseg.settings import TrainConfig, UNetConfig

TRIAL = Trial(UNetConfig(8), TrainConfig(lr=0.01, epochs=3), ("lr",))

OTHER_SETTINGS = {
    "init_features": 16,
    "lr": 0.02,
    "image_size": 64,
    "loss": "dice",
    "epochs": 4,
    "batch_size": 4,
    "seed": 1,
    "optimizer": "adam",
    "weight_decay": 0.1,
    "schedule": "constant",
    "precision": "float32",
    "augment": "light",
    "compile": "on",
    "decay_norms": False,
    "momentum": 0.9,
    "clip_norm": 1.0,
    "ema": 0.99,
    "dice_weight": 0.5,
    "deep_supervision": True,
    "augment_fade": 0.2,
    "first_size": 64,
    "grow_epochs": 0.5,
    "val_every": 2,
}


def change(trial, setting, value):
    """The trial with one other setting."""
    if setting == "init_features":
        return dataclasses.replace(trial, unet=dataclasses.replace(trial.unet, init_features=value))
    return dataclasses.replace(trial, train=dataclasses.replace(trial.train, **{setting: value}))


@pytest.mark.parametrize("setting", SETTINGS)
def test_any_other_setting_is_another_result(setting):
    other = change(TRIAL, setting, OTHER_SETTINGS[setting])
    assert other.settings[setting] != TRIAL.settings[setting]
    assert other.make_key("data") != TRIAL.make_key("data")


def test_other_data_classes_or_recipe_are_another_result(monkeypatch):
    key = TRIAL.make_key("data")
    assert TRIAL.make_key("other data") != key
    assert dataclasses.replace(TRIAL, unet=UNetConfig(8, num_classes=2)).make_key("data") != key
    monkeypatch.setattr(bench.trial, "RECIPE_VERSION", bench.trial.RECIPE_VERSION + 1)
    assert TRIAL.make_key("data") != key


def test_keys_are_what_they_were_before_later_settings_came():
    """Taken then: results of earlier journals are found again, though a trial has more settings now."""
    assert TRIAL.make_key("data") == "6c582c31ff"
    assert LATER_SETTINGS.items() <= TRIAL.settings.items()  # so it is a trial as there were then


def test_the_grid_around_a_trial_does_not_change_its_result():
    assert dataclasses.replace(TRIAL, varying=("loss", "seed")).make_key("data") == TRIAL.make_key("data")


def test_a_name_holds_what_varies_in_the_order_of_the_grid():
    assert dataclasses.replace(TRIAL, varying=("loss", "lr")).name == "loss=bce_dice lr=0.01"


def test_the_only_trial_of_a_grid_is_named_by_what_it_is():
    assert "lr=0.01" in dataclasses.replace(TRIAL, varying=()).name


def test_every_setting_has_one_name_and_stands_in_the_settings():
    names = [field.name for config in (UNetConfig, TrainConfig) for field in dataclasses.fields(config)]
    assert len(set(names)) == len(names)
    assert set(SETTINGS) == set(names) - {"num_classes"}
    assert tuple(TRIAL.settings) == SETTINGS


@pytest.mark.parametrize(
    ("changes", "needs_more"),
    [
        ({"init_features": 16}, True),
        ({"image_size": 256, "batch_size": 16}, True),
        ({"init_features": 16, "image_size": 64}, False),  # wider, but smaller: nobody knows
        ({"init_features": 4}, False),
        ({}, False),
        ({"init_features": 16, "loss": "dice"}, False),
        ({"init_features": 16, "optimizer": "adam"}, False),
        ({"init_features": 16, "precision": "float32"}, False),
        ({"init_features": 16, "augment": "light"}, False),
        ({"init_features": 16, "ema": 0.99}, False),
        ({"init_features": 16, "momentum": 0.9}, False),
        ({"init_features": 16, "deep_supervision": True}, False),
        ({"init_features": 16, "lr": 0.02, "seed": 1}, True),
    ],
)
def test_a_trial_needs_more_memory_than_another_if_nothing_of_it_is_smaller(changes, needs_more):
    other = TRIAL
    for setting, value in changes.items():
        other = change(other, setting, value)
    assert other.needs_more_than(TRIAL) == needs_more


def test_how_long_an_average_or_momentum_remembers_takes_no_memory():
    smaller = change(change(TRIAL, "ema", 0.9), "momentum", 0.5)
    larger = change(change(change(TRIAL, "ema", 0.99), "momentum", 0.9), "init_features", 16)
    assert larger.needs_more_than(smaller)


def test_a_trial_crosses_a_process_border_unchanged():
    assert pickle.loads(pickle.dumps(TRIAL)) == TRIAL
