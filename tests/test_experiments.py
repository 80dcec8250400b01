"""The experiment files that are shipped load, ask a question and are what they say."""

from pathlib import Path

import pytest

from bench.grid import load_experiment
from bench.trial import LATER_SETTINGS

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_and_opens_with_its_question(path):
    assert load_experiment(path, {}, None).trials
    head = path.read_text().partition("experiment:")[0]
    assert head.startswith("# Question: ")
    assert f"bench run --grid experiments/{path.name}" in head


def test_the_default_grid_asks_two_of_each_of_four_settings():
    experiment = load_experiment(EXPERIMENTS / "grid.yaml", {}, None)
    assert experiment.data.train == "sample"
    varying = {key for trial in experiment.trials for key in trial.varying}
    assert varying == {"init_features", "lr", "image_size", "loss"}
    assert len(set(experiment.trials)) == 16


def test_the_tutorials_recipe_is_the_tutorials():
    (trial,) = load_experiment(EXPERIMENTS / "tutorial.yaml", {}, None).trials
    tutorial = {"init_features": 32, "image_size": 256, "lr": 1e-4, "optimizer": "adam", "loss": "dice"}
    tutorial |= {"batch_size": 16, "schedule": "constant"}
    assert (tutorial | LATER_SETTINGS).items() <= trial.settings.items()  # nothing that came later is on in it
