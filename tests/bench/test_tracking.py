"""The journal in MLflow: all of it, nothing twice, whatever was cut on the way; and what MLflow's own pages show."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bench.claim import take
from bench.journal import read_history, read_settings
from bench.registry import fetch_checkpoint
from bench.store import make_ui_command
from bench.tracking import Tracker
from bench.trial import SETTINGS, Checkpoint
from catseg.errors import InputError

ROOT = Path(__file__).parents[2]


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


# --- a journal brought over ----------------------------------------------------------------------------------------

EXPERIMENT_FOLDER = Path("mlruns/journal/tiny")


def list_trial_folders():
    return sorted(path for path in EXPERIMENT_FOLDER.iterdir() if path.is_dir())


def mirror_all():
    """How many of the trials' runs were not yet as they should be."""
    tracker = Tracker(EXPERIMENT_FOLDER)
    return sum(tracker.mirror(folder) for folder in list_trial_folders())


def describe_runs(folder, list_runs):
    """All that MLflow holds of each run, as far as it does not change from one time to the next."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    descriptions = []
    for run in list_runs(folder):
        run_id = run.info.run_id
        histories = {
            name: [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        # a picture is two files: of one that was cut between them the larger may be there twice, under other names
        files = {
            file.path.partition("+timestamp")[0] + Path(file.path).suffix
            for place in ("", "checkpoints", "images")
            for file in client.list_artifacts(run_id, place)
        }
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        descriptions.append((run.info.status, run.info.end_time, run.data.params, tags, histories, files))
    return descriptions


def test_what_was_sent_once_is_not_sent_again(finished_copy, list_runs):
    assert mirror_all() == 3
    before = describe_runs(finished_copy, list_runs)
    assert [run[0] for run in before] == ["FAILED", "FINISHED", "FINISHED"]
    assert mirror_all() == 0
    assert describe_runs(finished_copy, list_runs) == before


def test_epochs_and_ends_have_the_times_at_which_they_were(finished_copy, list_runs):
    mirror_all()
    histories = [read_history(folder) for folder in list_trial_folders()]
    assert {run.info.start_time for run in list_runs(finished_copy)} == {history.begun_ms for history in histories}
    assert {run.info.end_time for run in list_runs(finished_copy)} == {history.ended_ms for history in histories}


CALLS = ("create_run", "log_batch", "log_image", "log_artifact", "set_terminated", "search_runs", "get_metric_history")


@pytest.mark.slow
@pytest.mark.parametrize("granted", [True, False], ids=["granted but not answered", "not granted"])
def test_a_request_that_fails_is_made_up_for_later_and_nothing_stands_twice(
    finished_copy, list_runs, monkeypatch, granted
):
    """The n-th request to MLflow fails, for n = 1, 2, 3, ... until there are no more; then all is sent again."""
    from mlflow import MlflowClient

    best = next(folder for folder in list_trial_folders() if "0.03" in folder.name)
    failed = next(folder for folder in list_trial_folders() if "1e+30" in folder.name)
    Tracker(EXPERIMENT_FOLDER).mirror(best)
    Tracker(EXPERIMENT_FOLDER).mirror(failed)
    expected = describe_runs(finished_copy, list_runs)
    num_calls, fatal = 0, 0

    def wrap(original):
        def call(*arguments, **options):
            nonlocal num_calls
            num_calls += 1
            own_number = num_calls
            if own_number == fatal and not granted:
                raise ConnectionResetError("refused")
            answer = original(*arguments, **options)
            if own_number == fatal:
                raise ConnectionResetError("no answer")
            return answer

        return call

    for name in CALLS:
        monkeypatch.setattr(MlflowClient, name, wrap(getattr(MlflowClient, name)))
    for number in range(1, 100):
        fatal = -1
        client = MlflowClient(tracking_uri=f"sqlite:///{finished_copy / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
        client.rename_experiment(experiment.experiment_id, f"tiny {number}")
        num_calls, fatal = 0, number
        try:
            tracker = Tracker(EXPERIMENT_FOLDER)
            for folder in (best, failed):
                tracker.mirror(folder)
        except ConnectionResetError:
            fatal = -1
            tracker = Tracker(EXPERIMENT_FOLDER)
            for folder in (best, failed):
                tracker.mirror(folder)
        else:
            break
        assert describe_runs(finished_copy, list_runs) == expected, f"request {number}"
    assert 15 < number < 100


def test_a_run_that_was_made_twice_is_kept_once(finished_copy, list_runs):
    """As after a request that was given up and granted all the same, while it was made again."""
    from mlflow import MlflowClient

    mirror_all()
    before = describe_runs(finished_copy, list_runs)
    twin = list_runs(finished_copy)[0]
    client = MlflowClient(tracking_uri=f"sqlite:///{finished_copy / 'mlflow.db'}")
    client.create_run(twin.info.experiment_id, tags={"execution": twin.data.tags["execution"]})
    assert mirror_all() == 0
    assert describe_runs(finished_copy, list_runs) == before


def test_what_somebody_deleted_in_mlflow_stays_deleted(finished_copy, list_runs):
    from mlflow import MlflowClient

    mirror_all()
    client = MlflowClient(tracking_uri=f"sqlite:///{finished_copy / 'mlflow.db'}")
    client.delete_run(list_runs(finished_copy)[0].info.run_id)
    assert mirror_all() == 0
    assert len(list_runs(finished_copy)) == 2


def test_runs_that_nobody_is_at_work_on_get_their_true_status_and_other_peoples_none(finished_copy, list_runs):
    from mlflow import MlflowClient

    mirror_all()
    run = list_runs(finished_copy)[0]
    client, tags = MlflowClient(tracking_uri=f"sqlite:///{finished_copy / 'mlflow.db'}"), run.data.tags
    client.create_run(run.info.experiment_id, tags=tags | {"execution": "whose folder is no more"})
    client.create_run(run.info.experiment_id, tags=tags | {"execution": "x", "journal": "another machine:/home/tom"})
    Tracker(EXPERIMENT_FOLDER).close_orphans(list_trial_folders())
    statuses = [run.info.status for run in list_runs(finished_copy)]
    assert statuses == ["FAILED", "FINISHED", "FINISHED", "KILLED", "RUNNING"]


def test_of_a_trial_at_work_the_epochs_are_sent_that_no_kill_takes_back(finished_copy, list_runs):
    """The finished trial, as if it were in its fourth epoch, with a checkpoint after the second."""
    folder = next(folder for folder in list_trial_folders() if "0.03" in folder.name)
    (folder / "result.json").unlink()
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:5]))  # started, epoch 1, its overlays, epochs 2 and 3

    def ask_mlflow():
        Tracker(EXPERIMENT_FOLDER).mirror(folder)
        return [(run.info.status, run.data.metrics.get("val/miou")) for run in list_runs(finished_copy)]

    assert ask_mlflow() == []  # killed, and nothing of it counts
    settings = read_settings(folder)
    claim = take(EXPERIMENT_FOLDER, None, settings["key"])
    assert ask_mlflow() == [("RUNNING", None)]
    claim.write_event(Checkpoint(2, 0, 0.1, b"state"))
    second, third = (line["metrics"]["val/miou"] for line in read_history(folder).epochs[1:])
    assert second != third
    assert ask_mlflow() == [("RUNNING", second)]
    claim.release()
    assert ask_mlflow() == [("KILLED", second)]
    claim = take(EXPERIMENT_FOLDER, None, settings["key"])
    claim.write_event(Checkpoint(3, 0, 0.1, b"state"))
    assert ask_mlflow() == [("RUNNING", third)]
    claim.release()


def test_the_reasons_of_a_failure_go_when_it_was_tried_again_and_finished(finished_copy, list_runs):
    folder = next(folder for folder in list_trial_folders() if "0.03" in folder.name)
    finished = (folder / "result.json").read_text()
    failed = json.loads(finished) | {"status": "failed", "failure": "killed", "reason": "from outside", "metrics": {}}
    (folder / "result.json").write_text(json.dumps(failed))
    Tracker(EXPERIMENT_FOLDER).mirror(folder)
    (run,) = list_runs(finished_copy)
    assert (run.info.status, run.data.tags["failure_kind"]) == ("FAILED", "killed")
    (folder / "result.json").write_text(finished)
    Tracker(EXPERIMENT_FOLDER).mirror(folder)
    (run,) = list_runs(finished_copy)
    assert (run.info.status, "failure_kind" in run.data.tags) == ("FINISHED", False)
    assert run.data.metrics["val/best_miou"] > 0


# --- a store made, and pages of it ---------------------------------------------------------------------------------

MAKE_A_TRACKER = """
import sys
from pathlib import Path
from bench.tracking import Tracker

print(Tracker(Path(sys.argv[1])).experiment_id)
"""


def start_racer(folder, name):
    command = [sys.executable, "-c", MAKE_A_TRACKER, name]
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
    assert not list(tmp_path.glob(".mlflow-*"))
    assert [list_runs(tmp_path, name) for name in ("one", "two", "three")] == [[], [], []]


@pytest.mark.slow
def test_mlflows_own_pages_in_the_folder_show_the_runs(finished, free_port, start_server, ask, monkeypatch):
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
