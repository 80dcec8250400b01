"""What the journal has of a trial -> what its run in MLflow is to hold: tags, points, pictures, files, a status.

In:  a trial's folder, and what was read of it.   Out: names and values, in MLflow's words.
Knows nothing of MLflow's client, nor of what a run has already.
"""

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.description import make_color, name_setting
from bench.journal import History, Line, is_running, read_json
from bench.trial import TrialResult

# The image grid opens at step 0 and shows a run only where it has an image: the same steps for
# all runs, whatever their best epochs, and the best model's pictures first.
OVERLAY_STEPS = {"best": 0, "first": 1, "last": 2}

# What a run keeps of a trial's folder, and in which folder of its own.
FILES = (
    ("settings.json", None),
    ("per_photo.json", None),
    ("best.safetensors", "checkpoints"),
    ("last.safetensors", "checkpoints"),
)
LOG_CHARACTERS = 5000  # of a dead worker's; a tag holds no more
FAILURE_TAGS = ("failure_kind", "failure_reason", "failure_log")
VERSION = b"3"  # raised when a run is to hold more of a result than before: `bench sync` then sends it


def compute_digest(folder: Path) -> str:
    """Of a trial's last word, or "" while there is none."""
    try:
        content = (folder / "result.json").read_bytes()
    except OSError:
        return ""
    test = folder / "test.json"
    return hashlib.sha256(VERSION + content + (test.read_bytes() if test.is_file() else b"")).hexdigest()[:16]


def tell_status(folder: Path, result: TrialResult | None) -> str:
    """FINISHED, FAILED, RUNNING or KILLED."""
    if result is not None:
        return "FINISHED" if result.status == "finished" else "FAILED"
    return "RUNNING" if is_running(folder) else "KILLED"


def name_journal() -> str:
    """Which journal runs belong to: several machines may mirror into one server."""
    return f"{platform.node()}:{Path.cwd()}".replace("'", "")


def list_tags(settings: dict[str, Any]) -> dict[str, str]:
    """What a run is known by from its beginning."""
    tags = {
        "setting": name_setting(settings["name"]),  # first: MLflow's list of what to group by shows it at the top
        "execution": settings["execution"],
        "mlflow.runColor": make_color(settings["number"]),
        "mlflow.source.name": "bench run",
        "trial_key": settings["key"],
        "journal": name_journal(),
        "grid": settings["grid"],
    }
    if settings.get("is_rung"):
        epochs = settings["settings"]["epochs"]
        tags["rung"] = f"{epochs} epoch{'' if epochs == 1 else 's'}"
    return tags | {f"data.{name}": str(value) for name, value in settings["data"].items()}


def list_epochs(history: History, result: TrialResult | None) -> list[Line]:
    """Those that no kill takes back; all, once nothing will go on from them."""
    is_final = result is not None and (result.status == "finished" or not history.num_durable)
    return [line for line in history.epochs if is_final or line["epoch"] <= history.num_durable]


def list_pictures(folder: Path, history: History) -> Iterator[tuple[str, int, Path]]:
    """(number, step, file) of every picture that is there."""
    for line in history.overlays:
        for number in range(1, line["num_photos"] + 1):
            path = folder / "overlays" / f"{number:02d}-{line['which']}.png"
            if path.is_file():
                yield f"{number:02d}", OVERLAY_STEPS[line["which"]], path


def list_last_metrics(folder: Path, result: TrialResult) -> dict[str, float]:
    """What is measured once: the best epoch, the costs, the test."""
    metrics: dict[str, float] = {}
    if result.status == "finished":
        if not result.is_rung:  # MLflow's lists and charts rank by these, and a rung is never ranked
            metrics = {"val/best_epoch": float(result.best_epoch or 0), "val/best_miou": result.metrics["val/miou"]}
        once = ("cost/", "val/miou_flip")
        metrics |= {name: value for name, value in result.metrics.items() if name.startswith(once)}
    test = read_json(folder / "test.json")
    return metrics | (test["metrics"] if test is not None else {})


def list_failure_tags(history: History, result: TrialResult) -> dict[str, str]:
    """Why a trial ended without a model; nothing for one that did not."""
    if result.status == "finished":
        return {}
    log = history.failures[-1]["log"] if history.failures else ""
    return dict(zip(FAILURE_TAGS, (result.failure or "", result.reason, log[-LOG_CHARACTERS:]), strict=True))


def list_files(folder: Path) -> list[tuple[Path, str | None]]:
    """What of a trial's folder its run keeps, and in which folder of its own."""
    return [(folder / name, place) for name, place in FILES if (folder / name).is_file()]
