"""MLflow's store: where it is, and the links and commands that show it."""

import pytest

from bench.store import find_store_uri, format_ui_hint, make_ui_command
from catseg.errors import InputError


def test_the_store_is_mlflows_own_default_unless_the_user_says_otherwise(workplace, monkeypatch):
    assert find_store_uri() == f"sqlite:///{workplace / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert find_store_uri() == "http://tracking.example:5000"


def test_the_hint_names_the_command_and_the_page_that_show_the_runs_as_charts(workplace, monkeypatch):
    page = "/#/experiments/7/runs?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=bench"
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


def test_a_flag_says_which_store_and_beats_the_environment(workplace, bench, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    told = bench("ui", "--tracking-uri", "http://another.example:5000")
    assert (told.exit_code, "http://another.example:5000 is a server already" in told.stderr) == (2, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert "http://tracking.example:5000 is a server already" in bench("ui").stderr
