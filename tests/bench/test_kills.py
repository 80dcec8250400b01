"""Sixty kill -9 at random moments, and two sessions at once: the promise of the journal, kept by real processes."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from bench.journal import list_folders, read_history, read_result

NUM_KILLS = 60
NUM_TRIALS, NUM_EPOCHS = 6, 30

GRID = f"""
experiment: tiny
data: {{train: photos}}
base: {{init_features: 2, image_size: 32, epochs: {NUM_EPOCHS}, batch_size: 2}}
grid: {{loss: [dice, bce_dice], lr: [0.01, 0.003, 0.001]}}
checkpoint_every_seconds: 0
"""
RUN = ("run", "--grid", "grid.yaml", "--jobs", "2", "--retry", "killed")
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture
def make_place(tmp_path, write_photos, template_store):
    """make_place(name): a working folder with the photos, the grid and an empty store."""

    def make(name):
        place = tmp_path / name
        write_photos(place / "photos")
        (place / "grid.yaml").write_text(GRID)
        (place / "mlflow.db").write_bytes(template_store.read_bytes())
        return place

    return make


def read_results(place):
    """What is committed, by key, to the byte."""
    folders = list_folders(place / "mlruns/journal/tiny")
    return {key: (f / "result.json").read_bytes() for key, f in folders.items() if read_result(f) is not None}


def hash_weights(place):
    folders = list_folders(place / "mlruns/journal/tiny")
    return {
        key: [hashlib.sha256((folder / f"{which}.safetensors").read_bytes()).hexdigest() for which in ("best", "last")]
        for key, folder in folders.items()
    }


def check_steps(place, list_runs):
    """No step stands twice in any run of MLflow; which runs it has."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    runs = list_runs(place)
    assert len({run.data.tags["execution"] for run in runs}) == len(runs)
    for run in runs:
        for name in ("train/loss", "val/miou"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert steps == sorted(set(steps)), (run.info.run_id, name)
            assert run.info.status != "FINISHED" or steps == list(range(1, NUM_EPOCHS + 1))
    return runs


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end_and_check(place, start_bench, list_session, wait_until, list_runs, undisturbed):
    """Left alone, the same command does the rest: one result for each trial, to the same bit, and MLflow has it."""
    before = read_results(place)
    process = start_bench(*RUN, cwd=place, **SILENT)
    assert process.wait(timeout=120) == 0
    wait_until(lambda: not list_session(process.pid))
    results = read_results(place)
    assert {key: results[key] for key in before} == before
    assert len(results) == NUM_TRIALS
    assert hash_weights(place) == undisturbed
    for folder in list_folders(place / "mlruns/journal/tiny").values():
        assert [line["epoch"] for line in read_history(folder).epochs] == list(range(1, NUM_EPOCHS + 1))
        assert not [path for path in folder.rglob("*") if path.name.startswith((".", "checkpoint"))]
    sync = start_bench("sync", cwd=place, **SILENT)
    assert sync.wait(timeout=120) == 0
    statuses = [run.info.status for run in check_steps(place, list_runs)]
    assert statuses == ["FINISHED"] * NUM_TRIALS


@pytest.mark.slow
def test_sixty_kills_of_driver_worker_or_both_cost_time_and_nothing_else(
    make_place, start_bench, list_session, wait_until, list_runs
):
    rng = random.Random(60)
    undisturbed_place = make_place("undisturbed")
    assert start_bench(*RUN, cwd=undisturbed_place, **SILENT).wait(timeout=120) == 0
    undisturbed = hash_weights(undisturbed_place)
    assert len(undisturbed) == NUM_TRIALS
    killed = {"driver": 0, "worker": 0, "both": 0}
    place, committed, sessions = make_place("round 1"), {}, []
    while sum(killed.values()) < NUM_KILLS:
        process = start_bench(*RUN, cwd=place, **SILENT)
        sessions.append(process.pid)
        time.sleep(rng.uniform(0.5, 5.0))  # while torch is imported, too
        while process.poll() is None and sum(killed.values()) < NUM_KILLS:
            victim = rng.choice(list(killed))
            others = [pid for pid in list_session(process.pid) if pid != process.pid]
            if victim == "worker" and not others:  # not yet, or no longer: it reads photos, or writes the page
                time.sleep(0.05)
                continue
            killed[victim] += 1
            if victim in ("worker", "both"):  # or the mirror, or the server that forks
                for pid in [rng.choice(others)] if victim == "worker" else others:
                    kill(pid)
            if victim in ("driver", "both"):
                kill(process.pid)
                process.wait()
            results = read_results(place)
            assert {key: results.get(key) for key in committed} == committed, "a committed result changed"
            committed = results
            time.sleep(rng.uniform(0.05, 0.8))
        if process.poll() == 0 or len(committed) == NUM_TRIALS:  # all done: begin anew
            end_and_check(place, start_bench, list_session, wait_until, list_runs, undisturbed)
            place, committed = make_place(f"round {len(sessions) + 1}"), {}
    end_and_check(place, start_bench, list_session, wait_until, list_runs, undisturbed)
    for pid in sessions:
        wait_until(lambda pid=pid: not list_session(pid))
    assert min(killed.values()) >= 10, killed
    print(killed, len(sessions))


@pytest.mark.slow
def test_two_sessions_started_together_share_twelve_trials_and_do_none_twice(
    tmp_path, write_photos, start_bench, list_runs
):
    """On a fresh folder: nobody has made the journal, the store or the experiment yet."""
    write_photos(tmp_path / "photos")
    (tmp_path / "grid.yaml").write_text(GRID + "seeds: [0, 1]\n")
    sessions = [start_bench("run", "--grid", "grid.yaml", cwd=tmp_path) for _ in range(2)]
    answers = [session.communicate(timeout=240) for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0], answers
    assert [errors for _, errors in answers] == ["", ""]
    assert not any("locked" in output for output, _ in answers)
    folders = list_folders(tmp_path / "mlruns/journal/tiny").values()
    assert len(folders) == 12
    starts = []
    for folder in folders:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        starts.append(sum(event["event"] == "Started" for event in events))
        assert read_result(folder).status == "finished"
    assert starts == [1] * 12
    assert [run.info.status for run in list_runs(tmp_path)] == ["FINISHED"] * 12
    shown = [sum("/12  val/miou" in line for line in output.splitlines()) for output, _ in answers]
    assert shown == [12, 12]  # each shows all of them, its own and the other's
