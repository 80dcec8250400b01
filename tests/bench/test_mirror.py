"""MLflow beside the training: dead, stuck or broken it costs nobody anything, and later it gets what it missed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bench.claim import make_experiment_folder
from bench.journal import list_folders, read_result
from bench.mirror import Mirror

GRID = """
experiment: tiny
data: {train: photos}
base: {init_features: 2, image_size: 32, epochs: 60, batch_size: 2}
grid: {lr: [0.01, 0.003, 0.001], loss: [dice, bce_dice]}
checkpoint_every_seconds: 0.2
"""
NUM_TRIALS, NUM_EPOCHS = 6, 60


@pytest.fixture
def make_mirror(workplace):
    """A mirror of an experiment without trials."""
    mirrors = []

    def make():
        mirrors.append(Mirror(make_experiment_folder("tiny")))
        return mirrors[-1]

    yield make
    for mirror in mirrors:
        mirror.close()


def test_a_store_that_is_no_database_is_a_problem_and_no_end(make_mirror, workplace):
    (workplace / "mlflow.db").write_text("not a database\n" * 100)
    mirror = make_mirror()
    list(mirror.drain(60))
    assert mirror.status.problem
    assert mirror.status.problem.isprintable()


def test_a_mirror_that_was_killed_is_a_problem_and_no_end(make_mirror, tracked_workplace):
    mirror = make_mirror()
    mirror._process.kill()
    mirror._process.join()
    mirror.notify(tracked_workplace / "a folder")
    list(mirror.drain(60))
    assert mirror.status.problem
    assert mirror.num_left


def test_a_store_that_says_nothing_is_waited_for_so_long_and_no_longer(make_mirror, tracked_workplace):
    mirror = make_mirror()
    os.kill(mirror._process.pid, signal.SIGSTOP)
    start = time.monotonic()
    list(mirror.drain(1.0))
    assert time.monotonic() - start < 20
    assert mirror.status.problem == "no answer for 1 s"


@pytest.fixture
def far(workplace, template_store):
    """Where the server keeps its store."""
    folder = workplace / "far away"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template_store.read_bytes())
    (workplace / "grid.yaml").write_text(GRID)
    return folder


@pytest.fixture
def serve(far, free_port, start_server, monkeypatch):
    """serve(): MLflow's server on its store; the harness is told to send everything there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def start():
        options = ["--host", "127.0.0.1", "--port", str(free_port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *options, "--backend-store-uri", "sqlite:///mlflow.db"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return start_server(command, free_port, cwd=far, env=environment)

    return start


def count_results(workplace):
    return sum(read_result(folder) is not None for folder in list_folders(workplace / "mlruns/journal/tiny").values())


def check_that_the_server_has_everything(far, list_runs):
    """Each trial once, each epoch once, each picture, each checkpoint."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{far / 'mlflow.db'}")
    runs = list_runs(far)
    assert [run.info.status for run in runs] == ["FINISHED"] * NUM_TRIALS
    for run in runs:
        for name in ("train/loss", "val/miou"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert steps == list(range(1, NUM_EPOCHS + 1))
        assert "val/best_miou" in run.data.metrics


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_has_everything_in_the_end(
    workplace, far, serve, start_bench, bench, list_runs, wait_until
):
    server = serve()
    process = start_bench("run", "--grid", "grid.yaml")
    wait_until(lambda: count_results(workplace) >= 1 and list_runs(far))
    os.killpg(server.pid, signal.SIGKILL)
    wait_until(lambda: count_results(workplace) >= 3)
    serve()
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    synced = bench("sync")
    assert synced.exit_code == 0, synced.stderr
    check_that_the_server_has_everything(far, list_runs)
    assert not (workplace / "mlflow.db").exists()
    assert bench("sync").stdout == "tiny: 6 trials, 0 brought up to date\n"
    assert "View run" not in output
    run = list_runs(far)[0]
    bench("predict", run.info.run_id, "photos/cat0.png", "--out", "out")
    assert (workplace / "out/cat0.png").is_file()
    assert "/#/experiments/" in output


@pytest.mark.slow
def test_a_server_that_is_stuck_holds_up_nobody_and_has_everything_in_the_end(
    workplace, far, serve, start_bench, bench, list_runs, wait_until
):
    """What it is sent while it is stuck it may do later, too: nothing must come of that twice."""
    server = serve()
    process = start_bench("run", "--grid", "grid.yaml")
    wait_until(lambda: list_runs(far))
    os.killpg(server.pid, signal.SIGSTOP)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert count_results(workplace) == NUM_TRIALS
    assert "MLflow has not got all of it (" in output
    os.killpg(server.pid, signal.SIGCONT)
    synced = bench("sync")
    assert synced.exit_code == 0, synced.stderr
    time.sleep(1)
    bench("sync")
    check_that_the_server_has_everything(far, list_runs)


@pytest.mark.slow
def test_a_locked_store_holds_up_nobody_and_has_everything_in_the_end(
    workplace, far, start_bench, bench, list_runs, wait_until, monkeypatch
):
    (far / "mlflow.db").rename(workplace / "mlflow.db")
    lock = subprocess.Popen([sys.executable, "-c", LOCK_THE_STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    lock.stdout.readline()
    process = start_bench("run", "--grid", "grid.yaml")
    wait_until(lambda: count_results(workplace) == NUM_TRIALS)
    lock.communicate(b"\n")
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert bench("sync").exit_code == 0
    check_that_the_server_has_everything(workplace, list_runs)


LOCK_THE_STORE = """
import sqlite3, sys

store = sqlite3.connect("mlflow.db", isolation_level=None)
store.execute("begin exclusive")
print("locked", flush=True)
sys.stdin.readline()
"""
