"""One folder per trial on disk: the truth of what was done.

In:  events, in order.   Out: files that are whole or absent; results, read back.
Knows nothing of MLflow or of how a trial runs.

    mlruns/journal/<experiment>/lock
    mlruns/journal/<experiment>/<trial name>-<key>/
        settings.json      what was trained, on which data
        events.jsonl       one line per event
        best.safetensors   last.safetensors   overlays/*.png   per_photo.json
        result.json        the commit: there is a result if and only if this file is there
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bench.trial import Checkpoint, Event, Finished, Overlays, Trial, TrialResult
from catseg.errors import InputError
from catseg.files import save_bytes

ROOT = Path("mlruns/journal")


@contextmanager
def lock_experiment(name: str) -> Iterator[Path]:
    """The experiment's folder, held by this process alone; the kernel lets go of it if the process dies."""
    folder = ROOT / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another working folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another `bench run` works on it; wait for its end or stop it") from None
        yield folder


def find_folder(experiment_folder: Path, key: str) -> Path | None:
    """The folder of the trial with this key, whatever the grid called it when it ran."""
    return next(iter(experiment_folder.glob(f"*-{key}")), None)


def read_result(experiment_folder: Path, key: str) -> TrialResult | None:
    """The committed result of a trial, or None: never run, or stopped on the way."""
    folder = find_folder(experiment_folder, key)
    path = folder / "result.json" if folder else None
    if path is None or not path.is_file():
        return None
    return TrialResult(**json.loads(path.read_text("utf-8")))


def read_results(experiment_folder: Path) -> list[TrialResult]:
    """All committed results of an experiment, of this grid file or an earlier form of it."""
    return [
        TrialResult(**json.loads(path.read_text("utf-8"))) for path in sorted(experiment_folder.glob("*/result.json"))
    ]


def begin(experiment_folder: Path, trial: Trial, key: str, data: dict[str, object]) -> Path:
    """A fresh folder for one execution; what a killed or failed one left behind goes."""
    old = find_folder(experiment_folder, key)
    if old is not None:
        shutil.rmtree(old)
    folder = experiment_folder / f"{trial.name.replace(' ', ',')}-{key}"
    (folder / "overlays").mkdir(parents=True)
    save_bytes(_to_json({"key": key, "settings": trial.settings, "data": data}), folder / "settings.json")
    return folder


def write_event(folder: Path, event: Event) -> None:
    """Keep one event: its files first, then its line."""
    match event:
        case Checkpoint(which, epoch, data):
            save_bytes(data, folder / f"{which}.safetensors")
            line: dict[str, object] = {"which": which, "epoch": epoch, "num_bytes": len(data)}
        case Overlays(which, epoch, png):
            for number, panel in enumerate(png, 1):
                save_bytes(panel, folder / "overlays" / f"{number:02d}-{which}.png")
            line = {"which": which, "epoch": epoch, "num_photos": len(png)}
        case Finished(best_epoch, metrics, photos, counts):
            per_photo = dict(zip(photos, counts, strict=True))
            columns = ["true_positives", "false_positives", "false_negatives"]
            save_bytes(_to_json({"columns": columns, "counts_per_class": per_photo}), folder / "per_photo.json")
            line = {"best_epoch": best_epoch, "metrics": metrics}
        case _:
            line = asdict(event)
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": type(event).__name__} | line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def commit(folder: Path, result: TrialResult) -> None:
    """Make the outcome final: after this line the trial is done, before it it never was."""
    save_bytes(_to_json(asdict(result)), folder / "result.json")


def write_test(folder: Path, source: str, metrics: dict[str, float]) -> None:
    """Keep the winner's test scores beside its result."""
    save_bytes(_to_json({"test": source, "metrics": metrics}), folder / "test.json")


def read_test(folder: Path, source: str) -> dict[str, float] | None:
    """The winner's scores on these test photos, if it was scored on them before."""
    path = folder / "test.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text("utf-8"))
    metrics: dict[str, float] = content["metrics"]
    return metrics if content["test"] == source else None


def _to_json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
