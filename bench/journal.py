"""What is on disk of each trial, read back: the truth of what was done.

In:  the folders under mlruns/journal/.   Out: results, histories, settings; what is not whole is as if it were absent.
Knows nothing of MLflow or of how a trial runs; bench/claim.py writes.

    mlruns/journal/<experiment>/
        lock                     held for a moment, by who makes or moves folders
        mirror.lock              held by the one process that brings MLflow up to date
        <trial name>-<key>/
            lock                 held by the one process that runs this trial
            settings.json        what is trained, on which data
            events.jsonl         a line per event, each with its checksum
            checkpoint-<epoch>-<step>.safetensors    the last two, until the trial has finished
            best.safetensors   last.safetensors   overlays/*.png   per_photo.json
            test.json            scorings on test photos, of those that won
            result.json          the commit: there is a result if and only if this file is there, whole
            result-<n>.json      earlier results, which `--retry` had tried again
        superseded/<trial name>-<key>-<n>/           what was done anew, as it was

Any process may read at any time, without a lock. A kill or a power cut leaves every file whole or
absent, and of events.jsonl the lines before the cut: what is torn is nowhere taken for something.
"""

import fcntl
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.counts import PhotoCounts, parse_counts
from bench.trial import LATER_SETTINGS, TrialResult

ROOT = Path("mlruns/journal")
SUPERSEDED = "superseded"
REPORT = "report.html"  # of an experiment, in its folder: made at the end of a session, not needed to go on

Int64 = npt.NDArray[np.int64]
Line = dict[str, Any]  # an event as it is kept: its name, its time, its fields


@dataclass(frozen=True)
class History:
    """What a trial's events add up to: an epoch that a resume did over counts once."""

    started: Line | None  # the last start
    epochs: tuple[Line, ...]  # EpochDone, in order
    checkpoints: tuple[Line, ...]  # oldest first
    overlays: tuple[Line, ...]
    failures: tuple[Line, ...]  # of all attempts
    machines: frozenset[str]  # fingerprints of those that the epochs were trained on
    begun_ms: int | None  # wall clock, of the first start; None: never
    ended_ms: int | None  # of the last line
    seconds: float  # from each start to what came of it, together

    @property
    def num_durable(self) -> int:
        """Epochs that a checkpoint holds: no kill takes them back."""
        return max((line["epoch"] for line in self.checkpoints), default=0)


def list_experiments() -> list[Path]:
    """The folders of all experiments that were ever run here."""
    return sorted(path for path in ROOT.glob("*") if path.is_dir())


def list_folders(experiment_folder: Path) -> dict[str, Path]:
    """The folders of an experiment's trials by their keys, whatever the grid called them when they ran."""
    try:
        names = sorted(os.listdir(experiment_folder))  # noqa: PTH208 - a tenth of the time of iterdir, for thousands
    except OSError:
        return {}
    return {name.rpartition("-")[2]: experiment_folder / name for name in names if "-" in name}


def list_superseded(experiment_folder: Path) -> list[Path]:
    """The folders of trials that were done anew, as they were before."""
    return sorted((experiment_folder / SUPERSEDED).glob("*-*"))


def read_result(folder: Path | None) -> TrialResult | None:
    """The committed result of a trial, or None: never run, or stopped on the way, or no longer whole."""
    content = read_json(folder / "result.json") if folder else None
    if folder is None or not isinstance(content, dict):
        return None
    known = {field.name for field in fields(TrialResult)}
    try:
        result = TrialResult(**{name: value for name, value in content.items() if name in known})
        settings = result.settings | LATER_SETTINGS | result.settings  # in the order in which they were kept
        result = replace(result, settings=settings)
        whole = all((folder / name).stat().st_size == file["num_bytes"] for name, file in result.files.items())
    except (TypeError, KeyError, AttributeError, OSError):
        return None
    return result if whole and folder.name.endswith(f"-{result.key}") else None


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What was to be trained on what, or None before the trial began."""
    content = read_json(folder / "settings.json")
    return content if isinstance(content, dict) and {"execution", "key", "settings"} <= content.keys() else None


def read_history(folder: Path) -> History:
    """The events of a trial up to the first line that is not whole."""
    started: Line | None = None
    epochs: list[Line] = []
    checkpoints: list[Line] = []
    machines: set[str] = set()
    others: dict[str, list[Line]] = {"Overlays": [], "Failed": []}
    begun_ms, ended_ms, busy_ms = None, None, 0
    for line in read_lines(folder / "events.jsonl")[0]:
        now_ms = line["time_ms"]
        if line["event"] not in ("Started", "Queued") and ended_ms is not None:
            busy_ms += max(0, now_ms - ended_ms)  # a clock may be set back
        ended_ms = now_ms
        match line["event"]:
            case "Started":
                started, begun_ms = line, begun_ms or now_ms
                machines = (machines if line["epoch"] or line["step"] else set()) | {
                    line["environment"].get("machine_fingerprint", "")
                }
                epochs = [epoch for epoch in epochs if epoch["epoch"] <= line["epoch"]]
                here = (line["epoch"], line["step"])
                checkpoints = [kept for kept in checkpoints if (kept["epoch"], kept["step"]) <= here]
            case "EpochDone":
                epochs.append(line)
            case "Checkpoint":
                checkpoints.append(line)
            case "Overlays" | "Failed" as name:
                others[name].append(line)
    overlays, failures = (tuple(lines) for lines in others.values())
    return History(
        started,
        tuple(epochs),
        tuple(checkpoints),
        overlays,
        failures,
        frozenset(machines),
        begun_ms,
        ended_ms,
        busy_ms / 1000,
    )


def is_running(folder: Path) -> bool:
    """Whether a living process holds this trial. The kernel lets go of a lock when its holder dies."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_counts(folder: Path) -> PhotoCounts | None:
    """What the best epoch hit and missed in each validation photo; None: not there, or not whole."""
    return parse_counts(read_json(folder / "per_photo.json"))


def gather_counts(experiment_folder: Path, results: Iterable[TrialResult]) -> dict[str, npt.NDArray[np.int64]]:
    """counts_NK3 by key of the results that have them for the same photos as most of the others."""
    folders = list_folders(experiment_folder)
    found = {result.key: read_counts(folders[result.key]) for result in results if result.key in folders}
    known = {key: counts for key, counts in found.items() if counts is not None}
    frequency = Counter(counts.photos for counts in known.values())
    common = frequency.most_common(1)[0][0] if frequency else ()
    return {key: counts.counts_NK3 for key, counts in known.items() if counts.photos == common}


def read_tests(folder: Path) -> list[Line]:
    """Every scoring of a trial on test photos, oldest first: `test` (the folder's name), `fingerprint`, `weights`,
    `time_ms`, `metrics`, and counts as in per_photo.json.

    Of those kept before photos had a fingerprint there is but the name, and the time of the file.
    """
    path = folder / "test.json"
    content = read_json(path)
    if not isinstance(content, dict) or not {"test", "metrics"} <= content.keys():
        return []
    if "time_ms" not in content:
        content["time_ms"] = path.stat().st_mtime_ns // 1_000_000
    earlier: list[Line] = content.pop("earlier", [])
    return [*earlier, {"fingerprint": None, "weights": None} | content]


def read_lines(path: Path) -> tuple[list[Line], int]:
    """The lines up to the first that is not whole, and how many bytes they are."""
    try:
        content = path.read_bytes()
    except OSError:
        return [], 0
    lines, num_bytes = [], 0
    for raw in content.splitlines(keepends=True):
        text, _, tail = raw.rpartition(b', "crc32": ')
        if tail != b'"%08x"}\n' % zlib.crc32(text):
            break
        lines.append(json.loads(text + b"}"))
        num_bytes += len(raw)
    return lines, num_bytes


def read_json(path: Path) -> Any:
    """What a file of ours holds, or None: it is not there, or not whole."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
