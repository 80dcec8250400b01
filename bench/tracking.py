"""The only file that imports mlflow: mirrors what the journal holds, and finds checkpoints again.

In:  trials and their events, in order.   Out: MLflow runs with true statuses; links; a run's files.
Knows nothing of how a trial runs. MLflow being down costs the mirror, never the training.
"""

import colorsys
import io
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from bench.trial import Checkpoint, EpochDone, Event, Failed, Finished, Overlays, Started, Trial, TrialResult
from catseg.errors import InputError

DEFAULT_STORE = Path("mlflow.db")
ARTIFACTS = Path("mlruns/artifacts")
UI_PORT = 5000

# The image grid opens at step 0 and shows a run only where it has an image: the same steps for
# all runs, whatever their best epochs, and the best model's pictures first.
OVERLAY_STEPS = {"best": 0, "first": 1}

# Set before mlflow is imported; whatever the user has set stands.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 holds up a dead server's caller for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def find_store_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's own default: mlflow.db in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _default_uri()


def _default_uri() -> str:
    return f"sqlite:///{DEFAULT_STORE.resolve()}"


def _lacks_default_store() -> bool:
    """MLflow's own store is the one to use, and nobody has made it yet."""
    return find_store_uri() == _default_uri() and not DEFAULT_STORE.is_file()


class Mirror:
    """One experiment's runs in MLflow, one per trial. The first error ends the mirroring, not the grid."""

    def __init__(self, experiment_name: str, grid_file: Path) -> None:
        self.problem = ""  # why mirroring ended, if it did
        self.experiment_id = ""
        self._grid_file = str(grid_file)
        self._run_id: str | None = None
        with self._guard():
            self._client = _connect()
            self.experiment_id = _find_or_make_experiment(self._client, experiment_name)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with _uninterrupted():
                yield
        except Exception as error:  # whatever a store, a server or a disk may raise
            self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"

    def close_stale(self, committed: Mapping[str, str]) -> None:
        """Give runs of this journal that still say RUNNING their true status: the lock says their driver is dead.

        `committed` is status by trial key; what is not in it was killed on the way.
        """
        if self.problem:
            return
        with self._guard():
            running = self._client.search_runs(
                [self.experiment_id], f"attributes.status = 'RUNNING' and tags.journal = '{_name_journal()}'"
            )
            for run in running:
                status = committed.get(run.data.tags.get("trial_key", ""), "killed")
                self._client.set_terminated(run.info.run_id, status.upper())

    def begin(self, trial: Trial, key: str, data: dict[str, object], color_index: int) -> str | None:
        """Open a run: settings as params, the varying ones first; what it was trained on and with as tags."""
        if self.problem:
            return None
        with self._guard():
            from mlflow.entities import Param

            varying_first = sorted(trial.settings.items(), key=lambda item: item[0] not in trial.varying)
            tags = {
                "mlflow.note.content": f"Settings that vary: {trial.name}",
                "mlflow.runColor": _make_color(color_index),
                "mlflow.source.name": "bench run",
                "trial_key": key,
                "journal": _name_journal(),
                "grid": self._grid_file,
            } | {f"data.{name}": str(value) for name, value in data.items()}
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=_name_run(trial))
            self._run_id = run.info.run_id
            self._client.log_batch(
                self._run_id, params=[Param(name, str(value)) for name, value in varying_first], synchronous=True
            )
            return self._run_id
        return None

    def record(self, event: Event) -> None:
        """Mirror one event into the open run."""
        if self.problem or self._run_id is None:
            return
        with self._guard():
            match event:
                case Started():
                    facts = {"device": event.device, "precision": event.precision} | event.environment
                    self._log(tags=facts)  # no metric yet: val/miou must be the first
                case EpochDone(epoch, metrics):
                    self._log(metrics=metrics, step=epoch)
                case Checkpoint():
                    pass  # logged once, by `end`: MLflow keeps no second version of a file apart
                case Overlays(which, _, png):
                    for number, panel in enumerate(png, 1):
                        image = Image.open(io.BytesIO(panel))
                        self._client.log_image(
                            self._run_id,
                            image,
                            key=f"overlays/{number:02d}",
                            step=OVERLAY_STEPS[which],
                            synchronous=True,
                        )
                case Finished(best_epoch, metrics):
                    costs = {name: value for name, value in metrics.items() if name.startswith("cost/")}
                    best = {"val/best_epoch": best_epoch, "val/best_miou": metrics["val/miou"]}
                    self._log(metrics=best | costs)
                case Failed(kind, reason):
                    self._log(tags={"failure_kind": kind, "failure_reason": reason, "failure_log": event.log[-5000:]})

    def end(self, trial_folder: Path, result: TrialResult) -> None:
        """Add the files of a committed trial and close its run with its true status."""
        if self.problem or self._run_id is None:
            return
        run_id = self._run_id
        with self._guard(), self._terminated("FINISHED" if result.status == "finished" else "FAILED"):
            for name, artifact_path in (
                ("settings.json", None),
                ("per_photo.json", None),
                ("best.safetensors", "checkpoints"),
                ("last.safetensors", "checkpoints"),
            ):
                if (trial_folder / name).is_file():
                    self._client.log_artifact(run_id, str(trial_folder / name), artifact_path)

    def kill(self) -> None:
        """Close the open run as KILLED: the driver was told to stop."""
        if self._run_id is not None:
            with self._guard(), self._terminated("KILLED"):
                pass

    @contextmanager
    def _terminated(self, status: str) -> Iterator[None]:
        """Whatever happens inside, a Ctrl-C too, the open run does not stay RUNNING."""
        run_id, self._run_id = self._run_id, None
        try:
            yield
        finally:
            self._client.set_terminated(run_id, status)

    def record_test(self, run_id: str, metrics: dict[str, float]) -> None:
        """Add the winner's test metrics to its run."""
        if self.problem:
            return
        with self._guard():
            self._run_id = run_id
            self._log(metrics=metrics)
        self._run_id = None

    def _log(self, metrics: dict[str, float] | None = None, tags: dict[str, str] | None = None, step: int = 0) -> None:
        """One transaction: with SQLite each costs a write to disk."""
        from mlflow.entities import Metric, RunTag

        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(name, value, now_ms, step) for name, value in (metrics or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
            synchronous=True,
        )


def format_ui_hint(experiment_id: str) -> list[str]:
    """How to see an experiment: the command, and the page to open: model training, as charts."""
    uri = find_store_uri()
    page = f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&workflowType=machine_learning"
    if uri.startswith(("http://", "https://")):
        return [f"{uri.rstrip('/')}/{page}"]
    command = "mlflow ui" if uri == _default_uri() else f"mlflow ui --backend-store-uri {uri}"
    return [command, f"http://127.0.0.1:{UI_PORT}/{page}"]


def make_ui_command(port: int) -> tuple[list[str], dict[str, str]]:
    """`mlflow ui` on the right store, without the workers and job runners that one person does not need."""
    uri = find_store_uri()
    if uri.startswith(("http://", "https://")):
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} is a server already; open it in a browser")
    if _lacks_default_store():
        raise InputError(f"{DEFAULT_STORE}: nothing tracked here yet; start with `bench run`, in this folder")
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *options], ENVIRONMENT | os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
    }


@contextmanager
def fetch_checkpoint(run_id: str) -> Iterator[Path]:
    """The best checkpoint of an MLflow run, as a file for as long as it is needed."""
    if _lacks_default_store():
        raise InputError(f"{run_id}: neither a file nor a run: there is no {DEFAULT_STORE} here; check the path")
    with TemporaryDirectory() as folder:
        try:
            path = _connect().download_artifacts(run_id, "checkpoints/best.safetensors", folder)
        except Exception as error:  # whatever a store, a server or a disk may raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{run_id}: neither a file nor a run with a checkpoint ({reason}); check the id") from None
        yield Path(path)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A Ctrl-C waits for the end of the block: a transaction torn in two keeps its lock on the store.

    The second one stops at once; what it leaves behind is mended by the next session, as after a kill -9.
    """
    caught: list[int] = []

    def remember(signum: int, _: object) -> None:
        if caught:
            os._exit(128 + signum)
        caught.append(signum)

    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {signum: signal.signal(signum, remember) for signum in stops}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if caught:
            signal.raise_signal(caught[0])


def _connect() -> Any:
    """A client of the store, which is made first if it is MLflow's default and not there yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.ERROR)
    if _lacks_default_store():
        _make_store(DEFAULT_STORE.resolve(), MlflowClient)
    return MlflowClient(tracking_uri=find_store_uri())


def _make_store(path: Path, make_client: Callable[..., Any]) -> None:
    """Create MLflow's database whole or not at all.

    Two processes that migrate one new file at once break it for good, and so does a kill in the
    middle. So it is made aside and linked into place; who comes second uses the first one's.
    """
    with TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        fresh = Path(folder) / path.name
        make_client(tracking_uri=f"sqlite:///{fresh}").search_experiments()
        try:
            path.hardlink_to(fresh)
        except FileExistsError:
            return


def _find_or_make_experiment(client: Any, name: str) -> str:
    """The experiment's id. Artifacts get an explicit place where the store is a local file."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = find_store_uri().startswith("sqlite:")
        location = (ARTIFACTS / name).resolve().as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=location))
    if experiment.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment {name} was deleted in MLflow; restore it there or rename it in the file")
    return str(experiment.experiment_id)


def _name_journal() -> str:
    """Which journal runs belong to: several machines may mirror into one server."""
    return f"{platform.node()}:{Path.cwd()}".replace("'", "")


def _name_run(trial: Trial) -> str:
    """The values of what varies: MLflow's lists and legends cut a name off before a second `setting=value`."""
    return " ".join(term.partition("=")[2] for term in trial.name.split())


def _make_color(index: int) -> str:
    """Colours far apart for runs side by side: MLflow's own repeat themselves."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 0.55 + 0.3 * (index % 3) / 2)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
