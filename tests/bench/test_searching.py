"""`bench run` of a grid with a search: killed between its rung and the rest, gone on with, shown, then regretted."""

import csv
import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from bench.jobs import Choice
from bench.journal import list_folders, read_result, read_settings
from tests.bench.conftest import BENCH

EPOCHS, FIRST = 4, 1
LRS = ("1e+30", "0.03", "0.01", "0.001", "1e-05")
GRID = f"""
experiment: tiny
data: {{train: photos, val: val}}
base: {{init_features: 4, image_size: 32, epochs: {EPOCHS}, batch_size: 2}}
grid: {{lr: [1.0e+30, 0.03, 0.01, 0.001, 0.00001]}}
seeds: [0, 1]
search: {{mode: halving, first_epochs: {FIRST}, keep: 2}}
"""
RUN = ("run", "--grid", "grid.yaml")


def read_all(folder):
    """(settings.json, result) of every trial that was begun, by lr, seed and epochs."""
    there = {}
    for trial_folder in list_folders(folder / "mlruns/journal/tiny").values():
        kept = read_settings(trial_folder)
        if kept is None:
            continue  # a kill came before it was more than a folder
        settings = kept["settings"]
        there[settings["lr"], settings["seed"], settings["epochs"]] = kept, read_result(trial_folder), trial_folder
    return there


def find_best(folder):
    """The rates of the two best short trainings, by what the journal says."""
    short = {lr: result for (lr, _, epochs), (_, result, _) in read_all(folder).items() if epochs == FIRST}
    finished = {lr: result.metrics["val/miou"] for lr, result in short.items() if result.status == "finished"}
    return set(sorted(finished, key=lambda lr: -finished[lr])[:2])


@pytest.fixture(scope="module")
def searched(tmp_path_factory, write_photos):
    """A folder whose `bench run` was killed as soon as it had chosen, and then went on to the end.

    `output`: of the second run. `killed`: what the journal held after the kill, as `read_all` gives it.
    """
    folder = tmp_path_factory.mktemp("searched")
    for name, count, seed in (("photos", 8, 0), ("val", 4, 1)):
        write_photos(folder / name, count, seed)
    (folder / "grid.yaml").write_text(GRID)
    before = subprocess.run([BENCH, "plan", *RUN[1:]], cwd=folder, capture_output=True, text=True, check=True).stdout
    process = subprocess.Popen([BENCH, *RUN], cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("Kept:"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    between = subprocess.run([BENCH, "plan", *RUN[1:]], cwd=folder, capture_output=True, text=True, check=True).stdout
    killed = read_all(folder)
    rest = subprocess.run([BENCH, *RUN], cwd=folder, capture_output=True, text=True, check=False)
    assert rest.stderr == ""
    assert rest.returncode == 1  # one rate is beyond all measure
    return {"folder": folder, "killed": killed, "output": rest.stdout, "plans": (before, between), "kept_line": line}


@pytest.fixture
def searched_copy(searched, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(searched["folder"], folder)
    monkeypatch.chdir(folder)
    return folder


def test_the_rung_trains_each_setting_with_one_seed_and_only_the_best_go_on(searched):
    there = read_all(searched["folder"])
    best = find_best(searched["folder"])
    assert {name for name in there if name[2] == FIRST} == {(float(lr), 0, FIRST) for lr in LRS}
    assert {name for name in there if name[2] == EPOCHS} == {(lr, seed, EPOCHS) for lr in best for seed in (0, 1)}
    assert all(kept["is_rung"] == (epochs == FIRST) for (_, _, epochs), (kept, _, _) in there.items())
    assert all(result.is_rung == kept["is_rung"] for kept, result, _ in there.values())
    assert len({kept["number"] for kept, _, _ in there.values()}) == len(there)


def test_after_a_kill_between_the_rung_and_the_rest_nothing_is_repeated_and_the_choice_stands(searched):
    chosen = {name for name, (_, result, _) in searched["killed"].items() if result and name[2] == FIRST}
    assert len(chosen) == len(LRS)
    assert [line for line in searched["output"].splitlines() if line.startswith("Kept:")] == [
        searched["kept_line"].strip()
    ]
    for name, (kept, result, folder) in read_all(searched["folder"]).items():
        before = searched["killed"].get(name)
        assert before is None or before[0]["execution"] == kept["execution"]
        if before is not None and before[1] is not None:
            assert before[1] == result
            starts = [line for line in (folder / "events.jsonl").read_text().splitlines() if '"Started"' in line]
            assert len(starts) == 1
    assert "tiny: 5 trials, 5 done, 0 to do" in searched["output"]


def test_a_plan_shows_the_rung_what_it_decided_and_the_cost_of_both_ways(searched, searched_copy, bench):
    before, between = (plan.splitlines() for plan in searched["plans"])
    assert [line.split()[0] for line in before[:15]] == ["to"] * 5 + ["waits"] * 10
    best = {f"lr={lr:g}" for lr in find_best(searched_copy)}
    assert [line.split()[0] for line in between[:5]] == ["failed", *["done"] * 4]
    assert {line.split()[1] for line in between[5:15] if not line.startswith("stopped")} <= best | {"do"}
    assert sum(line.startswith("stopped") for line in between) == 6
    for plan in (before, between):
        (line,) = [line for line in plan if line.startswith("Search: about")]
        assert "of its cost" in line
        assert any(line.startswith("About ") for line in plan)
    after = bench("plan", *RUN[1:]).stdout
    assert after.count("done ") == 4 + 4
    assert "tiny: 9 trials, 9 done, 0 to do" in after
    assert "\nAbout " not in after


def test_the_output_ranks_the_kept_names_the_stopped_and_says_what_was_saved(searched, find_ranking):
    output = searched["output"]
    best = find_best(searched["folder"])
    assert {float(row[1]) for row in find_ranking(output)} == best
    stopped = [line for line in output.splitlines() if line.startswith("stopped after 1 epoch, not ranked: lr=")]
    assert {float(line.partition("lr=")[2].partition(",")[0]) for line in stopped} == (
        {0.03, 0.01, 0.001, 0.00001} - best
    )
    (cost,) = [line for line in output.splitlines() if line.startswith("Search: ") and "in all" in line]
    assert "(6 of its trials by the rates of their rung)" in cost
    assert "Regret" not in output


def test_the_same_command_again_trains_nothing_and_chooses_and_ranks_the_same(searched, searched_copy, bench):
    before = read_all(searched_copy)
    again = bench(*RUN)
    assert again.exit_code == 1
    assert read_all(searched_copy) == before
    start = searched["output"].index("Kept:")
    for line in again.stdout.splitlines():
        if line.startswith(("Kept:", "stopped", "1 ", "2 ")):
            assert line in searched["output"][start:].splitlines()


def test_a_comparison_and_its_files_rank_what_was_trained_in_full_alone(searched_copy, bench, find_ranking):
    best = find_best(searched_copy)
    output = bench("compare", "tiny", "--csv", "all.csv", "--html", "page.html").stdout
    assert {float(row[1]) for row in find_ranking(output)} == best
    assert output.count("stopped after 1 epoch, not ranked") == 2
    rows = list(csv.DictReader(Path("all.csv").read_text().splitlines()))
    assert {float(row["lr"]) for row in rows if row["rank"]} == best
    assert [row["verdict"] for row in rows if not row["rank"]] == ["stopped after 1 epoch"] * 2
    page = Path("page.html").read_text()
    assert page.count("stopped after 1 epoch") == 2
    table = page.partition("<table id=leaderboard>")[2].partition("</table>")[0]
    assert table.count("<tr class=") == 2


def test_a_setting_whose_training_in_full_is_under_way_does_not_count_as_stopped(searched_copy, read_board):
    for name, (_, _, folder) in read_all(searched_copy).items():
        if name[2] == EPOCHS:
            (folder / "result.json").unlink()
    board = read_board(Path("mlruns/journal/tiny"))
    assert board.rows == ()
    assert {each.settings["lr"] for each in board.stopped} == {0.03, 0.01, 0.001, 0.00001} - find_best(searched_copy)


def test_a_run_calls_nothing_stopped_that_was_begun_in_full_and_left(searched_copy, bench):
    """As a `--regret` leaves it that was interrupted."""
    there = read_all(searched_copy)
    left = min({0.03, 0.01, 0.001, 0.00001} - find_best(searched_copy))
    kept, _, folder = there[min(find_best(searched_copy)), 0, EPOCHS]
    begun = folder.with_name("left-0123456789")
    begun.mkdir()
    settings = kept["settings"] | {"lr": left}
    (begun / "settings.json").write_text(json.dumps(kept | {"key": "0123456789", "settings": settings}))
    assert bench(*RUN).stdout.count("not ranked: lr=") == 1


def test_mlflow_has_the_rungs_as_runs_told_apart_and_out_of_its_rankings(searched, list_runs):
    runs = list_runs(searched["folder"])
    rungs = [run for run in runs if "rung" in run.data.tags]
    assert len(rungs) == 5
    assert len(runs) == 9
    assert {run.data.tags["rung"] for run in rungs} == {"1 epoch"}
    for run in rungs:
        assert "val/best_miou" not in run.data.metrics
        assert "best" not in run.data.tags
        assert "rank " not in run.data.tags["mlflow.note.content"]
    finished = [run for run in rungs if run.info.status == "FINISHED"]
    assert all("not ranked" in run.data.tags["mlflow.note.content"] for run in finished)
    assert all("val/best_miou" in run.data.metrics for run in runs if "rung" not in run.data.tags)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{searched['folder'] / 'mlflow.db'}")
    note = client.get_experiment_by_name("tiny").tags["mlflow.note.content"]
    assert sum(line.startswith("| ") for line in note.splitlines()) == 1 + 2  # the header and the kept
    assert note.count("stopped after 1 epoch, not ranked") == 2


def test_regret_trains_the_rest_and_says_what_was_lost(searched_copy, bench, find_ranking):
    answer = bench(*RUN, "--regret")
    assert {name[:2] for name in read_all(searched_copy) if name[2] == EPOCHS} == {
        (float(lr), seed) for lr in LRS for seed in (0, 1)
    }
    ranking = find_ranking(answer.stdout)
    assert {float(row[1]) for row in ranking} == {0.03, 0.01, 0.001, 0.00001}
    assert "not ranked" not in answer.stdout
    (regret,) = [line for line in answer.stdout.splitlines() if line.startswith("Regret: ")]
    best = find_best(searched_copy)
    if float(ranking[0][1]) in best:
        assert regret.startswith(f"Regret: none: the search chose the full grid's winner, lr={ranking[0][1]}, ")
    else:
        assert f"is won by lr={ranking[0][1]}" in regret
    assert "(measured)" in answer.stdout
    again = bench(*RUN)  # without the flag, what was trained stays ranked
    assert find_ranking(again.stdout)[0][1] == ranking[0][1]
    assert regret in again.stdout


def test_regret_without_a_search_is_refused(workplace, write_grid, bench):
    write_grid()
    answer = bench(*RUN, "--regret")
    assert answer.exit_code == 2
    assert answer.stderr == (
        "--regret: grid.yaml has no `search: {mode: halving}`, so nothing is stopped; leave it out\n"
    )


def test_where_every_short_training_fails_nothing_is_trained_in_full(tracked_workplace, bench):
    grid = GRID.replace("[1.0e+30, 0.03, 0.01, 0.001, 0.00001]", "[1.0e+30, 1.0e+31]").replace("keep: 2", "keep: 1")
    Path("grid.yaml").write_text(grid.replace("val: val", "val: null"))
    answer = bench(*RUN)
    assert answer.exit_code == 1
    assert "Kept: no setting, for every short training failed" in answer.stdout
    assert {name[2] for name in read_all(tracked_workplace)} == {FIRST}


def test_jobs_auto_is_chosen_anew_for_fewer_trials_than_shared_the_cores_in_the_rung(
    tracked_workplace, bench, monkeypatch
):
    asked = []

    def choose(plan, *_):
        asked.append(len(plan.pending))
        return Choice(len(plan.pending), "as many as there are")

    monkeypatch.setattr("bench.session.choose_jobs", choose)
    grid = GRID.replace("1.0e+30, 0.03, 0.01, 0.001, 0.00001", "0.03, 0.01").replace("keep: 2", "keep: 1")
    Path("grid.yaml").write_text(grid.replace("val: val", "val: null").replace("seeds: [0, 1]", "seeds: [0]"))
    assert bench(*RUN, "--jobs", "auto").exit_code == 0
    assert asked == [2, 1]


@pytest.mark.parametrize("rates", ["1.0e+30, 0.03, 0.01", "0.03, 0.01, 1.0e+30"])  # the last one may fail, too
def test_a_first_failure_stops_a_search_before_it_chooses_if_it_is_asked_to(tracked_workplace, bench, rates):
    grid = GRID.replace("1.0e+30, 0.03, 0.01, 0.001, 0.00001", rates)
    Path("grid.yaml").write_text(grid.replace("val: val", "val: null"))
    answer = bench(*RUN, "--fail-fast")
    assert answer.exit_code == 1
    assert "Kept:" not in answer.stdout
    assert "of its cost" not in answer.stdout
    results = [json.loads(path.read_text()) for path in Path("mlruns/journal/tiny").glob("*/result.json")]
    assert [result["is_rung"] for result in results if result["status"] == "failed"] == [True]
    assert all(result["is_rung"] for result in results)
