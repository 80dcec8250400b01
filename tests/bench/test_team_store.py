"""One MLflow server for a team: over HTTP, with PostgreSQL behind it, artifacts through it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.journal import list_folders, read_result
from tests.servers import find_port

NUM_EPOCHS = 6
GRID = """
experiment: tiny
data: {{train: photos}}
base: {{init_features: 2, image_size: 32, epochs: {epochs}, batch_size: 2}}
grid: {{loss: [dice, bce_dice], lr: {rates}}}
"""


def find_postgres():
    """The folder of PostgreSQL's programs, or None."""
    folders = [Path(path).parent for path in [shutil.which("initdb")] if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists() and (folder / "initdb").exists()), None)


@pytest.fixture
def postgres():
    """The address of an empty database of a PostgreSQL of our own, on this machine alone; root may not run one."""
    pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed: MLflow's way to PostgreSQL")
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    as_other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    with TemporaryDirectory(prefix="postgres-") as folder:  # pytest's own folders are closed to others
        if as_other:
            shutil.chown(folder, "nobody", "nogroup")
        yield from run_postgres(programs, Path(folder), as_other)


def run_postgres(programs, folder, as_other):
    options, port = {"cwd": folder, "stdout": subprocess.DEVNULL} | as_other, find_port()
    data = folder / "data"
    initdb = ["-D", data, "-U", "mlflow", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C"]
    subprocess.run([programs / "initdb", *initdb], check=True, **options)
    listen = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    subprocess.run(
        [programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", listen, "start"], check=True, **options
    )
    yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    subprocess.run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, **options)


@pytest.fixture
def serve(tmp_path, postgres, free_port, start_server):
    """serve(): MLflow's server on that database, with artifacts in a folder that only it can see."""

    def start():
        options = ["--host", "127.0.0.1", "--port", str(free_port), "--workers", "2", "--backend-store-uri", postgres]
        options += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", *options]
        return start_server(command, free_port, cwd=tmp_path, env=environment)

    start.uri = f"http://127.0.0.1:{free_port}"
    return start


def make_place(folder, write_photos, rates):
    write_photos(folder / "photos")
    (folder / "grid.yaml").write_text(GRID.format(epochs=NUM_EPOCHS, rates=rates))
    return folder


def list_results(place):
    folders = list_folders(place / "mlruns/journal/tiny").values()
    return [result for result in map(read_result, folders) if result is not None]


def check_runs(client, num_trials):
    """Each trial once, each epoch once, in PostgreSQL's own words; the best model comes back through the server."""
    experiment = client.get_experiment_by_name("tiny")
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * num_trials
    assert len({run.data.tags["execution"] for run in runs}) == num_trials
    for run in runs:
        for name in ("train/loss", "val/miou"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert steps == list(range(1, NUM_EPOCHS + 1))
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"checkpoints", "images"}
    return runs


@pytest.mark.slow
def test_two_drivers_and_a_server_that_is_restarted_lose_nothing_and_do_nothing_twice(
    tmp_path, serve, write_photos, start_bench, wait_until, bench, monkeypatch
):
    """Each driver has a journal of its own, as on two hosts without a shared disk; both begin with an empty server."""
    from mlflow import MlflowClient

    server = serve()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    places = [
        make_place(tmp_path / "one", write_photos, "[0.02, 0.01, 0.003]"),
        make_place(tmp_path / "two", write_photos, "[0.002, 0.001, 0.0003]"),
    ]
    run = ("run", "--grid", "grid.yaml", "--tracking-uri", serve.uri)
    drivers = [start_bench(*run, cwd=place) for place in places]
    client = MlflowClient(tracking_uri=serve.uri)

    def has_runs():
        experiment = client.get_experiment_by_name("tiny")
        return experiment and len(client.search_runs([experiment.experiment_id])) >= 2

    wait_until(has_runs)
    os.killpg(server.pid, 9)
    server.wait()
    wait_until(lambda: all(len(list_results(place)) >= 3 for place in places))  # nobody waits for it
    serve()
    for driver in drivers:
        _, errors = driver.communicate(timeout=240)
        assert (driver.returncode, errors) == (0, "")
    for place in places:
        monkeypatch.chdir(place)
        synced = bench("sync", "--tracking-uri", serve.uri)
        assert synced.exit_code == 0, synced.stderr
        assert not Path("mlflow.db").exists()
    runs = check_runs(client, num_trials=12)
    for place in places:
        monkeypatch.chdir(place)
        assert bench("sync", "--tracking-uri", serve.uri).stdout == "tiny: 6 trials, 0 brought up to date\n"
    assert len([run for run in runs if run.data.tags.get("best")]) <= 1
    answer = bench("predict", runs[0].info.run_id, "photos/cat0.png", "--out", "out", "--tracking-uri", serve.uri)
    assert answer.exit_code == 0, answer.stderr
    assert Path("out/cat0.png").is_file()
