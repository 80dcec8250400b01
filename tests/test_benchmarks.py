"""The benchmarks measure what they say: in turn, with a clock that waits, by ratios that mean what they claim."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import clock
import numpy as np
import pytest
import torch
from contest import Contest, Contestant, choose_num_rounds, make_order, measure_contest, measure_rounds
from neighbours import Usage, compute_other_cores, read_usage
from ratio import Ratio, compute_noise_floor, compute_ratio, is_tie
from table import WIDTH, Row, format_table

from bench.speed import compare_speed

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests/benchmarks"


def run_pytest(*arguments: str | Path, **environment: str) -> str:
    """The output of a pytest of its own; its benchmarks ran."""
    command = [sys.executable, "-m", "pytest", "--benchmark-only", *map(str, arguments)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_contestants_work_in_turn_on_the_same_batch_of_each_round():
    calls = []
    works = {name: lambda number, name=name: calls.append((number, name)) for name in "ABC"}
    seconds = measure_rounds(works, 6)
    assert [number for number, _ in calls] == [number for number in range(6) for _ in "ABC"]
    rounds = ["".join(name for number, name in calls if number == wanted) for wanted in range(6)]
    assert rounds == ["ABC", "BCA", "CAB", "CBA", "ACB", "BAC"]
    assert {name: len(values) for name, values in seconds.items()} == {"A": 6, "B": 6, "C": 6}


@pytest.mark.parametrize("num", [2, 3, 4, 7, 8])
def test_everyone_comes_equally_often_in_each_place_and_after_each_other(num):
    orders = [make_order(num, number) for number in range(2 * num)]
    assert all(sorted(order) == list(range(num)) for order in orders)
    assert {Counter(order[place] for order in orders)[who] for place in range(num) for who in range(num)} == {2}
    pairs = Counter(pair for order in orders for pair in pairwise(order))
    assert set(pairs.values()) == {2}
    assert len(pairs) == num * (num - 1)


def test_each_duration_is_of_the_work_that_it_stands_with():
    now = [0.0]

    def take(seconds: float):
        def work(number: int) -> None:
            now[0] += seconds + number

        return work

    assert measure_rounds({"A": take(10), "B": take(100)}, 4, lambda: now[0]) == {
        "A": [10, 11, 12, 13],
        "B": [100, 101, 102, 103],
    }


def test_rounds_fill_the_time_are_no_fewer_than_asked_for_and_make_whole_turns():
    assert choose_num_rounds(4, round_seconds=0.4, min_rounds=8, seconds_each=2.5) == 28
    assert choose_num_rounds(4, round_seconds=60.0, min_rounds=8, seconds_each=2.5) == 8
    assert choose_num_rounds(3, round_seconds=60.0, min_rounds=8, seconds_each=2.5) == 9
    assert choose_num_rounds(5, round_seconds=1e-6, min_rounds=8, seconds_each=2.5) == 60


def test_the_memory_of_each_contestant_is_its_own():
    def make(mib: int):
        kept = np.ones(mib * 2**20, np.uint8)
        return lambda number: kept.sum()

    contestants = tuple(Contestant(str(mib), lambda mib=mib: make(mib)) for mib in (200, 50, 100))
    outcome = measure_contest(Contest("memory", contestants, ("200", "50"), None), 1, 0.0)
    if clock.find_device().type == "cuda" or outcome.peak_mib["200"] is None:  # no peak that can be reset
        pytest.skip("this system does not tell")
    assert {name: round(peak, -1) for name, peak in outcome.peak_mib.items()} == {"200": 200, "50": 50, "100": 100}


def test_a_ratio_is_times_faster_and_its_interval_holds_it():
    rng = np.random.default_rng(1)
    base, own = rng.normal(2, 0.05, 40), rng.normal(1, 0.05, 40)
    ratio = compute_ratio(base, own)
    assert ratio.low < ratio.value < ratio.high
    assert ratio.low < 2 < ratio.high
    assert compute_ratio([3.0] * 8, [1.5] * 8) == Ratio(2, 2, 2)


def test_the_noise_floor_is_how_far_apart_equals_come_out():
    assert compute_noise_floor([1.0] * 8, [1.0] * 8) == 0
    assert compute_noise_floor([1.0] * 8, [1.25] * 8) == pytest.approx(0.25)
    assert compute_noise_floor([1.25] * 8, [1.0] * 8) == pytest.approx(0.25)
    scattered = [1.0, 2.0] * 5
    assert compute_noise_floor(scattered, scattered[::-1]) > 0.2  # equal medians, by chance


def test_equals_that_scatter_are_nearly_always_a_tie_and_a_quarter_more_hardly_ever():
    rng = np.random.default_rng(2)
    ties = {1.0: 0, 1.25: 0}
    for factor in ties:
        for _ in range(50):
            first, second, other = (rng.normal(1, 0.03, 24) for _ in range(3))
            floor = compute_noise_floor(first, second)
            ties[factor] += is_tie(compute_ratio(first, other * factor).value, floor)
    assert ties[1.0] >= 40
    assert ties[1.25] == 0


def test_others_are_what_all_cores_did_less_what_this_process_did(tmp_path):
    before, after = Usage(100.0, 50.0), Usage(110.0, 57.5)
    assert compute_other_cores(before, after) == 0.75
    assert compute_other_cores(after, replace(after, wall_seconds=120.0)) == 0
    assert compute_other_cores(None, after) is None
    assert read_usage(tmp_path / "absent") is None
    (tmp_path / "stat").write_text("cpu  9000 0 1000 5 5 0 0 0 0 0\ncpu0 1 2\n")
    own = os.times()
    expected = 10_000 / os.sysconf("SC_CLK_TCK") - sum(own[:4])
    assert read_usage(tmp_path / "stat").other_seconds == pytest.approx(expected, abs=0.5)


def test_a_busy_machine_is_said():
    row = Row("step", "ours", [0.1] * 4, 0.01, None, other_cores=0.9)
    said = "Other processes kept up to 0.9 cores busy: measure again on an idle machine."
    assert said in format_table([row], [], "")
    assert not any("busy" in line for line in format_table([replace(row, other_cores=0.05)], [], ""))


def test_the_table_says_base_tie_and_how_many_times_faster_within_its_width():
    rows = [
        Row("step", "ours", [0.1] * 4, 0.05, Ratio(2.0, 1.9, 2.1), photos=4, gflop=10, ceiling_gflop_per_second=200),
        Row("step", "tutorial", [0.2] * 4, 0.05, None, is_base=True, photos=4, peak_mib=123.4),
        Row("step", "same", [0.201] * 4, 0.05, Ratio(0.995, 0.9, 1.1), photos=4),
        Row("x" * 200, "y" * 200, [1e-6, 1e4], 0.05, None),
    ]
    lines = list(format_table(rows, ["a peer is not installed"], "some CPU" * 40))
    ours, tutorial, same = (next(line for line in lines if line.startswith(f"  {row.name}")) for row in rows[:3])
    assert ours.split() == ["ours", "100", "100", "..", "100", "40", "100", "50%", "2.00", "(1.90", "..", "2.10)"]
    assert tutorial.split()[-2:] == ["123", "base"]
    assert same.split()[-1] == "tie"
    assert "Left out: a peer is not installed" in lines
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_clock_agrees_with_cuda_events():
    factor = torch.randn(8192, 8192, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):  # the first asks for kernels and memory
        start = clock.read()
        begin.record()
        for _ in range(10):
            factor @ factor
        end.record()
        seconds = clock.read() - start
    assert seconds == pytest.approx(begin.elapsed_time(end) / 1000, rel=0.05)


REPLAYED = """
import pytest
from contest import read_replayed, replay

@pytest.mark.benchmark(timer=read_replayed)
def test_replayed(benchmark):
    replay(benchmark, [0.1, 0.30000000000000004, 1e-7, 12345.678])

def test_timed(benchmark):
    benchmark.pedantic(lambda: None, rounds=3)
"""


@pytest.mark.slow
def test_durations_are_replayed_unchanged_and_the_clock_serves_as_pytest_benchmarks_own(tmp_path):
    (tmp_path / "test_it.py").write_text(REPLAYED)
    run_pytest(
        tmp_path / "test_it.py",
        f"--benchmark-json={tmp_path / 'it.json'}",
        "--benchmark-timer=clock.read",
        f"--rootdir={tmp_path}",
        f"--config-file={ROOT / 'pyproject.toml'}",
        PYTHONPATH=str(BENCHMARKS),
    )
    replayed, timed = json.loads((tmp_path / "it.json").read_text())["benchmarks"]
    assert replayed["stats"]["data"] == [0.1, 0.30000000000000004, 1e-7, 12345.678]
    assert timed["options"]["timer"] == "read"


WALL = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "mlflow typer rich yaml hypothesis scipy shapely safetensors".split():
            raise ModuleNotFoundError(f"{name} is not installed")

sys.meta_path.insert(0, Wall())
"""


@pytest.mark.slow
def test_a_contest_becomes_entries_where_little_is_installed_and_its_files_compare(tmp_path):
    (tmp_path / "wall.py").write_text(WALL)
    path = tmp_path / "speed.json"
    output = run_pytest(
        *("-p", "pytest_benchmark.plugin", "-p", "wall", "-k", "test_loss or test_start"),
        *(f"--benchmark-json={path}", "--benchmark-max-time=0.05"),
        PYTHONPATH=str(tmp_path),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    entries = json.loads(path.read_text())["benchmarks"]
    assert [entry["param"] for entry in entries] == ["ours", "ours, dice", "tutorial", "ours again"]
    assert len({entry["group"] for entry in entries}) == 1
    assert len({entry["stats"]["rounds"] for entry in entries}) == 1
    assert {entry["extra_info"]["noise_floor"] for entry in entries} == {entries[0]["extra_info"]["noise_floor"]}
    assert entries[0]["extra_info"]["photos_per_second"] == pytest.approx(8 / entries[0]["stats"]["median"])
    assert "times_faster" in entries[0]["extra_info"]
    assert "  tutorial " in output
    assert "Machine: " in output
    assert "4 skipped" in output  # how long the command takes to start
    assert "4 tie" in compare_speed(path, path)


@pytest.mark.slow
def test_the_whole_product_of_settings_runs_only_when_asked_for():
    few = run_pytest("--collect-only", "-q", "-k", "test_training_step")
    wide = run_pytest("--collect-only", "-q", "-k", "test_training_step", "-m", "wide")
    for wanted in ("32 features, 128 px, batch 4, ours", "16 features, 256 px, batch 2, tutorial"):
        assert wanted in few
    assert few.count("test_training_step[") < 20
    assert "8 features, 96 px, batch 1, ours, contiguous" in wide
    assert wide.count("test_training_step[") > 200
