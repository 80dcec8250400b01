"""What one trial tells of itself besides its epochs, without a worker around it."""

import pytest

from bench.run import StopRequest, Task, compute_seconds_to, execute
from bench.trial import Finished
from catseg.dataset import DataConfig, load_data
from tests.bench.test_engine import CLASSES, make_trial


def test_seconds_to_a_score_are_those_of_all_epochs_up_to_the_first_that_reached_it():
    """Training of 10, 20, 30 s, validation of 1, 0, 3 s; what is reached later again, or never, is not told."""
    seconds = compute_seconds_to([0.5, None, 0.69, 0.4], [10.0, 20.0, 30.0, 40.0], [1.0, 0.0, 3.0, 4.0])
    assert seconds == {
        "cost/seconds_to_miou_50": 11.0,
        "cost/seconds_to_miou_60": 64.0,
        "cost/seconds_to_miou_66": 64.0,
    }
    assert compute_seconds_to([0.1], [1.0], [1.0]) == {}


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"deep_supervision": True}], ids=str)
def test_the_parameters_of_a_trial_are_the_networks_whatever_trains_or_averages_it(write_photos, tmp_path, settings):
    sets = load_data(DataConfig(train=str(write_photos(tmp_path / "photos")), val_fraction=0.33), [32]).sets[32]
    *_, last = execute(Task(make_trial(1, **settings), CLASSES), *sets, "cpu", StopRequest())
    assert isinstance(last, Finished)
    assert last.metrics["cost/parameters"] == 30751  # summed by hand for two features
