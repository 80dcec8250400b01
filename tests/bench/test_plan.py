"""What is done, what is left, how long it takes and how much room it needs, from what the journal says."""

import dataclasses

import numpy as np
import pytest
import torch

from bench import plan as planning
from bench.claim import make_experiment_folder, take
from bench.plan import compute_work, estimate_bytes, estimate_seconds, make_plan
from bench.trial import Checkpoint, EpochDone, Experiment, Started, Trial, TrialResult
from catseg.dataset import Data, DataConfig, PhotoSet
from catseg.settings import TrainConfig, UNetConfig, compute_side

NUM_TRAIN, NUM_VAL = 8, 4
CODE = planning.CODE_HASH
PARAMETERS = 30_751  # of a network of two features, summed by hand


def make_trial(**settings):
    return Trial(UNetConfig(2), TrainConfig(image_size=32, epochs=4, batch_size=2, **settings), ("lr",))


TRIALS = tuple(make_trial(lr=lr) for lr in (0.1, 0.2, 0.3, 0.4))
EXPERIMENT = Experiment("grid.yaml", "tiny", DataConfig("photos"), TRIALS)


def make_set(num_photos):
    empty = np.zeros((num_photos, 32, 32), np.uint8)
    names, used = tuple(map(str, range(num_photos))), np.full((num_photos, 2), 32)
    return PhotoSet(names, np.zeros((num_photos, 32, 32, 3), np.uint8), empty, (), (), used)


DATA = Data({32: (make_set(NUM_TRAIN), make_set(NUM_VAL))}, "data", val_is_train=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_experiment_folder("tiny")


@pytest.fixture
def begin(folder):
    """begin(trial, *events): the trial, begun, with these events in its journal."""
    held = []

    def make(trial, *events):
        claim = take(folder, trial, trial.make_key("data"))
        held.append(claim)
        claim.begin(trial, trial.make_key("data"), {})
        for event in events:
            claim.write_event(event)
        return claim

    yield make
    for claim in held:
        claim.release()


def make_result(trial, **changes):
    result = TrialResult(
        key=trial.make_key("data"),
        name=trial.name,
        settings=trial.settings,
        status="finished",
        metrics={"val/miou": 0.5, "cost/train_seconds": 8.0},
        best_epoch=1,
        failure=None,
        reason="",
        environment={"code": CODE},
        seconds=10.0,
    )
    return dataclasses.replace(result, **changes)


STARTED = Started("cpu", "float32", {"code": CODE, "torch": torch.__version__})
FAILED = {"status": "failed", "failure": "killed", "metrics": {}, "best_epoch": None}


def test_every_trial_is_what_the_journal_says_of_it(folder, begin):
    begin(TRIALS[0], STARTED).commit(make_result(TRIALS[0]))
    begin(TRIALS[1], STARTED).commit(make_result(TRIALS[1], **FAILED))
    stopped = begin(
        TRIALS[2], STARTED, EpochDone(1, {}, 1.0, 1.0), EpochDone(2, {}, 1.0, 1.0), Checkpoint(2, 0, 0, b"")
    )
    stopped.release()
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu")
    assert plan.results.keys() == {TRIALS[0], TRIALS[1]}
    assert plan.pending == (TRIALS[2], TRIALS[3])
    assert [plan.count_epochs(trial) for trial in plan.pending] == [2, 0]
    assert plan.running == set()
    begin(TRIALS[3])
    assert make_plan(EXPERIMENT, DATA, folder, "cpu").running == {TRIALS[3]}


def test_what_other_code_torch_or_another_device_has_begun_is_not_gone_on_from(folder, begin):
    environments = {"code": "another"}, {"torch": "1.0"}, {}
    devices = "cpu", "cpu", "cuda:0"
    for trial, environment, device in zip(TRIALS, environments, devices, strict=False):
        started = Started(device, "float32", STARTED.environment | environment)
        begin(trial, started, EpochDone(1, {}, 1.0, 1.0), Checkpoint(1, 0, 0, b""))
    begin(TRIALS[3], STARTED, EpochDone(1, {}, 1.0, 1.0), Checkpoint(1, 0, 0, b""))
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu")
    assert [plan.count_epochs(trial) for trial in TRIALS] == [0, 0, 0, 1]


def test_what_workers_elsewhere_have_begun_is_compared_with_theirs_not_with_what_is_here(folder, begin):
    theirs = Started("cuda:0", "bfloat16", {"code": CODE, "torch": "2.99.0+cu999"})
    for trial, started in zip(TRIALS, (theirs, STARTED), strict=False):
        begin(trial, started, EpochDone(1, {}, 1.0, 1.0), Checkpoint(1, 0, 0, b""))
    plan = make_plan(EXPERIMENT, DATA, folder, "cuda", torch_version="2.99.0+cu999")
    assert [plan.count_epochs(trial) for trial in TRIALS[:2]] == [1, 0]


def test_a_failure_is_to_be_tried_again_if_its_kind_is_named(folder, begin):
    failed = make_result(TRIALS[0], **FAILED)
    begin(TRIALS[0]).commit(failed)
    assert make_plan(EXPERIMENT, DATA, folder, "cpu", retry=["oom"]).pending == TRIALS[1:]
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu", retry=["oom", "killed"])
    assert (plan.pending, plan.redo) == (TRIALS, {TRIALS[0]: failed})


def test_what_other_code_finished_is_named_and_to_be_done_anew_if_that_is_asked_for(folder, begin):
    begin(TRIALS[0]).commit(make_result(TRIALS[0]))
    begin(TRIALS[1]).commit(make_result(TRIALS[1], environment={"code": "another"}))
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu")
    assert (plan.of_other_code, plan.pending) == ([TRIALS[1]], TRIALS[2:])
    assert make_plan(EXPERIMENT, DATA, folder, "cpu", rerun=True).pending == TRIALS[1:]


def test_trials_that_need_more_than_one_that_ran_out_of_memory_are_skipped_until_it_is_tried_again(folder, begin):
    larger = dataclasses.replace(TRIALS[0], unet=UNetConfig(4))
    experiment = dataclasses.replace(EXPERIMENT, trials=(TRIALS[0], larger))
    begin(TRIALS[0]).commit(make_result(TRIALS[0], **FAILED | {"failure": "oom"}))
    plan = make_plan(experiment, DATA, folder, "cpu")
    assert (plan.skipped, plan.pending) == ({larger: TRIALS[0]}, ())
    assert make_plan(experiment, DATA, folder, "cpu", retry=["oom"]).pending == (TRIALS[0], larger)


def test_the_time_left_comes_from_finished_trials_and_what_is_kept_of_a_begun_one_is_not_counted(folder, begin):
    """Two trials to do that are like the finished one of 10 s, half of one of them kept: 5 s and 10 s."""
    begin(TRIALS[0]).commit(make_result(TRIALS[0]))
    begin(TRIALS[1]).commit(make_result(TRIALS[1], **FAILED))
    begin(TRIALS[2], STARTED, EpochDone(2, {}, 9.0, 9.0), Checkpoint(2, 0, 0, b""))
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu")
    assert estimate_seconds(plan, DATA, "cpu") == pytest.approx(15.0)


def test_the_time_left_comes_from_the_epochs_of_begun_trials_where_none_has_finished(folder, begin):
    """An epoch takes 3 s: 4 trials of 4 epochs, less the one that is kept."""
    begin(TRIALS[0], STARTED, EpochDone(1, {}, 2.0, 1.0), Checkpoint(1, 0, 0, b""))
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu")
    assert estimate_seconds(plan, DATA, "cpu") == pytest.approx(3.0 * 15)


def test_an_epoch_at_a_smaller_size_and_without_a_validation_says_what_the_others_will_take(folder, begin):
    """Of four epochs at 64 px, two of them validated, the first is at 32 px: 1 s for a quarter of a training epoch."""
    trial = dataclasses.replace(
        TRIALS[0], train=TrainConfig(image_size=64, epochs=4, first_size=32, grow_epochs=0.5, val_every=2)
    )
    begin(trial, STARTED, EpochDone(1, {}, 1.0, 0.0))
    plan = make_plan(dataclasses.replace(EXPERIMENT, trials=(trial,)), DATA, folder, "cpu")
    photo_seconds = 1.0 / (NUM_TRAIN * 0.25)
    passes = NUM_TRAIN * (0.25 + 0.5625 + 2) + 2 * NUM_VAL / 3
    assert estimate_seconds(plan, DATA, "cpu") == pytest.approx(photo_seconds * passes)


def test_a_step_that_is_measured_is_one_at_full_size(folder, monkeypatch):
    """A step of 2 photos takes 1 s at 64 px: four epochs of 4 steps, one of them at 32 px and one at 48."""
    monkeypatch.setattr("bench.run.measure_step_seconds", lambda trial, device: 1.0)
    train = TrainConfig(image_size=64, epochs=4, batch_size=2, first_size=32, grow_epochs=0.5)
    plan = make_plan(
        dataclasses.replace(EXPERIMENT, trials=(dataclasses.replace(TRIALS[0], train=train),)), DATA, folder, "cpu"
    )
    whole = compute_work(dataclasses.replace(TRIALS[0], train=dataclasses.replace(train, first_size=None)), DATA)
    share = compute_work(plan.pending[0], DATA) / whole
    assert share < 0.8
    assert estimate_seconds(plan, DATA, "cpu") == pytest.approx(16.0 * share)


def test_the_time_left_comes_from_one_step_where_nothing_has_begun(folder, monkeypatch):
    """A step of 2 photos takes 1 s: 4 trials of 4 epochs of 4 steps."""
    monkeypatch.setattr("bench.run.measure_step_seconds", lambda trial, device: 1.0)
    plan = make_plan(EXPERIMENT, DATA, folder, "cpu")
    assert estimate_seconds(plan, DATA, "cpu") == pytest.approx(64.0)


def test_work_grows_with_epochs_width_and_area():
    trial = TRIALS[0]
    work = compute_work(trial, DATA)
    assert compute_work(trial, DATA, epochs_done=1) == pytest.approx(work * 3 / 4)
    larger = dataclasses.replace(trial, train=dataclasses.replace(trial.train, image_size=64))
    assert compute_work(larger, DATA) == pytest.approx(4 * work)
    assert compute_work(dataclasses.replace(trial, unet=UNetConfig(4)), DATA) > work


def test_smaller_photos_and_fewer_validations_are_less_work():
    """Four epochs: one at 32 px, a quarter of 64, one at 48, two at 64; then half the validations."""
    trial = Trial(UNetConfig(2), TrainConfig(image_size=64, epochs=4), ())
    train, val = DATA.num_photos
    work = compute_work(trial, DATA) / (4 * (3 * train + val))  # of one photo forward
    growing = dataclasses.replace(trial, train=dataclasses.replace(trial.train, first_size=32, grow_epochs=0.5))
    assert [compute_side(growing.train, epoch) for epoch in (1, 2, 3, 4)] == [32, 48, 64, 64]
    passes = 3 * train * (0.25 + 0.5625 + 2)
    assert compute_work(growing, DATA) == pytest.approx(work * (passes + 4 * val))
    assert compute_work(growing, DATA, epochs_done=2) == pytest.approx(work * (3 * train * 2 + 2 * val))
    seldom = dataclasses.replace(growing, train=dataclasses.replace(growing.train, val_every=2))
    assert compute_work(seldom, DATA) == pytest.approx(work * (passes + 2 * val))


def test_the_room_that_trials_need_is_that_of_their_weights_twice_and_of_the_checkpoints_at_work():
    """Best and last weights, four bytes each, here and in MLflow; two checkpoints of 16 bytes a parameter; 2 MiB."""
    one = 2 * (8 * PARAMETERS + 2 * 2**20)
    assert estimate_bytes(TRIALS[:1], jobs=1) == one + 40 * PARAMETERS
    assert estimate_bytes(TRIALS, jobs=2) == 4 * one + 2 * 40 * PARAMETERS
    assert estimate_bytes((), jobs=2) == 0
