"""How an experiment stands, read from its folders; and what MLflow is told of that, each time and once."""

import base64
import json
import shutil
import zlib
from pathlib import Path

import pytest

from bench.journal import list_folders, read_result
from bench.mirror import sync_all
from bench.standing import read_standing
from bench.tracking import Tracker
from bench.trial import LATER_SETTINGS
from bench.view import VIEW_TAG, format_view, is_kept_by_others

EXPERIMENT_FOLDER = Path("mlruns/journal/tiny")
NOTE = "mlflow.note.content"


def open_store():
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{Path('mlflow.db').resolve()}")  # MLflow keeps one store for each name


def read_experiment():
    return open_store().get_experiment_by_name("tiny")


def sync():
    return [was_missing for _, _, was_missing in sync_all(EXPERIMENT_FOLDER)]


def find_runs(which):
    return {run.info.run_name: run for run in open_store().search_runs([read_experiment().experiment_id], which)}


def rewrite(folder, name, change):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(content), indent=1))


def find_folder(lr):
    return next(EXPERIMENT_FOLDER.glob(f"lr={lr}-*"))


def make_the_poor_trial_win():
    """Its scores become better than the other's; the files that its result vouches for keep their size."""
    folder = find_folder("0.0001")
    rewrite(folder, "result.json", lambda result: result | {"metrics": result["metrics"] | {"val/miou": 0.99}})
    good = find_folder("0.03")
    shutil.copy(good / "per_photo.json", folder / "per_photo.json")
    size = (folder / "per_photo.json").stat().st_size

    def vouch(result):
        result["files"]["per_photo.json"]["num_bytes"] = size
        return result

    rewrite(folder, "result.json", vouch)


def test_the_standing_folds_what_finished_and_counts_what_failed(finished_copy):
    standing = read_standing(EXPERIMENT_FOLDER)
    assert [row.settings["lr"] for row in standing.board.rows] == [0.03, 0.0001]
    assert [result.settings["lr"] for result in standing.board.failed] == [1e30]
    assert standing.list_varying() == ["lr"]
    assert [result.settings["lr"] for result in standing.list_best()] == [0.03, 0.0001]


def test_results_on_other_photos_than_the_latest_do_not_stand_beside_them(finished_copy):
    rewrite(find_folder("0.0001"), "result.json", lambda result: result | {"data_fingerprint": "other photos"})
    assert [row.settings["lr"] for row in read_standing(EXPERIMENT_FOLDER).board.rows] == [0.0001]


@pytest.mark.parametrize(("photos", "num_stopped"), [("the same", 0), ("others", 1)])
def test_a_setting_with_a_rung_is_stopped_unless_it_was_begun_in_full_on_the_same_photos(
    finished_copy, photos, num_stopped
):
    """Begun by an earlier version, which had fewer settings."""
    folder = find_folder("0.0001")
    full = read_result(folder)
    rung = {"is_rung": True, "settings": full.settings | {"epochs": 2}}
    rewrite(folder, "result.json", lambda result: result | rung)
    begun = EXPERIMENT_FOLDER / "lr=0.0001-0123456789"
    begun.mkdir()
    kept = {"execution": "1", "key": "0123456789", "data": {"fingerprint": full.data_fingerprint}}
    kept["settings"] = {name: value for name, value in full.settings.items() if name not in LATER_SETTINGS}
    if photos == "others":
        kept["data"]["fingerprint"] = "others"
    (begun / "settings.json").write_text(json.dumps(kept))
    assert len(read_standing(EXPERIMENT_FOLDER).board.stopped) == num_stopped


def test_a_result_without_its_counts_is_left_out_and_an_empty_folder_has_no_rows(finished_copy, tmp_path):
    path = find_folder("0.03") / "per_photo.json"
    path.write_text(" " * path.stat().st_size)
    assert read_result(path.parent) is not None
    assert [row.settings["lr"] for row in read_standing(EXPERIMENT_FOLDER).board.rows] == [0.0001]
    assert read_standing(tmp_path / "nothing").board.rows == ()


def test_a_second_sync_leaves_descriptions_tags_and_inputs_as_they_are(finished_copy):
    def look():
        store = open_store()
        runs = store.search_runs([read_experiment().experiment_id])
        return read_experiment().tags, [(run.data.tags, run.inputs.to_dictionary()) for run in runs]

    assert sync() == [True] * 3
    before = look()
    assert sync() == [False] * 3
    assert look() == before
    assert sum(line.startswith("|") for line in before[0][NOTE].splitlines()) == 2 + 2


def test_one_run_is_the_best_and_another_when_another_wins(finished_copy):
    sync()
    assert list(find_runs("tags.best = 'true'")) == ["0.03"]
    make_the_poor_trial_win()
    sync()
    assert list(find_runs("tags.best = 'true'")) == ["0.0001"]
    assert "rank 1 of 2" in find_runs("tags.best = 'true'")["0.0001"].data.tags[NOTE]
    assert "rank 2 of 2" in find_runs("tags.setting = '0.03'")["0.03"].data.tags[NOTE]


def test_where_the_best_run_was_deleted_in_mlflow_the_next_one_is_the_best(finished_copy):
    sync()
    open_store().delete_run(find_runs("tags.best = 'true'")["0.03"].info.run_id)
    sync()
    assert list(find_runs("tags.best = 'true'")) == ["0.0001"]


def test_the_report_stands_with_the_best_run_alone(finished_copy, tmp_path):
    def list_reports():
        store = open_store()
        return {
            name: (Path(store.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text())
            for name, run in find_runs("").items()
            if "report.html" in {file.path for file in store.list_artifacts(run.info.run_id)}
        }

    page = tmp_path / "page.html"
    page.write_text("first")
    assert not Tracker(EXPERIMENT_FOLDER).log_report(page)
    sync()
    assert Tracker(EXPERIMENT_FOLDER).log_report(page)
    assert list_reports() == {"0.03": "first"}
    page.write_text("second")
    Tracker(EXPERIMENT_FOLDER).log_report(page)
    assert list_reports() == {"0.03": "second"}
    make_the_poor_trial_win()
    sync()
    Tracker(EXPERIMENT_FOLDER).log_report(page)
    assert list_reports() == {"0.0001": "second"}


def test_what_somebody_wrote_in_an_experiments_description_stays(finished_copy):
    sync()
    ours = read_experiment().tags[NOTE]
    open_store().set_experiment_tag(read_experiment().experiment_id, NOTE, "Cats of our street.\n\n" + ours)
    make_the_poor_trial_win()
    sync()
    note = read_experiment().tags[NOTE]
    assert note.startswith("Cats of our street.\n\nLeaderboard")
    assert "**lr = 0.0001** leads" in note


def unpack(view):
    state = json.loads(view)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(state)))


def test_the_view_has_the_settings_that_vary_and_none_of_its_charts_stands_in_no_section():
    state = unpack(format_view(["lr", "loss", "seed"]))
    assert state["selectedColumns"][:3] == ["params.`lr`", "params.`loss`", "params.`seed`"]
    (parallel,) = [chart for chart in state["compareRunCharts"] if chart["type"] == "PARALLEL"]
    assert parallel["selectedParams"] == ["lr", "loss"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
    assert "PARALLEL" not in {chart["type"] for chart in unpack(format_view([]))["compareRunCharts"]}


@pytest.mark.parametrize(
    ("view", "is_theirs"), [("", False), (format_view([]), False), ('{"updatedAt": 17}', True), ("[]", False)]
)
def test_a_view_that_somebody_saved_over_ours_is_theirs(view, is_theirs):
    assert is_kept_by_others(view) == is_theirs


def test_a_view_that_somebody_saved_over_ours_is_left_alone(finished_copy):
    sync()
    assert read_experiment().tags[VIEW_TAG] == format_view(["lr"])
    theirs = json.dumps(json.loads(format_view(["loss"])) | {"updatedAt": 17})
    open_store().set_experiment_tag(read_experiment().experiment_id, VIEW_TAG, theirs)
    sync()
    assert read_experiment().tags[VIEW_TAG] == theirs


def test_a_run_mirrored_before_it_had_data_and_a_setting_gets_them(finished_copy):
    """As an earlier version left it: another digest of the same result."""
    sync()
    folder = next(iter(list_folders(EXPERIMENT_FOLDER).values()))
    (name,) = find_runs(f"tags.trial_key = '{folder.name.rpartition('-')[2]}'")
    run_id = find_runs("")[name].info.run_id
    open_store().delete_tag(run_id, "setting")
    open_store().set_tag(run_id, "mirrored", "of old")
    assert sync().count(True) == 1
    run = open_store().get_run(run_id)
    assert run.data.tags["setting"] == name
    contexts = [data.tags[0].value for data in run.inputs.dataset_inputs]
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["photos", "val"]
    assert contexts == ["training", "validation"]
