"""The only file that imports mlflow: brings its runs up to what the journal says, and finds checkpoints again.

In:  folders of the journal.   Out: MLflow runs, one per execution of a trial, with true statuses; a run's files.
Knows nothing of how a trial runs, nor of who waits for it. Every call may fail, or take as long as the
server likes; done again it does what is missing, and nothing twice.
"""

import colorsys
import hashlib
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from bench.claim import hold
from bench.journal import ROOT, History, is_running, read_history, read_json, read_result, read_settings
from bench.store import ARTIFACTS, DEFAULT_STORE, ENVIRONMENT, find_store_uri, lacks_default_store
from bench.trial import TrialResult
from catseg.errors import InputError

# The image grid opens at step 0 and shows a run only where it has an image: the same steps for
# all runs, whatever their best epochs, and the best model's pictures first.
OVERLAY_STEPS = {"best": 0, "first": 1}
# An image is two files; the thumbnail is written last. Cut between the two, the larger one stands there twice.
THUMBNAIL_NAME = re.compile(r"overlays\W(\d+)\Wstep\W(\d+)\W.*\.webp")

# What a run keeps of a trial's folder, and in which folder of its own.
FILES = (
    ("settings.json", None),
    ("per_photo.json", None),
    ("best.safetensors", "checkpoints"),
    ("last.safetensors", "checkpoints"),
)
MAKING = ".mlflow-"  # where a new store is made, until it is whole
EPOCHS_PER_CALL = 25  # a server takes at most 1000 metrics in one
LOG_CHARACTERS = 5000  # of a dead worker's; a tag holds no more
FAILURE_TAGS = ("failure_kind", "failure_reason", "failure_log")
MIRRORED = "mirrored"  # a tag that says which result a run has in full


@dataclass
class _Run:
    """What MLflow has of one execution."""

    run_id: str
    status: str
    tags: dict[str, str]
    is_deleted: bool
    has_params: bool
    steps: set[int] | None = None  # the epochs it has; None: not asked yet
    images: set[tuple[str, int]] = field(default_factory=set)  # number and step


class Tracker:
    """One experiment in MLflow. Two at once would do things twice: who makes one holds the mirror's lock."""

    def __init__(self, experiment_folder: Path) -> None:
        self._client = _connect()
        self.experiment_id = _find_or_make_experiment(self._client, experiment_folder.name)
        self._runs: dict[str, _Run] = {}  # by execution, as far as they were asked for
        self._num_changes = 0

    def look_through(self) -> None:
        """Ask for all runs at once: faster than one by one for who is about to mirror many folders."""
        self._runs = self._find_runs("")

    def forget(self) -> None:
        """Somebody else may have changed the runs: ask again."""
        self._runs = {}

    def mirror(self, folder: Path) -> bool:
        """Bring the run of a trial's folder up to what stands there; whether anything was missing."""
        settings = read_settings(folder)
        if settings is None:
            return False
        digest = _compute_digest(folder)
        execution = settings["execution"]
        if execution not in self._runs:
            self._runs |= self._find_runs(f"tags.execution = '{execution}'")
        run = self._runs.get(execution)
        if run is not None and (run.is_deleted or (digest and run.tags.get(MIRRORED) == digest)):
            return False  # what somebody deleted in MLflow stays deleted
        result = read_result(folder)  # first: the history of a trial with a result is all of it
        history = read_history(folder)
        status = _tell_status(folder, result)
        if run is None and status == "KILLED" and not history.num_durable:
            return False  # it left nothing that counts
        num_changes = self._num_changes
        run = run or self._make_run(settings, history)
        if run.steps is None:
            self._ask_for_details(run)
        self._send_facts(run, settings, history)
        self._send_epochs(run, history, result)
        self._send_overlays(run, folder, history)
        if result is not None:
            self._send_result(run, folder, history, result)
        self._set_status(run, status, history)
        if digest:
            self._set_tags(run, {MIRRORED: digest})
        return self._num_changes > num_changes

    def close_orphans(self, folders: list[Path]) -> None:
        """Runs of this journal that say RUNNING and whose folder is no more: they were killed."""
        there = {settings["execution"] for settings in map(read_settings, folders) if settings}
        ours = f"attributes.status = 'RUNNING' and tags.journal = '{_name_journal()}'"
        for execution, run in self._find_runs(ours).items():
            if execution not in there and not run.is_deleted:
                self._client.set_terminated(run.run_id, "KILLED")

    def _find_runs(self, which: str) -> dict[str, _Run]:
        """Runs by execution. A request that was given up may have been granted: of two runs the first one stays."""
        from mlflow.entities import ViewType

        runs: dict[str, _Run] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                which,
                run_view_type=ViewType.ALL,
                max_results=1000,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            for found in page:
                execution = found.data.tags.get("execution")
                if execution is None:
                    continue  # not ours
                run = _Run(
                    found.info.run_id,
                    found.info.status,
                    dict(found.data.tags),
                    found.info.lifecycle_stage == "deleted",
                    bool(found.data.params),
                )
                before = runs.get(execution)
                if before is None or before.is_deleted:
                    runs[execution] = run
                elif not run.is_deleted:
                    self._client.delete_run(run.run_id)
            token = page.token
            if not token:
                return runs

    def _make_run(self, settings: dict[str, Any], history: History) -> _Run:
        tags = {
            "execution": settings["execution"],
            "mlflow.note.content": f"Settings that vary: {settings['name']}",
            "mlflow.runColor": _make_color(settings["number"]),
            "mlflow.source.name": "bench run",
            "trial_key": settings["key"],
            "journal": _name_journal(),
            "grid": settings["grid"],
        } | {f"data.{name}": str(value) for name, value in settings["data"].items()}
        made = self._change(
            self._client.create_run,
            self.experiment_id,
            start_time=history.begun_ms,
            tags=tags,
            run_name=_name_run(settings["name"]),
        )
        run = _Run(made.info.run_id, "RUNNING", tags, is_deleted=False, has_params=False, steps=set())
        self._runs[settings["execution"]] = run
        return run

    def _ask_for_details(self, run: _Run) -> None:
        """Which epochs and pictures a run has, that an earlier process sent."""
        steps = {metric.step for metric in self._client.get_metric_history(run.run_id, "train/loss")}
        for file in self._client.list_artifacts(run.run_id, "images"):
            name = THUMBNAIL_NAME.search(file.path)
            if name:
                run.images.add((name[1], int(name[2])))
        run.steps = steps

    def _send_facts(self, run: _Run, settings: dict[str, Any], history: History) -> None:
        """Settings as params, the varying ones first; as tags, on what it runs."""
        from mlflow.entities import Param

        if not run.has_params:
            varying_first = sorted(settings["settings"].items(), key=lambda item: item[0] not in settings["varying"])
            params = [Param(name, str(value)) for name, value in varying_first]
            self._change(self._client.log_batch, run.run_id, params=params, synchronous=True)
            run.has_params = True
        if history.started is not None:
            facts = {name: history.started[name] for name in ("device", "precision")} | history.started["environment"]
            self._set_tags(run, facts)  # no metric yet: val/miou must be the first

    def _send_epochs(self, run: _Run, history: History, result: TrialResult | None) -> None:
        """Those that no kill takes back, each with the time at which it was; all, once nothing will go on from them."""
        assert run.steps is not None
        is_final = result is not None and (result.status == "finished" or not history.num_durable)
        epochs = [line for line in history.epochs if is_final or line["epoch"] <= history.num_durable]
        missing = [line for line in epochs if line["epoch"] not in run.steps]
        for start in range(0, len(missing), EPOCHS_PER_CALL):
            lines = missing[start : start + EPOCHS_PER_CALL]
            self._send_metrics(run, [(line["metrics"], line["epoch"], line["time_ms"]) for line in lines])
            run.steps |= {line["epoch"] for line in lines}

    def _send_overlays(self, run: _Run, folder: Path, history: History) -> None:
        for line in history.overlays:
            for number in range(1, line["num_photos"] + 1):
                name, step = f"{number:02d}", OVERLAY_STEPS[line["which"]]
                path = folder / "overlays" / f"{name}-{line['which']}.png"
                if (name, step) in run.images or not path.is_file():
                    continue
                with Image.open(path) as image:
                    key = f"overlays/{name}"
                    self._change(self._client.log_image, run.run_id, image, key=key, step=step, synchronous=True)
                run.images.add((name, step))

    def _send_result(self, run: _Run, folder: Path, history: History, result: TrialResult) -> None:
        ended_ms = history.ended_ms or 0
        if result.status == "finished":
            costs = {name: value for name, value in result.metrics.items() if name.startswith("cost/")}
            best = {"val/best_epoch": float(result.best_epoch or 0), "val/best_miou": result.metrics["val/miou"]}
            self._send_metrics(run, [(best | costs, 0, ended_ms)])
        else:
            log = history.failures[-1]["log"] if history.failures else ""
            reasons = (result.failure or "", result.reason, log[-LOG_CHARACTERS:])
            self._set_tags(run, dict(zip(FAILURE_TAGS, reasons, strict=True)))
        test = read_json(folder / "test.json")
        if test is not None:
            self._send_metrics(run, [(test["metrics"], 0, ended_ms)])
        for name, artifact_path in FILES:
            if (folder / name).is_file():
                self._change(self._client.log_artifact, run.run_id, str(folder / name), artifact_path)

    def _set_status(self, run: _Run, status: str, history: History) -> None:
        if status != "FAILED":
            for tag in FAILURE_TAGS:  # of an attempt before the last
                if run.tags.pop(tag, None) is not None:
                    self._change(self._client.delete_tag, run.run_id, tag)
        if status == run.status:
            return
        if status == "RUNNING":
            self._change(self._client.update_run, run.run_id, status=status)
        else:
            self._change(self._client.set_terminated, run.run_id, status, history.ended_ms)
        run.status = status

    def _change(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request that changes a run, and count it."""
        self._num_changes += 1
        return request(*arguments, **options)

    def _set_tags(self, run: _Run, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        missing = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        if missing:
            entities = [RunTag(name, value) for name, value in missing.items()]
            self._change(self._client.log_batch, run.run_id, tags=entities, synchronous=True)
            run.tags |= missing

    def _send_metrics(self, run: _Run, points: list[tuple[dict[str, float], int, int]]) -> None:
        """(metrics, step, time) in one call: with SQLite each is a write to disk. The same again changes nothing."""
        from mlflow.entities import Metric

        entities = [Metric(name, value, ms, step) for metrics, step, ms in points for name, value in metrics.items()]
        self._change(self._client.log_batch, run.run_id, metrics=entities, synchronous=True)


@contextmanager
def fetch_checkpoint(run_id: str) -> Iterator[Path]:
    """The best checkpoint of an MLflow run, as a file for as long as it is needed."""
    if lacks_default_store():
        raise InputError(f"{run_id}: neither a file nor a run: there is no {DEFAULT_STORE} here; check the path")
    with TemporaryDirectory() as folder:
        try:
            path = _connect().download_artifacts(run_id, "checkpoints/best.safetensors", folder)
        except Exception as error:  # whatever a store, a server or a disk may raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{run_id}: neither a file nor a run with a checkpoint ({reason}); check the id") from None
        yield Path(path)


def find_trial_key(run_id: str) -> str:
    """The key of the trial whose run this is."""
    if lacks_default_store():
        raise InputError(f"--run {run_id}: there is no {DEFAULT_STORE} here; check the working folder")
    try:
        return str(_connect().get_run(run_id).data.tags["trial_key"])
    except Exception as error:  # as above
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--run {run_id}: no run of a trial ({reason}); check the id") from None


def _compute_digest(folder: Path) -> str:
    """Of a trial's last word, or "" while there is none."""
    try:
        content = (folder / "result.json").read_bytes()
    except OSError:
        return ""
    test = folder / "test.json"
    return hashlib.sha256(content + (test.read_bytes() if test.is_file() else b"")).hexdigest()[:16]


def _tell_status(folder: Path, result: TrialResult | None) -> str:
    if result is not None:
        return "FINISHED" if result.status == "finished" else "FAILED"
    return "RUNNING" if is_running(folder) else "KILLED"


def _connect() -> Any:
    """A client of the store, which is made first if it is MLflow's default and not there yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.ERROR)
    if lacks_default_store():
        _make_store(DEFAULT_STORE.resolve(), MlflowClient)
    return MlflowClient(tracking_uri=find_store_uri())


def _make_store(path: Path, make_client: Callable[..., Any]) -> None:
    """Create MLflow's database whole or not at all.

    Two processes that migrate one new file at once break it for good, and so does a kill in the
    middle. So it is made aside and linked into place; who comes second uses the first one's.
    """
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


def _name_run(name: str) -> str:
    """The values of what varies: MLflow's lists and legends cut a name off before a second `setting=value`."""
    return " ".join(term.partition("=")[2] for term in name.split())


def _make_color(index: int) -> str:
    """Colours far apart for runs side by side: MLflow's own repeat themselves."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 0.55 + 0.3 * (index % 3) / 2)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
