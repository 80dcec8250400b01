"""`bench run` from photos to ranking: what it leaves in the journal, in MLflow, on the screen, and after a stop."""

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import journal
from bench.driver import make_plan, run_pending
from bench.grid import load_experiment
from bench.tracking import Mirror
from bench.trial import SETTINGS, EpochDone, TrialResult
from catseg.dataset import load_data

EPOCH_METRICS = ("train/loss", "val/loss", "val/miou", "val/miou_per_photo", "val/dice")

# The second trial is long enough to be stopped in the middle.
LONG_GRID = """
experiment: tiny
data: {train: photos}
base: {init_features: 2, image_size: 32, batch_size: 4, loss: dice}
grid: {epochs: [1, 30]}
"""


def open_store(folder):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture
def finished_runs(finished, list_runs):
    """The runs of the `finished` folder by their learning rate: 1e+30 failed, 0.03 is the best."""
    return {run.data.params["lr"]: run for run in list_runs(finished)}


# --- what a run leaves ---------------------------------------------------------------------------------------------


def test_every_trial_has_one_run_with_a_true_status_and_the_command_fails_if_one_did(finished, finished_runs):
    statuses = {lr: run.info.status for lr, run in finished_runs.items()}
    assert statuses == {"1e+30": "FAILED", "0.03": "FINISHED", "0.0001": "FINISHED"}
    assert (finished / "errors").read_text() == ""
    assert (finished / "exit_code").read_text() == "1"


def test_every_run_holds_all_settings_as_params(finished_runs):
    for run in finished_runs.values():
        assert run.data.params.keys() == set(SETTINGS)
    assert finished_runs["0.03"].data.params.items() >= {"epochs": "8", "image_size": "32", "seed": "0"}.items()


def test_every_epoch_of_a_run_is_in_mlflow_as_it_is_in_the_journal(finished, finished_runs, read_events):
    client = open_store(finished)
    for name, events in read_events(finished).items():
        run = finished_runs[name.partition("-")[0].removeprefix("lr=") if "1e" not in name else "1e+30"]
        epochs = [event for event in events if event["event"] == "EpochDone"]
        assert len(epochs) == (0 if "1e+30" in name else 8)
        for metric in EPOCH_METRICS if epochs else ():
            history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
            assert history == [(epoch["epoch"], epoch["metrics"][metric]) for epoch in epochs]


def test_miou_is_the_first_metric_of_a_run_for_mlflow_compares_by_the_first(finished, finished_runs):
    with sqlite3.connect(finished / "mlflow.db") as store:
        for lr in ("0.03", "0.0001"):
            run_id = finished_runs[lr].info.run_id
            rows = store.execute("select key from latest_metrics where run_uuid = ? order by rowid", (run_id,))
            assert next(rows) == ("val/miou",)
    store.close()


def test_the_best_checkpoint_of_a_run_is_the_journals(finished, finished_runs, tmp_path):
    for lr in ("0.03", "0.0001"):
        run_id = finished_runs[lr].info.run_id
        path = open_store(finished).download_artifacts(run_id, "checkpoints/best.safetensors", str(tmp_path))
        (kept,) = finished.glob(f"mlruns/journal/tiny/lr={lr}-*/best.safetensors")
        assert Path(path).read_bytes() == kept.read_bytes()


def test_every_run_shows_the_same_photos_under_the_same_names_and_steps(finished, finished_runs, tmp_path):
    client = open_store(finished)
    shown = {}
    for lr in ("0.03", "0.0001"):
        run_id = finished_runs[lr].info.run_id
        names = [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]
        shown[lr] = {}
        for name in names:
            with Image.open(client.download_artifacts(run_id, name, str(tmp_path))) as image:
                shown[lr][name.partition("+timestamp")[0]] = np.asarray(image.convert("RGB"))[:40, :40]
    assert {name.partition("+step")[0] for name in shown["0.03"]} == {
        f"images/overlays~{number:02d}" for number in range(1, 5)
    }
    assert shown["0.03"].keys() == shown["0.0001"].keys()
    for name, photo in shown["0.03"].items():
        assert (photo == shown["0.0001"][name]).all()


def test_a_failed_run_says_its_kind_and_its_reason(finished_runs):
    tags = finished_runs["1e+30"].data.tags
    assert tags["failure_kind"] == "nonfinite"
    assert "loss is " in tags["failure_reason"]


def test_every_run_says_on_what_data_code_and_machine_it_ran(finished, finished_runs):
    settings = json.loads(next(finished.glob("mlruns/journal/tiny/*/settings.json")).read_text())
    for run in finished_runs.values():
        tags = run.data.tags
        assert tags["data.fingerprint"] == settings["data"]["fingerprint"]
        assert {"trial_key", "grid", "machine_fingerprint", "git_commit", "git_dirty", "torch"} <= tags.keys()
    assert len({run.data.tags["mlflow.runColor"] for run in finished_runs.values()}) == 3


def test_only_the_winner_is_scored_on_the_test_photos(finished, finished_runs):
    scored = [lr for lr, run in finished_runs.items() if "test/miou" in run.data.metrics]
    assert scored == ["0.03"]
    (path,) = finished.glob("mlruns/journal/tiny/*/test.json")
    assert path.parent.name.startswith("lr=0.03-")
    test_miou = json.loads(path.read_text())["metrics"]["test/miou"]
    assert test_miou == finished_runs["0.03"].data.metrics["test/miou"]
    assert f"test/miou {test_miou:.3f} on test" in (finished / "output").read_text()


def test_the_output_counts_the_trials_ranks_them_lists_the_failed_and_says_where_to_look(finished, find_ranking):
    output = (finished / "output").read_text()
    assert output.startswith("tiny: 3 trials, 0 done, 3 to do; 8 photos to train, 4 to validate;")
    assert [row[:2] for row in find_ranking(output)] == [["1", "0.03"], ["2", "0.0001"]]
    assert "FAILED  lr=1e+30: nonfinite: " in output
    lines = [line.strip() for line in output.splitlines()]
    assert "mlflow ui" in lines
    assert "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART&workflowType=machine_learning" in lines
    (best,) = [line.removeprefix("Best model: ") for line in lines if line.startswith("Best model: ")]
    assert (finished / best).is_file()
    assert "lr=0.03" in best
    assert all(line.isprintable() for line in lines)


def test_learning_is_seen_in_the_scores(finished_runs):
    """A bright square on a dark ground: who learns at a sane rate finds it, who hardly learns does not."""
    best = {lr: run.data.metrics.get("val/best_miou") for lr, run in finished_runs.items()}
    assert best["0.03"] > 0.7 > best["0.0001"]


# --- the same command again ----------------------------------------------------------------------------------------


def list_results(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("mlruns/journal/tiny/*/result.json")}


def test_the_same_command_again_runs_nothing_and_ranks_the_same(finished_copy, bench, list_runs, find_ranking):
    before = list_results(finished_copy)
    again = bench("run", "--grid", "grid.yaml")
    assert again.exit_code == 1
    assert "3 trials, 3 done, 0 to do" in again.stdout
    assert find_ranking(again.stdout) == find_ranking((finished_copy / "output").read_text())
    assert "FAILED  lr=1e+30: nonfinite: " in again.stdout
    assert list_results(finished_copy) == before
    assert list_runs(finished_copy) == []


def test_a_failure_is_tried_again_when_its_kind_is_named_and_only_then(finished_copy, bench, list_runs):
    before = list_results(finished_copy)
    other_kind = bench("run", "--grid", "grid.yaml", "--retry", "oom,killed")
    assert "0 to do" in other_kind.stdout
    same_kind = bench("run", "--grid", "grid.yaml", "--retry", "oom,nonfinite")
    assert (same_kind.exit_code, "2 done, 1 to do" in same_kind.stdout) == (1, True)
    after = list_results(finished_copy)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {name for name in after if "1e+30" in name}
    assert [(run.info.status, run.data.tags["failure_kind"]) for run in list_runs(finished_copy)] == [
        ("FAILED", "nonfinite")
    ]


def test_another_grid_takes_over_what_is_done_and_gets_the_same_losses_for_what_is_not(
    finished_copy, bench, read_events
):
    """The good trial's result is removed, its grid changed around it: it is run anew, to the same bit."""
    (folder,) = finished_copy.glob("mlruns/journal/tiny/lr=0.03-*")
    before = read_events(finished_copy)[folder.name]
    shutil.rmtree(folder)
    (finished_copy / "grid.yaml").write_text(
        "experiment: tiny\ndata: {train: photos, val: val}\nbase: {image_size: 32, epochs: 8, batch_size: 2}\n"
        "grid: {init_features: [4], lr: [0.0001, 0.03], loss: [bce_dice, dice]}\n"
    )
    again = bench("run", "--grid", "grid.yaml", "--only", "loss=bce_dice")
    assert (again.exit_code, "2 trials, 1 done, 1 to do" in again.stdout) == (0, True)
    (name,) = [name for name in read_events(finished_copy) if "lr=0.03" in name]
    after = read_events(finished_copy)[name]
    assert name.endswith(folder.name.rpartition("-")[2])
    losses = [
        [(event["metrics"]["train/loss"], event["metrics"]["val/loss"]) for event in events if "metrics" in event]
        for events in (
            [e for e in before if e["event"] == "EpochDone"],
            [e for e in after if e["event"] == "EpochDone"],
        )
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def test_changed_photos_are_other_data_and_are_trained_on(finished_copy, bench):
    with Image.open("photos/cat0.png") as image:
        photo_HW3 = np.array(image)
    photo_HW3[0, 0] ^= 1
    Image.fromarray(photo_HW3).save("photos/cat0.png")
    assert "3 trials, 0 done, 3 to do" in bench("plan", "--grid", "grid.yaml").stdout


def test_a_plan_tells_what_is_done_what_failed_and_what_is_left(finished_copy, bench):
    grid = finished_copy / "grid.yaml"
    grid.write_text(grid.read_text().replace("lr: [", "lr: [0.001, "))
    plan = bench("plan", "--grid", "grid.yaml")
    assert plan.exit_code == 0
    lines = plan.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["to", "do"],
        ["failed", "lr=1e+30"],
        ["finished", "lr=0.03"],
        ["finished", "lr=0.0001"],
    ]
    assert "4 trials, 3 done, 1 to do" in plan.stdout
    assert "About " in lines[-1]


def test_a_plan_of_untouched_work_estimates_and_writes_nothing(workplace, write_grid, bench):
    plan = bench("plan", "--grid", write_grid())
    assert (plan.exit_code, "2 trials, 0 done, 2 to do" in plan.stdout, "About " in plan.stdout) == (0, True, True)
    assert sorted(path.name for path in workplace.iterdir()) == ["grid.yaml", "photos"]


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_mlflow_out_of_reach_costs_the_mirror_and_not_the_grid(workplace, write_grid, bench, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = bench("run", "--grid", write_grid())
    assert result.exit_code == 0
    assert "MLflow could not be reached" in result.stdout
    assert "the results are in mlruns/journal/tiny" in result.stdout
    assert len(list(workplace.glob("mlruns/journal/tiny/*/result.json"))) == 2
    assert not (workplace / "mlflow.db").exists()
    assert "2 done, 0 to do" in bench("plan", "--grid", "grid.yaml").stdout


@pytest.fixture
def start_pending(tracked_workplace, write_grid):
    """The driver at work on a grid: its (trial, event) pairs, its mirror."""

    def start(**grid):
        experiment = load_experiment(write_grid(**grid), {}, None)
        data = load_data(experiment.data, [32])
        folder = tracked_workplace / "mlruns/journal/tiny"
        mirror = Mirror(experiment.name, tracked_workplace / "grid.yaml")
        plan = make_plan(experiment, data, folder, retry=())
        return run_pending(experiment, data, plan, folder, mirror, "cpu"), mirror

    return start


def test_a_store_that_breaks_under_way_stops_the_mirror_and_not_the_grid(start_pending, tracked_workplace):
    running, mirror = start_pending()
    results = []
    for _, event in running:
        if isinstance(event, TrialResult):
            results.append(event)
            with sqlite3.connect(tracked_workplace / "mlflow.db") as store:
                store.execute("drop table metrics")
            store.close()
            if len(results) == 1:
                assert mirror.problem == ""
                break
    results += [event for _, event in running if isinstance(event, TrialResult)]
    assert [result.status for result in results] == ["finished", "finished"]
    assert mirror.problem
    assert "\n" not in mirror.problem


def test_an_event_is_on_disk_before_anyone_sees_it(start_pending, tracked_workplace, list_runs, read_events):
    running, _ = start_pending()
    for _, event in running:
        if isinstance(event, EpochDone):
            (events,) = read_events(tracked_workplace).values()
            assert (events[-1]["event"], events[-1]["epoch"]) == ("EpochDone", event.epoch)
            (run,) = list_runs(tracked_workplace)
            assert run.data.metrics["val/miou"] == event.metrics["val/miou"]
            if event.epoch == 2:
                break
    running.close()
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["KILLED"]


@pytest.mark.parametrize(
    ("call", "status"), [("create_run", "KILLED"), ("log_batch", "KILLED"), ("set_terminated", "FINISHED")]
)
def test_a_ctrl_c_waits_for_what_is_being_written(
    start_pending, tracked_workplace, list_runs, monkeypatch, call, status
):
    """A transaction that is torn keeps its lock on the store: the run could not even be closed."""
    client_class = type(open_store(tracked_workplace))
    original = getattr(client_class, call)
    pressed = []

    def write_after_ctrl_c(*arguments, **options):
        if not pressed:
            os.kill(os.getpid(), signal.SIGINT)
        answer = original(*arguments, **options)
        pressed.append("written")
        return answer

    running, _ = start_pending()
    monkeypatch.setattr(client_class, call, write_after_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        list(running)
    assert pressed
    assert [run.info.status for run in list_runs(tracked_workplace)] == [status]
    assert len(list_results(tracked_workplace)) == (status == "FINISHED")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_while_the_checkpoint_goes_to_mlflow_leaves_no_run_running(
    start_pending, tracked_workplace, list_runs, monkeypatch
):
    client_class = type(open_store(tracked_workplace))
    log_artifact = client_class.log_artifact

    def stop_at_checkpoint(self, run_id, path, *arguments):
        if path.endswith("best.safetensors"):
            raise KeyboardInterrupt
        log_artifact(self, run_id, path, *arguments)

    running, _ = start_pending()
    monkeypatch.setattr(client_class, "log_artifact", stop_at_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        list(running)
    (run,) = list_runs(tracked_workplace)
    assert run.info.status != "RUNNING"


def test_a_run_left_running_gets_its_true_status_by_the_next_session_and_other_peoples_runs_none(
    tracked_workplace, write_grid, bench, list_runs
):
    """As after a kill -9 between the journal's commit and MLflow's last word, or in the middle of a trial."""
    bench("run", "--grid", write_grid(grid="loss: [dice]"))
    (run,) = list_runs(tracked_workplace)
    client, tags = open_store(tracked_workplace), run.data.tags
    client.update_run(run.info.run_id, status="RUNNING")
    client.create_run(run.info.experiment_id, tags=tags | {"trial_key": "never ended"})
    client.create_run(run.info.experiment_id, tags=tags | {"journal": "another machine:/home/tom"})
    assert "1 done, 0 to do" in bench("run", "--grid", "grid.yaml").stdout
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "KILLED", "RUNNING"]


def test_an_experiment_deleted_in_mlflow_is_said_and_costs_no_result(tracked_workplace, write_grid, bench):
    client = open_store(tracked_workplace)
    client.delete_experiment(client.create_experiment("tiny"))
    result = bench("run", "--grid", write_grid(grid="loss: [dice]"))
    assert result.exit_code == 0
    assert "deleted" in result.stdout
    assert list(tracked_workplace.glob("mlruns/journal/tiny/*/result.json"))


def test_a_second_run_of_the_same_experiment_at_the_same_time_is_refused(workplace, write_grid, bench):
    with journal.lock_experiment("tiny"):
        result = bench("run", "--grid", write_grid())
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "another `bench run` works on it" in result.stderr


@pytest.mark.parametrize("shapes", [None, []], ids=["missing", "without a cat"])
def test_bad_test_photos_are_refused_before_the_first_trial(workplace, write_grid, write_photos, bench, shapes):
    if shapes is not None:
        write_photos(workplace / "test", 2)
        for path in (workplace / "test").glob("*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"shapes": shapes}))
    result = bench("run", "--grid", write_grid(), "--test", "test")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "test" in result.stderr
    assert not list(workplace.glob("mlruns/journal/tiny/*/result.json"))


def test_validating_on_the_training_photos_is_said(tracked_workplace, write_grid, bench):
    result = bench("run", "--grid", write_grid(grid="loss: [dice]"), "--val", "train")
    assert result.exit_code == 0
    assert "6 photos to train, the same photos" in result.stdout
    assert "this shows what was memorised, not skill" in result.stdout


def test_the_same_folder_under_two_names_is_the_same_photos(tracked_workplace, write_grid, bench):
    result = bench("plan", "--grid", write_grid(grid="loss: [dice]"), "--val", "photos/../photos")
    assert "6 photos to train, the same photos" in result.stdout


# --- stops ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def start_long_run(tracked_workplace, start_bench, wait_until):
    """A real `bench run` whose first trial is done and whose second is in its second epoch or later."""

    def start():
        (tracked_workplace / "grid.yaml").write_text(LONG_GRID)
        begun_ns = time.time_ns()
        process = start_bench("run", "--grid", "grid.yaml")

        def second_trial_runs():
            assert process.poll() is None, process.communicate()
            for events in tracked_workplace.glob("mlruns/journal/tiny/epochs=30-*/events.jsonl"):
                with suppress(FileNotFoundError):  # an earlier attempt's, removed just now
                    return events.stat().st_mtime_ns > begun_ns and '"epoch": 2, "metrics"' in events.read_text()
            return False

        wait_until(second_trial_runs)
        return process

    return start


def check_that_the_rest_is_done(bench, folder, list_runs, num_killed=1):
    """After a stop: what was finished is kept, what was not is done now, and MLflow knows it."""
    assert len(list_results(folder)) == 1, "the run was over before it could be stopped"
    again = bench("run", "--grid", "grid.yaml")
    assert (again.exit_code, "2 trials, 1 done, 1 to do" in again.stdout) == (0, True)
    statuses = ["FINISHED", *["KILLED"] * num_killed, "FINISHED"]
    assert [run.info.status for run in list_runs(folder)] == statuses
    for path in folder.glob("mlruns/journal/tiny/*"):
        assert path.name == "lock" or (path / "result.json").is_file()


@pytest.mark.slow
def test_ctrl_c_sigterm_and_a_closed_terminal_keep_what_is_finished_and_the_same_command_does_the_rest(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    for num_killed, (stop, exit_code) in enumerate(
        ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)), 1
    ):
        process = start_long_run()
        if stop == signal.SIGTERM:
            process.terminate()
        else:
            os.killpg(process.pid, stop)  # a terminal signals all of its processes
        _, errors = process.communicate(timeout=60)
        assert process.returncode == exit_code
        assert "Traceback" not in errors
        wait_until(lambda pid=process.pid: not list_session(pid))
        assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", *["KILLED"] * num_killed]
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs, num_killed)


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_that_the_same_command_does_not_mend(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    process = start_long_run()
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not list_session(process.pid))
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "RUNNING"]
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)


@pytest.mark.slow
def test_an_impatient_second_ctrl_c_leaves_nothing_that_the_same_command_does_not_mend(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    process = start_long_run()
    for _ in range(2):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_until(lambda: not list_session(process.pid))
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)
