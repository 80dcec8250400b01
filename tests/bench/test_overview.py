"""`bench plan`, `bench compare`, `bench sync`: what the journal knows, without running a trial."""

import json
import os
import shutil
import subprocess
import sys

import pytest

LIST_LOADED = """
import sys
from bench.cli import main

try:
    main()
finally:
    print("loaded:", *sorted({"torch", "mlflow"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def run_and_list():
    """run_and_list(folder, *arguments): exit code, output and errors of a command, and what it loaded."""

    def run(folder, *arguments):
        command = [sys.executable, "-c", LIST_LOADED, *arguments]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        errors, _, loaded = process.stderr.rpartition("loaded:")
        return process.returncode, process.stdout, errors, loaded.split()

    return run


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_plan_of_a_finished_grid_waits_for_neither_torch_nor_mlflow(finished, run_and_list, device):
    exit_code, output, errors, loaded = run_and_list(finished, "plan", "--grid", "grid.yaml", "--device", device)
    assert (exit_code, errors, loaded) == (0, "", [])
    assert "3 trials, 3 done, 0 to do" in output


def test_a_plan_of_a_grid_that_was_stopped_waits_for_neither_torch_nor_mlflow(finished_copy, run_and_list):
    """Two trials that finished tell how long the third will take."""
    (result,) = finished_copy.glob("mlruns/journal/tiny/lr=0.0001-*/result.json")
    result.unlink()
    arguments = "plan", "--grid", "grid.yaml", "--device", "cpu"  # a torch for GPUs is asked what `auto` is
    exit_code, output, errors, loaded = run_and_list(finished_copy, *arguments)
    assert (exit_code, errors, loaded) == (0, "", [])
    assert "2 done, 1 to do" in output
    assert "left on this machine" in output


def test_a_plan_of_what_has_never_run_asks_torch_for_the_time_of_a_step(workplace, write_grid, run_and_list):
    write_grid()
    exit_code, output, _, loaded = run_and_list(workplace, "plan", "--grid", "grid.yaml")
    assert (exit_code, loaded) == (0, ["torch"])
    assert "left on this machine" in output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grid": "lr: ["}, "mend the YAML"),
        ({"grid": "colour: [red]"}, "unknown key 'colour'"),
        ({"base": "{image_size: 33}"}, "image_size"),
        ({"data": "{train: nowhere}"}, "no such folder"),
    ],
)
def test_a_mistake_in_a_grid_that_has_never_run_is_told_without_torch(
    workplace, write_grid, run_and_list, changes, says
):
    write_grid(**changes)
    exit_code, output, errors, loaded = run_and_list(workplace, "plan", "--grid", "grid.yaml")
    assert (exit_code, output, loaded) == (2, "", [])
    assert says in errors


def test_a_device_that_is_not_there_is_refused_though_a_finished_grid_needs_none(finished, bench, monkeypatch):
    monkeypatch.chdir(finished)
    result = bench("plan", "--grid", "grid.yaml", "--device", "gpu")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "'gpu'" in result.stderr


def test_a_comparison_waits_for_neither_torch_nor_mlflow(finished, run_and_list):
    assert run_and_list(finished, "compare")[::3] == (0, [])


def test_a_comparison_ranks_what_an_experiment_has_finished(finished_copy, bench, find_ranking):
    result = bench("compare")
    assert result.exit_code == 0
    assert result.stdout.startswith("tiny: 3 trials on data ")
    assert find_ranking(result.stdout) == find_ranking((finished_copy / "output").read_text())
    assert "FAILED  lr=1e+30: nonfinite: " in result.stdout
    assert find_ranking(bench("compare", "tiny").stdout) == find_ranking(result.stdout)


def test_results_on_other_data_are_left_out_of_a_comparison_and_counted(finished_copy, bench, find_ranking):
    (path,) = finished_copy.glob("mlruns/journal/tiny/lr=0.0001-*/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_fingerprint": "other photos"}))
    os.utime(path, (1, 1))
    result = bench("compare")
    assert [row[1] for row in find_ranking(result.stdout)] == ["0.03"]
    assert "1 on other data are left out: their scores do not compare." in result.stdout


def test_a_comparison_of_nothing_or_of_one_of_several_is_refused_with_a_remedy(finished_copy, bench):
    def refuse(*arguments):
        result = bench(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        return result.stderr

    assert "nowhere: no such experiment here; there are tiny" in refuse("compare", "nowhere")
    shutil.copytree("mlruns/journal/tiny", "mlruns/journal/other")
    assert "several experiments; name one of other, tiny" in refuse("compare")
    for path in finished_copy.glob("mlruns/journal/tiny/*/result.json"):
        path.unlink()
    assert "no trial has ended yet" in refuse("compare", "tiny")
    shutil.rmtree("mlruns")
    for command in ("compare", "sync"):
        assert "no experiments here; `bench run` makes one" in refuse(command)


def test_a_sync_fills_an_empty_store_and_says_how_much(finished_copy, bench, list_runs):
    assert bench("sync").stdout == "tiny: 3 trials, 3 brought up to date\n"
    assert sorted(run.info.status for run in list_runs(finished_copy)) == ["FAILED", "FINISHED", "FINISHED"]
    assert bench("sync").stdout == "tiny: 3 trials, 0 brought up to date\n"


def test_a_sync_with_a_store_out_of_reach_is_one_line_and_changes_nothing(finished_copy, bench, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = bench("sync")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("http://127.0.0.1:9: tiny could not be sent (")
    assert "try again later" in result.stderr
