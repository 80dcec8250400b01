"""`bench compare` and `bench sync`: what the journal knows, without running anything."""

import json
import os
import shutil


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
