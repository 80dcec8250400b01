"""MLflow's store: where it is, how it comes into being, what its own pages and a server of it show."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bench.tracking import Mirror, fetch_checkpoint, find_store_uri, format_ui_hint, make_ui_command
from bench.trial import SETTINGS, TrialResult
from catseg.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start_server(wait_until):
    """Run MLflow's server or pages until the end of the test, from the moment it answers."""
    processes = []

    def start(command, port, **options):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **silent, **options)
        processes.append(process)

        def answers():
            assert process.poll() is None, f"the server ended with {process.returncode}"
            try:
                return ask(port, "/health") == b"OK"
            except OSError:
                return False

        wait_until(answers)
        return process

    yield start
    for process in processes:
        stop_server(process)


def stop_server(process):
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def ask(port, path, **content):
    """Bytes of a GET, or of a POST of `content` as JSON."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if content:
        request.data = json.dumps(content).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def test_the_store_is_mlflows_own_default_unless_the_user_says_otherwise(workplace, monkeypatch):
    assert find_store_uri() == f"sqlite:///{workplace / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert find_store_uri() == "http://tracking.example:5000"


def test_the_hint_names_the_command_and_the_page_that_show_the_runs_as_charts(workplace, monkeypatch):
    page = "/#/experiments/7/runs?compareRunsMode=CHART&workflowType=machine_learning"
    assert format_ui_hint("7") == ["mlflow ui", f"http://127.0.0.1:5000{page}"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////data/other.db")
    assert format_ui_hint("7")[0] == "mlflow ui --backend-store-uri sqlite:////data/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000/")
    assert format_ui_hint("7") == [f"http://tracking.example:5000{page}"]


def test_pages_are_not_served_where_there_is_nothing_or_a_server_already(workplace, monkeypatch):
    with pytest.raises(InputError, match="nothing tracked here yet"):
        make_ui_command(5000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    with pytest.raises(InputError, match="is a server already"):
        make_ui_command(5000)


def test_what_the_user_has_set_for_mlflow_stands(tracked_workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    _, environment = make_ui_command(5000)
    assert environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_an_unknown_run_is_answered_with_one_line_and_makes_no_store(workplace):
    with pytest.raises(InputError, match=r"there is no mlflow\.db here") as caught, fetch_checkpoint("0123abcd"):
        pass
    assert len(caught.value.problems) == 1
    assert not (workplace / "mlflow.db").exists()


def test_an_unknown_run_in_a_store_is_answered_with_one_line(tracked_workplace):
    with pytest.raises(InputError, match="neither a file nor a run with a checkpoint") as caught:  # noqa: SIM117
        with fetch_checkpoint("0123abcd"):
            pass
    assert caught.value.problems[0].isprintable()


def test_a_store_that_is_no_database_is_a_problem_and_no_end(workplace):
    (workplace / "mlflow.db").write_text("not a database\n" * 100)
    mirror = Mirror("tiny", Path("grid.yaml"))
    assert mirror.problem
    assert mirror.problem.isprintable()


MAKE_A_MIRROR = """
import sys
from pathlib import Path
from bench.tracking import Mirror

mirror = Mirror(sys.argv[1], Path("grid.yaml"))
print(mirror.problem, mirror.experiment_id)
"""


def start_racer(folder, name):
    command = [sys.executable, "-c", MAKE_A_MIRROR, name]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=paths,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_store_is_made_whole_or_not_at_all_though_one_maker_is_killed_and_three_race(tmp_path, wait_until, list_runs):
    """Left to MLflow, each of the two breaks the file for good."""
    killed = start_racer(tmp_path, "none")
    wait_until(lambda: [path for path in tmp_path.glob(".mlflow-*/mlflow.db") if path.stat().st_size > 0])
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "mlflow.db").exists()
    racers = [start_racer(tmp_path, name) for name in ("one", "two", "three")]
    answers = [racer.communicate() for racer in racers]
    assert sorted(out.split() for out, _ in answers) == [["1"], ["2"], ["3"]], answers
    assert [list_runs(tmp_path, name) for name in ("one", "two", "three")] == [[], [], []]


@pytest.mark.slow
def test_mlflows_own_pages_in_the_folder_show_the_runs(finished, free_port, start_server, monkeypatch):
    monkeypatch.chdir(finished)
    command, environment = make_ui_command(free_port)
    start_server(command, free_port, env=environment)
    experiment = json.loads(ask(free_port, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny"))[
        "experiment"
    ]
    found = json.loads(ask(free_port, "/api/2.0/mlflow/runs/search", experiment_ids=[experiment["experiment_id"]]))
    assert sorted(run["info"]["status"] for run in found["runs"]) == ["FAILED", "FINISHED", "FINISHED"]
    for run in found["runs"]:
        assert {param["key"] for param in run["data"]["params"]} == set(SETTINGS)
    run_id = next(run["info"]["run_id"] for run in found["runs"] if run["info"]["status"] == "FINISHED")
    listed = json.loads(ask(free_port, f"/api/2.0/mlflow/artifacts/list?run_id={run_id}&path=images"))
    picture = next(file["path"] for file in listed["files"] if file["path"].endswith(".png"))
    assert ask(free_port, f"/get-artifact?path={urllib.request.quote(picture)}&run_uuid={run_id}").startswith(
        b"\x89PNG"
    )
    assert b"<html" in ask(free_port, "/")


@pytest.mark.slow
def test_a_server_holds_the_runs_and_its_death_costs_the_mirror_and_not_the_grid(
    workplace, write_grid, bench, template_store, list_runs, free_port, start_server, monkeypatch
):
    far = workplace / "far away"
    far.mkdir()
    (far / "mlflow.db").write_bytes(template_store.read_bytes())
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(free_port),
        "--workers",
        "1",
    ]
    server = start_server([*command, "--backend-store-uri", "sqlite:///mlflow.db"], free_port, cwd=far, env=environment)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")

    first = bench("run", "--grid", write_grid(), "--only", "loss=dice")
    assert (first.exit_code, f"http://127.0.0.1:{free_port}/#/experiments/" in first.stdout) == (0, True)
    (run,) = list_runs(far)
    assert run.info.status == "FINISHED"
    bench("predict", run.info.run_id, "photos/cat0.png", "--out", "out")
    assert (workplace / "out/cat0.png").is_file()

    show = "bench.terminal.ProgressView.show"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(show, lambda self, trial, event: stop_server(server))  # at the second trial's first event
    second = bench("run", "--grid", "grid.yaml")
    assert (second.exit_code, "MLflow could not be reached" in second.stdout) == (0, True)
    assert not (workplace / "mlflow.db").exists()
    results = [json.loads(path.read_text()) for path in workplace.glob("mlruns/journal/tiny/*/result.json")]
    assert [TrialResult(**result).status for result in results] == ["finished", "finished"]
