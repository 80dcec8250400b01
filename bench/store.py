"""Where MLflow keeps its runs, and how to look at them.

In:  MLFLOW_TRACKING_URI, or nothing.   Out: the store's address, links and commands that show it.
Knows nothing of what is in it.
"""

import os
import sys
from pathlib import Path

from catseg.errors import InputError

DEFAULT_STORE = Path("mlflow.db")
ARTIFACTS = Path("mlruns/artifacts")
UI_PORT = 5000

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


def is_server(uri: str) -> bool:
    """Whether a store is somebody's server, not a file."""
    return uri.startswith(("http://", "https://"))


def format_ui_hint(experiment_id: str) -> list[str]:
    """How to see an experiment: the command, and the page to open: model training, as charts."""
    uri = find_store_uri()
    page = f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&workflowType=machine_learning"
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
