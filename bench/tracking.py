"""Brings MLflow's runs up to what the journal says. (Beside bench.registry the one room that imports mlflow.)

In:  folders of the journal.   Out: MLflow runs, one per execution of a trial, with true statuses; a run's files.
Knows nothing of how a trial runs, nor of who waits for it. Every call may fail, or take as long as the
server likes; done again it does what is missing, and nothing twice.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from bench.contents import (
    FAILURE_TAGS,
    compute_digest,
    list_epochs,
    list_failure_tags,
    list_files,
    list_last_metrics,
    list_pictures,
    list_tags,
    name_journal,
    tell_status,
)
from bench.description import describe_data, format_board_note, format_run_note, join_note, list_places, name_run
from bench.journal import History, read_history, read_result, read_settings
from bench.standing import Standing
from bench.store import ARTIFACTS, ENVIRONMENT, find_store_uri, lacks_default_store, make_store
from bench.trial import TrialResult, format_value
from bench.view import VIEW_TAG, format_view, is_kept_by_others

# An image is two files; the thumbnail is written last. Cut between the two, the larger one stands there twice.
THUMBNAIL_NAME = re.compile(r"overlays\W(\d+)\Wstep\W(\d+)\W.*\.webp")

EPOCHS_PER_CALL = 25  # a server takes at most 1000 metrics in one
MIRRORED = "mirrored"  # a tag that says which result a run has in full
NOTE = "mlflow.note.content"  # the description of a run or an experiment
BEST, REPORT = "best", "report"  # tags of the one run that is the best, and of the one that has the report
REPORT_FILE = "report.html"


@dataclass
class _Run:
    """What MLflow has of one execution."""

    run_id: str
    status: str
    tags: dict[str, str]
    is_deleted: bool
    has_params: bool
    has_data: bool  # the photos that it learns from and is measured on
    steps: set[int] | None = None  # the epochs it has; None: not asked yet
    images: set[tuple[str, int]] = field(default_factory=set)  # number and step


class Tracker:
    """One experiment in MLflow. Two at once would do things twice: who makes one holds the mirror's lock."""

    def __init__(self, experiment_folder: Path) -> None:
        self._client = connect()
        self.experiment_id = _find_or_make_experiment(self._client, experiment_folder.name)
        self._runs: dict[str, _Run] = {}  # by execution, as far as they were asked for
        self._num_changes = 0
        self.num_ended = 0  # results that were sent

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
        digest = compute_digest(folder)
        run = self._find_run(settings["execution"])
        if run is not None and (run.is_deleted or (digest and run.tags.get(MIRRORED) == digest)):
            return False  # what somebody deleted in MLflow stays deleted
        result = read_result(folder)  # first: the history of a trial with a result is all of it
        history = read_history(folder)
        status = tell_status(folder, result)
        if run is None and status == "KILLED" and not history.num_durable:
            return False  # it left nothing that counts
        num_changes = self._num_changes
        run = run or self._make_run(settings, history)
        if run.steps is None:
            self._ask_for_details(run)
        self._set_tags(run, list_tags(settings))  # those that earlier versions did not know
        self._send_facts(run, settings, history)
        self._set_note(run, format_run_note(settings, result))
        self._send_epochs(run, history, result)
        self._send_overlays(run, folder, history)
        if result is not None:
            self._send_result(run, folder, history, result)
        self._set_status(run, status, history)
        if digest:
            self._set_tags(run, {MIRRORED: digest})
            self.num_ended += 1
        return self._num_changes > num_changes

    def close_orphans(self, folders: list[Path]) -> None:
        """Runs of this journal that say RUNNING and whose folder is no more: they were killed."""
        there = {settings["execution"] for settings in map(read_settings, folders) if settings}
        ours = f"attributes.status = 'RUNNING' and tags.journal = '{name_journal()}'"
        for execution, run in self._find_runs(ours).items():
            if execution not in there and not run.is_deleted:
                self._client.set_terminated(run.run_id, "KILLED")

    def show_standing(self, standing: Standing, with_ranks: bool) -> Iterator[str]:
        """The leaderboard as the experiment's description, a view, the best run tagged; yields what was looked at.

        `with_ranks`: each run learns its rank too, which with every result changes for many.
        """
        tags = self._client.get_experiment(self.experiment_id).tags
        view = format_view(standing.list_varying())
        if tags.get(VIEW_TAG) != view and not is_kept_by_others(tags.get(VIEW_TAG, "")):
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, view)
        if not standing.board.rows:
            return
        note = join_note(tags.get(NOTE, ""), format_board_note(standing.board))
        if tags.get(NOTE) != note:
            self._client.set_experiment_tag(self.experiment_id, NOTE, note)
        yield self.experiment_id
        if with_ranks:
            self.look_through()
            places = list_places(standing.board)
            for row in standing.board.rows:
                for result in row.results:
                    settings = read_settings(standing.folders[result.key])
                    run = self._find_run(settings["execution"]) if settings else None
                    if settings and run and not run.is_deleted:
                        self._set_note(run, format_run_note(settings, result, places.get(result.key, "")))
                        yield run.run_id
        self._tag_best(standing)

    def log_report(self, page: Path) -> bool:
        """Put an HTML page beside the best run's files, in the place of an earlier one, whosever it was.

        False: no run is the best yet.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        content = page.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        best = self._find_tagged(BEST)
        for run in self._find_tagged(REPORT):
            if not best or run.info.run_id != best[0].info.run_id:
                get_artifact_repository(run.info.artifact_uri, find_store_uri()).delete_artifacts(REPORT_FILE)
                self._client.delete_tag(run.info.run_id, REPORT)
        if best and best[0].data.tags.get(REPORT) != digest:
            with TemporaryDirectory() as folder:
                (Path(folder) / REPORT_FILE).write_bytes(content)
                self._client.log_artifact(best[0].info.run_id, str(Path(folder) / REPORT_FILE))
            self._client.set_tag(best[0].info.run_id, REPORT, digest)
        return bool(best)

    def _tag_best(self, standing: Standing) -> None:
        """Of the runs that nobody deleted; at no moment two have the tag."""
        for result in standing.list_best():
            settings = read_settings(standing.folders[result.key])
            winner = self._find_run(settings["execution"]) if settings else None
            if winner and not winner.is_deleted:
                tagged = [run.info.run_id for run in self._find_tagged(BEST)]
                for run_id in tagged:
                    if run_id != winner.run_id:
                        self._client.delete_tag(run_id, BEST)
                if winner.run_id not in tagged:
                    self._client.set_tag(winner.run_id, BEST, "true")
                return

    def _find_tagged(self, tag: str) -> list[Any]:
        return list(self._client.search_runs([self.experiment_id], f"tags.{tag} LIKE '%'"))

    def _find_run(self, execution: str) -> _Run | None:
        if execution not in self._runs:
            self._runs |= self._find_runs(f"tags.execution = '{execution}'")
        return self._runs.get(execution)

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
                    bool(found.inputs and found.inputs.dataset_inputs),
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
        tags = list_tags(settings)
        made = self._change(
            self._client.create_run,
            self.experiment_id,
            start_time=history.begun_ms,
            tags=tags,
            run_name=name_run(settings["name"]),
        )
        run = _Run(made.info.run_id, "RUNNING", tags, is_deleted=False, has_params=False, has_data=False, steps=set())
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
            params = [Param(name, format_value(value)) for name, value in varying_first]
            self._change(self._client.log_batch, run.run_id, params=params, synchronous=True)
            run.has_params = True
        if not run.has_data:
            self._change(self._client.log_inputs, run.run_id, _make_inputs(settings["data"]))
            run.has_data = True
        if history.started is not None:
            facts = {name: history.started[name] for name in ("device", "precision")} | history.started["environment"]
            self._set_tags(run, facts)  # no metric yet: val/miou must be the first

    def _send_epochs(self, run: _Run, history: History, result: TrialResult | None) -> None:
        """Those that no kill takes back, each with the time at which it was; all, once nothing will go on from them."""
        assert run.steps is not None
        epochs = list_epochs(history, result)
        missing = [line for line in epochs if line["epoch"] not in run.steps]
        for start in range(0, len(missing), EPOCHS_PER_CALL):
            lines = missing[start : start + EPOCHS_PER_CALL]
            points = [(line["metrics"] | line.get("system", {}), line["epoch"], line["time_ms"]) for line in lines]
            self._send_metrics(run, points)
            run.steps |= {line["epoch"] for line in lines}

    def _send_overlays(self, run: _Run, folder: Path, history: History) -> None:
        for name, step, path in list_pictures(folder, history):
            if (name, step) not in run.images:
                with Image.open(path) as image:
                    key = f"overlays/{name}"
                    self._change(self._client.log_image, run.run_id, image, key=key, step=step, synchronous=True)
                run.images.add((name, step))

    def _send_result(self, run: _Run, folder: Path, history: History, result: TrialResult) -> None:
        metrics = list_last_metrics(folder, result)
        if metrics:
            self._send_metrics(run, [(metrics, 0, history.ended_ms or 0)])
        self._set_tags(run, list_failure_tags(history, result))
        for path, place in list_files(folder):
            self._change(self._client.log_artifact, run.run_id, str(path), place)

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

    def _set_note(self, run: _Run, note: str) -> None:
        self._set_tags(run, {NOTE: join_note(run.tags.get(NOTE, ""), note)})

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


def _make_inputs(data: dict[str, Any]) -> list[Any]:
    """The photos as inputs of a run: what MLflow's column of datasets shows. No photo is read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(photos.name, photos.digest, "local", json.dumps({"uri": photos.source}), profile=photos.profile),
            [InputTag("mlflow.data.context", photos.context)],
        )
        for photos in describe_data(data)
    ]


def connect() -> Any:
    """A client of the store, which is made first if it is MLflow's default and not there yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.ERROR)
    if lacks_default_store():
        make_store(MlflowClient)
    return MlflowClient(tracking_uri=find_store_uri())


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
