"""`--jobs auto`: several trials at a time where that is measurably faster, one after another where it is not."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import jobs as jobs_room
from bench.environment import measure_free_mib
from bench.jobs import (
    WarmUp,
    choose_fastest,
    choose_jobs,
    compute_cost_seconds,
    compute_throughput,
    count_fitting,
    find_typical,
    format_ratios,
    list_candidates,
)
from bench.plan import Plan
from bench.stops import Stop
from bench.trial import Trial
from catseg.dataset import Data, DataConfig, load_data
from catseg.settings import TrainConfig, UNetConfig


def make_trial(init_features=2, **settings):
    return Trial(UNetConfig(init_features), TrainConfig(**{"image_size": 64, "batch_size": 4} | settings), ())


# --- the choice ----------------------------------------------------------------------------------------------------

FASTER = (1.2, 1.3, 1.3, 1.3, 1.3, 1.3, 1.4, 1.5)
AS_FAST = (0.8, 0.9, 1.0, 1.0, 1.02, 1.02, 1.1, 1.2)


@pytest.mark.parametrize(
    ("ratios", "chosen"),
    [
        ({}, 1),
        ({2: FASTER}, 2),
        ({2: AS_FAST}, 1),
        ({2: (0.5, *FASTER[1:])}, 2),  # one bad moment is no argument
        ({2: (0.5, 0.9, *FASTER[2:])}, 1),  # two are
        ({2: (3.3, 4.0, 4.1, 4.1, 4.1, 5.0, 90.0, 117.0)}, 2),  # however unlike: all say the same
        ({2: (1.01,) * 8}, 1),  # certain, and not worth it
        ({2: FASTER, 4: tuple(2 * ratio for ratio in FASTER)}, 4),
        ({2: FASTER, 4: AS_FAST}, 2),
        ({2: AS_FAST, 4: FASTER}, 4),
        ({2: (0.9, 0.8)}, 1),  # given up early
    ],
)
def test_several_at_a_time_are_chosen_where_all_pairs_but_one_say_so(ratios, chosen):
    assert choose_fastest(ratios) == chosen


RATIOS = st.lists(st.floats(0.1, 10), min_size=8, max_size=8)


@given(RATIOS, st.randoms())
def test_no_choice_depends_on_the_order_of_pairs_or_is_slower_in_the_median(some, random):
    chosen = choose_fastest({2: some})
    shuffled = random.sample(some, len(some))
    assert choose_fastest({2: shuffled}) == chosen
    assert chosen == 1 or sorted(some)[4] > 1
    assert choose_fastest({2: [10 * ratio for ratio in some]}) >= chosen
    assert {chosen, choose_fastest({2: [1 / ratio for ratio in some]})} != {2}, "each is faster than the other"


def test_a_line_says_what_was_measured_and_chosen():
    line = format_ratios({2: FASTER}, 2, threads=2, seconds=6.4)
    assert line == "2 trials at a time, 1 thread each: 1.30 times as fast as one after another (measured in 6 s)"
    assert "4 threads each" in format_ratios({2: FASTER}, 2, threads=8, seconds=6)
    line = format_ratios({2: AS_FAST}, 1, threads=2, seconds=6.4)
    assert line == "one trial at a time (2 at a time: 1.01 times as fast, 0.80 to 1.20; measured in 6 s)"


@pytest.mark.parametrize(
    ("most", "candidates"), [(0, []), (1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (8, [2, 4, 8])]
)
def test_numbers_of_jobs_are_doubled_up_to_the_highest(most, candidates):
    assert list_candidates(most) == candidates


def test_the_typical_trial_is_where_half_of_the_time_is_spent():
    small, middle, large = (make_trial(init_features=features) for features in (2, 4, 8))
    assert find_typical({large: 1.2, small: 1.0, middle: 1.1}) == middle
    assert find_typical({small: 1.0, middle: 1.0, large: 10.0}) == large
    assert find_typical({small: 3.0, middle: 1.0, large: 4.9}) == large
    assert find_typical({small: 1.0, middle: 2.0, large: 3.0}) == middle
    assert find_typical({small: 1.0}) == small


def test_only_so_many_are_tried_as_fit_into_memory_the_neediest_together():
    small, large = make_trial(batch_size=4), make_trial(batch_size=12)  # 100 + 20 and 100 + 60 MiB
    warm_up = WarmUp(step_seconds=0.1, idle_mib=100, peak_mib=120)
    assert count_fitting([small, large, small], small, warm_up, free_mib=(160 + 120) / 0.8) == 2
    assert count_fitting([small, large, small], small, warm_up, free_mib=(160 + 119) / 0.8) == 1
    assert count_fitting([small, large, small], small, warm_up, free_mib=100) == 0
    assert count_fitting([small, large, small], small, warm_up, free_mib=math.inf) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_free_memory_is_less_than_the_machine_has():
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    assert 0 < measure_free_mib() < total_mib


def test_steps_count_while_all_workers_are_at_work_and_in_part_where_they_lie_there_in_part():
    assert compute_throughput([[0.0, 1.0, 2.0]]) == 1.0
    assert compute_throughput([[0.0, 1.0, 2.0], [0.0, 0.5, 1.0, 1.5, 2.0]]) == pytest.approx(3.0)
    # from 1 to 3: two steps of the first, one and a half of the second
    assert compute_throughput([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 4.0]]) == pytest.approx(3.5 / 2)
    with pytest.raises(jobs_room._GivenUp):
        compute_throughput([[0.0, 1.0], [1.0, 2.0]])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.floats(1, 9), st.floats(0, 100))
def test_workers_of_steady_speed_have_their_speeds_sum_whenever_they_begin_and_end(speeds, seconds, offset):
    marks = [
        [offset + worker / 10 + step / speed for step in range(math.ceil(seconds * speed) + 1)]
        for worker, speed in enumerate(speeds)
    ]
    assert compute_throughput(marks) == pytest.approx(sum(speeds))


# --- the measurement -----------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads(monkeypatch):
    """A driver with two cores, and a short measurement whatever is left to do."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(jobs_room, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(jobs_room, "WORTH", 0)


@pytest.fixture
def choose(workplace):
    """choose(*trials): the choice for these trials, all of them still to do."""

    def call(*trials, device="cpu", stop=None):
        sizes = {trial.train.image_size for trial in trials}
        data = load_data(DataConfig("photos", val_fraction=0.33), sizes) if trials else Data({}, "", False)
        plan = Plan({trial: str(number) for number, trial in enumerate(trials)}, {}, trials)
        return choose_jobs(plan, data, device, stop or Stop())

    return call


TWO = (make_trial(lr=0.01), make_trial(lr=0.02))


@pytest.mark.usefixtures("two_threads")
def test_real_steps_of_one_and_of_two_processes_are_timed_and_none_is_left(choose):
    choice = choose(*TWO)
    assert "measured in" in choice.reason
    assert "2 " in choice.reason
    assert (choice.jobs == 2) == choice.reason.startswith("2 trials at a time, 1 thread each")
    assert not multiprocessing.active_children()


def test_two_workers_step_at_the_same_time_and_as_the_clock_says():
    with jobs_room._start_workers(TWO[0], 2) as links:
        warm_ups = jobs_room._hear(links, Stop())
        for link in links:
            link.send("go")
        time.sleep(0.2)
        for link in links:
            link.send("stop")
        marks = jobs_room._hear(links, Stop())
    assert all(warm_up.step_seconds > 0 and warm_up.peak_mib > warm_up.idle_mib > 0 for warm_up in warm_ups)
    assert all(len(some) > jobs_room.MIN_STEPS and some == sorted(some) for some in marks)
    assert max(some[0] for some in marks) < min(some[-1] for some in marks)


@pytest.mark.usefixtures("two_threads")
def test_a_worker_that_dies_decides_for_one_trial_at_a_time(choose, monkeypatch):
    monkeypatch.setattr(jobs_room, "_step", die)
    choice = choose(*TWO)
    assert (choice.jobs, "a worker died" in choice.reason) == (1, True)
    assert not multiprocessing.active_children()


def die(link, trial, threads):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("two_threads")
def test_asked_to_stop_it_measures_no_further_and_leaves_no_process(choose):
    start = time.monotonic()
    assert choose(*TWO, stop=Stop(asked=True)).jobs == 1
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_threads")
def test_nothing_is_measured_where_nothing_can_be_gained(choose, monkeypatch):
    monkeypatch.delattr(jobs_room, "_measure_ratios")
    assert "there is no other" in choose(TWO[0]).reason
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert "one thread" in choose(*TWO).reason


def test_a_short_grid_is_not_measured_and_a_longer_one_is(choose, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(jobs_room, "_measure_ratios", lambda *_: {2: FASTER})
    for seconds, jobs in ((9.9 * compute_cost_seconds(0), 1), (10.1 * compute_cost_seconds(0), 2)):
        monkeypatch.setattr(jobs_room, "estimate_seconds", lambda *_, seconds=seconds: seconds)
        assert choose(*TWO).jobs == jobs
    assert compute_cost_seconds(step_seconds=2) == 8 * (2 + 4)  # a step alone, and one of two that share the cores


@pytest.mark.parametrize(("device", "num_gpus", "jobs"), [("auto", 4, 2), ("cuda", 1, 1), ("cuda:1", 4, 1)])
def test_on_gpus_it_is_one_trial_for_each_without_a_measurement(choose, monkeypatch, device, num_gpus, jobs):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    choice = choose(*TWO, device=device)
    assert choice.jobs == jobs
    assert ("GPU of its own" in choice.reason) == (jobs > 1)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5", "", "AUTO", "9" * 5000])
def test_anything_but_auto_or_a_whole_number_above_0_is_a_mistake(workplace, write_grid, bench, jobs):
    result = bench("run", "--grid", write_grid(), f"--jobs={jobs}")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("--jobs: must be `auto` or a whole number above 0, got ")
    assert not (workplace / "mlruns").exists()


def test_a_tiny_grid_runs_one_after_another_and_says_so(tracked_workplace, write_grid, bench, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    result = bench("run", "--grid", write_grid(), "--jobs", "auto")
    assert result.exit_code == 0
    assert "jobs: one trial at a time: about " in result.stdout


@pytest.mark.usefixtures("two_threads")
def test_a_measured_grid_runs_with_as_many_threads_as_was_said(tracked_workplace, write_grid, bench, read_events):
    grid = write_grid(base="{init_features: 2, image_size: 64, epochs: 2, batch_size: 4}")
    result = bench("run", "--grid", grid, "--jobs", "auto")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("jobs: ")]
    assert "measured in" in line
    starts = [event for events in read_events(tracked_workplace).values() for event in events[:1]]
    assert [start["event"] for start in starts] == ["Started", "Started"]
    if line.startswith("jobs: 2 trials at a time, 1 thread each"):
        assert {start["environment"]["threads"] for start in starts} == {"1"}


# `bench run`, on two cores wherever it is, with a measurement that takes long.
MEASURE_LONG = """
import sys
import torch
from bench import cli, jobs

if __name__ == "__main__":
    torch.get_num_threads = lambda: 2
    jobs.ROUND_SECONDS, jobs.WORTH = 60, 0
    sys.argv = ["bench", "run", "--grid", "grid.yaml", "--jobs", "auto"]
    cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_during_the_measurement_leaves_no_process_and_writes_nothing(
    workplace, write_grid, list_session, wait_until, signum, exit_code
):
    write_grid()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", MEASURE_LONG], start_new_session=True, env=environment, **output)
    try:
        wait_until(lambda: len(list_session(process.pid)) >= 6 or process.poll() is not None)  # driver, tracker, server
        os.killpg(process.pid, signum)  # a terminal signals all processes of a job
        said, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (exit_code, "")
        assert said.endswith("stopped; all is kept, the same command goes on\n")
        wait_until(lambda: not list_session(process.pid), limit_s=30)
    finally:
        process.kill()
    assert [path.name for path in workplace.glob("mlruns/journal/tiny/*")] == ["lock"]
    assert not (workplace / "mlflow.db").exists()
