"""`bench run` from photos to ranking: what it leaves in the journal, in MLflow, on the screen, and after a stop."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.trial import SETTINGS

EPOCH_METRICS = ("train/loss", "val/loss", "val/miou", "val/miou_per_photo", "val/dice")


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
    page = "/#/experiments/1/runs?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=bench"
    assert f"http://127.0.0.1:5000{page}" in lines
    (best,) = [line.removeprefix("Best model: ") for line in lines if line.startswith("Best model: ")]
    assert (finished / best).is_file()
    assert "lr=0.03" in best
    assert all(line.isprintable() for line in lines)


def test_the_page_of_it_all_lies_beside_the_journal_and_in_mlflow_at_the_best_run(finished, finished_runs):
    page = finished / "mlruns/journal/tiny/report.html"
    assert f"All of it on one page: {page.relative_to(finished)}" in (finished / "output").read_text()
    assert b"One seed per setting: an order, not a comparison" in page.read_bytes()
    kept = {
        lr: list((finished / "mlruns").rglob(f"{run.info.run_id}/artifacts/report.html"))
        for lr, run in finished_runs.items()
    }
    assert [lr for lr, pages in kept.items() if pages] == ["0.03"]
    assert kept["0.03"][0].read_bytes() == page.read_bytes()


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
    assert len(list_runs(finished_copy)) == 3  # of a store that knew nothing


def test_a_failure_is_tried_again_when_its_kind_is_named_and_only_then(finished_copy, bench, list_runs):
    before = list_results(finished_copy)
    other_kind = bench("run", "--grid", "grid.yaml", "--retry", "oom,killed")
    assert "0 to do" in other_kind.stdout
    same_kind = bench("run", "--grid", "grid.yaml", "--retry", "oom,nonfinite")
    assert (same_kind.exit_code, "2 done, 1 to do" in same_kind.stdout) == (1, True)
    after = list_results(finished_copy)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {name for name in after if "1e+30" in name}
    (old,) = finished_copy.glob("mlruns/journal/tiny/superseded/*/result.json")
    assert json.loads(old.read_text())["failure"] == "nonfinite"
    statuses = sorted((run.info.status, run.data.tags.get("failure_kind")) for run in list_runs(finished_copy))
    assert statuses == [("FAILED", "nonfinite")] * 2 + [("FINISHED", None)] * 2


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
        ["done", "lr=0.03"],
        ["done", "lr=0.0001"],
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
    assert "MLflow has not got all of it (" in result.stdout
    assert "the results are in mlruns/journal/tiny, `bench sync` sends the rest" in result.stdout
    assert len(list(workplace.glob("mlruns/journal/tiny/*/result.json"))) == 2
    assert not (workplace / "mlflow.db").exists()
    assert "2 done, 0 to do" in bench("plan", "--grid", "grid.yaml").stdout


def test_an_experiment_deleted_in_mlflow_is_said_and_costs_no_result(tracked_workplace, write_grid, bench):
    client = open_store(tracked_workplace)
    client.delete_experiment(client.create_experiment("tiny"))
    result = bench("run", "--grid", write_grid(grid="loss: [dice]"))
    assert result.exit_code == 0
    assert "deleted" in result.stdout
    assert list(tracked_workplace.glob("mlruns/journal/tiny/*/result.json"))


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
