"""Where MLflow keeps its runs: made whole, found again, looked at.

In:  MLFLOW_TRACKING_URI, or nothing.   Out: the store's address, links and commands that show it.
Knows nothing of what is in it.
"""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.claim import hold
from bench.journal import ROOT
from bench.view import VIEW
from catseg.errors import InputError

DEFAULT_STORE = Path("mlflow.db")
ARTIFACTS = Path("mlruns/artifacts")
UI_PORT = 5000
MAKING = ".mlflow-"  # where a new store is made, until it is whole

# Set before mlflow is imported; whatever the user has set stands.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run that ends on a server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 holds up a dead server's caller for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def find_store_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's own default: mlflow.db in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _default_uri()


def lacks_default_store() -> bool:
    """MLflow's own store is the one to use, and nobody has made it yet."""
    return find_store_uri() == _default_uri() and not DEFAULT_STORE.is_file()


def make_store(make_client: Callable[..., Any]) -> None:
    """Create MLflow's own default database whole or not at all; `make_client` is MLflow's.

    Two processes that migrate one new file at once break it for good, and so does a kill in the
    middle. So it is made aside and linked into place; who comes second uses the first one's.
    """
    path = DEFAULT_STORE.resolve()
    ROOT.mkdir(parents=True, exist_ok=True)
    with hold(ROOT.with_name("store.lock")):
        for leftover in path.parent.glob(f"{MAKING}*"):  # a kill's
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists():
            return
        with TemporaryDirectory(dir=path.parent, prefix=MAKING) as folder:
            fresh = Path(folder) / path.name
            make_client(tracking_uri=f"sqlite:///{fresh}").search_experiments()
            with suppress(FileExistsError):  # MLflow's own pages were faster
                path.hardlink_to(fresh)


def is_server(uri: str) -> bool:
    """Whether a store is somebody's server, not a file."""
    return uri.startswith(("http://", "https://"))


def format_ui_hint(experiment_id: str) -> list[str]:
    """How to see an experiment: the command, and the page to open: model training, as charts, in our own view."""
    uri = find_store_uri()
    options = f"compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey={VIEW}"
    page = f"#/experiments/{experiment_id}/runs?{options}"
    if is_server(uri):
        return [f"{uri.rstrip('/')}/{page}"]
    command = "mlflow ui" if uri == _default_uri() else f"mlflow ui --backend-store-uri {uri}"
    return [command, f"http://127.0.0.1:{UI_PORT}/{page}"]


def make_ui_command(port: int) -> tuple[list[str], dict[str, str]]:
    """`mlflow ui` on the right store, without the workers and job runners that one person does not need."""
    uri = find_store_uri()
    if is_server(uri):
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} is a server already; open it in a browser")
    if lacks_default_store():
        raise InputError(f"{DEFAULT_STORE}: nothing tracked here yet; start with `bench run`, in this folder")
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *options], ENVIRONMENT | os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
    }


def _default_uri() -> str:
    return f"sqlite:///{DEFAULT_STORE.resolve()}"
