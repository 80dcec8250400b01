"""The right to write in a trial's folder, and what is written there.

In:  events, in order.   Out: files that are whole or absent, in the places that bench/journal.py names.
Knows nothing of MLflow or of how a trial runs.
"""

import fcntl
import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from bench.counts import format_counts
from bench.journal import (
    ROOT,
    SUPERSEDED,
    Line,
    list_folders,
    read_history,
    read_lines,
    read_result,
    read_settings,
    read_tests,
)
from bench.trial import Checkpoint, Event, Finished, Overlays, Trial, TrialResult, Weights
from catseg.errors import InputError
from catseg.files import append_bytes, remove_leftovers, save_bytes, sync_folder

LOCK_TRIES, LOCK_PAUSE_SECONDS = 3, 0.01  # who only looks whether it is held, holds it for an instant
CHECKPOINTS_KEPT = 2
CHECKPOINT_PREFIX = "checkpoint-"
KEPT_FILES = ("best.safetensors", "last.safetensors", "per_photo.json")  # that a result vouches for


@contextmanager
def hold(path: Path) -> Iterator[IO[bytes]]:
    """Wait for a lock and hold it; it ends with the process at the latest."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def make_experiment_folder(name: str) -> Path:
    """The folder of an experiment, made if it is not there."""
    folder = ROOT / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another working folder") from None
    return folder


class Claim:
    """A trial's folder, held by this process: the right to write there. Let go of by `release` or by dying."""

    def __init__(self, folder: Path, lock: IO[bytes]) -> None:
        self.folder = folder
        self._lock = lock

    def begin(self, trial: Trial, key: str, facts: Mapping[str, object]) -> None:
        """Make the folder ready for one more attempt: what a kill tore is cut off, what came before stays."""
        remove_leftovers(self.folder)
        (self.folder / "overlays").mkdir(exist_ok=True)
        remove_leftovers(self.folder / "overlays")
        lines, num_bytes = read_lines(self.folder / "events.jsonl")
        if lines and num_bytes < (self.folder / "events.jsonl").stat().st_size:
            with (self.folder / "events.jsonl").open("r+b") as file:
                file.truncate(num_bytes)
        elif not lines:
            (self.folder / "events.jsonl").unlink(missing_ok=True)
        if self.has_ended:  # failed and to be tried again, or no longer whole
            number = 1 + len(list(self.folder.glob("result-*.json")))
            (self.folder / "result.json").rename(self.folder / f"result-{number}.json")
        if read_settings(self.folder) is None:
            content = {
                "execution": uuid.uuid4().hex,  # of this folder: what MLflow knows it by
                "key": key,
                "name": trial.name,
                "varying": trial.varying,
                "settings": trial.settings,
                "is_rung": trial.is_rung,
                **facts,
            }
            save_bytes(_to_json(content), self.folder / "settings.json")
        sync_folder(self.folder)

    @property
    def has_ended(self) -> bool:
        """There is a result, or what is left of one."""
        return (self.folder / "result.json").exists()

    def load_checkpoint(self) -> bytes | None:
        """The newest checkpoint that is whole, or None."""
        for line in reversed(read_history(self.folder).checkpoints):
            path = self.folder / _name_checkpoint(line["epoch"], line["step"])
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() == line["sha256"]:
                return data
        return None

    def write_event(self, event: Event) -> None:
        """Keep one event: its files first, then its line."""
        line = {"event": type(event).__name__, "time_ms": time.time_ns() // 1_000_000} | self._save_files(event)
        append_bytes(_format_line(line), self.folder / "events.jsonl")
        if isinstance(event, Checkpoint):
            self._remove_checkpoints(keep=CHECKPOINTS_KEPT)

    def _save_files(self, event: Event) -> Line:
        """Write what is too large for a line; return what is not."""
        match event:
            case Checkpoint(epoch, step, seconds, data):
                start = time.perf_counter()
                save_bytes(data, self.folder / _name_checkpoint(epoch, step))
                write_seconds = time.perf_counter() - start
                return {"epoch": epoch, "step": step, "seconds": seconds, "write_seconds": write_seconds} | _describe(
                    data
                )
            case Weights(which, epoch, data):
                save_bytes(data, self.folder / f"{which}.safetensors")
                return {"which": which, "epoch": epoch, **_describe(data)}
            case Overlays(which, epoch, png):
                for number, panel in enumerate(png, 1):
                    save_bytes(panel, self.folder / "overlays" / f"{number:02d}-{which}.png")
                return {"which": which, "epoch": epoch, "num_photos": len(png)}
            case Finished(best_epoch, metrics, photos, counts, valid_pixels):
                content = format_counts(photos, counts, valid_pixels)
                save_bytes(_to_json(content), self.folder / "per_photo.json")
                return {"best_epoch": best_epoch, "metrics": metrics}
            case _:
                return asdict(event)

    def describe_files(self) -> dict[str, dict[str, Any]]:
        """Size and sha256 of the files that a result stands for."""
        paths = [self.folder / name for name in KEPT_FILES]
        return {path.name: _describe(path.read_bytes()) for path in paths if path.is_file()}

    def commit(self, result: TrialResult) -> None:
        """Make the outcome final: after this line the trial is done, before it it never was."""
        save_bytes(_to_json(asdict(result)), self.folder / "result.json")
        if result.status == "finished":
            self._remove_checkpoints(keep=0)

    def release(self) -> None:
        self._lock.close()

    def _remove_checkpoints(self, keep: int) -> None:
        history = read_history(self.folder)
        kept = {_name_checkpoint(line["epoch"], line["step"]) for line in history.checkpoints[-keep:] if keep}
        for path in self.folder.glob(f"{CHECKPOINT_PREFIX}*.safetensors"):
            if path.name not in kept:
                path.unlink()


def take(experiment_folder: Path, trial: Trial, key: str) -> Claim | None:
    """Take a trial, or None: another process has it. Its folder is made if it is not there."""
    with hold(experiment_folder / "lock"):
        folder = list_folders(experiment_folder).get(key)
        if folder is None:
            folder = experiment_folder / f"{trial.name.replace(' ', ',')}-{key}"
            folder.mkdir()
            sync_folder(experiment_folder)
        lock = _take_lock(folder)
        return Claim(folder, lock) if lock else None


def start_over(experiment_folder: Path, held: Claim) -> tuple[Claim, Path]:
    """Put aside all that a trial has done, for good, and hold a fresh folder of the same name; and where the old is."""
    with hold(experiment_folder / "lock"):
        past = experiment_folder / SUPERSEDED
        past.mkdir(exist_ok=True)
        number = 1 + len(list(past.glob(f"*-{held.folder.name.rpartition('-')[2]}-*")))
        old = past / f"{held.folder.name}-{number}"
        held.folder.rename(old)
        held.release()
        held.folder.mkdir()
        sync_folder(past)
        sync_folder(experiment_folder)
        lock = _take_lock(held.folder)
        assert lock, "nobody else takes a trial while the experiment is locked"
        return Claim(held.folder, lock), old


def write_test(folder: Path, scoring: Line) -> None:
    """Keep a scoring on test photos beside the result, and all before it. Who writes holds the folder's lock."""
    save_bytes(_to_json(scoring | {"earlier": read_tests(folder)}), folder / "test.json")


def remove_old_checkpoints(folder: Path) -> None:
    """Those of a finished trial, left there by a kill between the commit and their removal. Needs no claim."""
    with suppress(FileNotFoundError):  # another session puts the folder aside
        left = [name for name in os.listdir(folder) if name.startswith(CHECKPOINT_PREFIX)]  # noqa: PTH208 - thousands
        if left and (result := read_result(folder)) and result.status == "finished":
            for name in left:
                (folder / name).unlink(missing_ok=True)


def _take_lock(folder: Path) -> IO[bytes] | None:
    file = (folder / "lock").open("ab")
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return file
    file.close()
    return None


def _name_checkpoint(epoch: int, step: int) -> str:
    return f"{CHECKPOINT_PREFIX}{epoch:04d}-{step:06d}.safetensors"


def _describe(data: bytes) -> dict[str, Any]:
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _format_line(line: Line) -> bytes:
    """JSON on one line, whose last key is the CRC-32 of what comes before that key."""
    text = json.dumps(line)[:-1].encode()
    return text + b', "crc32": "%08x"}\n' % zlib.crc32(text)


def _to_json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
