"""Files and folders that appear whole or not at all.

In:  bytes, or a folder's worth of work.   Out: a file or a folder under its name, flushed to disk.
Knows nothing of what is in them.
"""

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catseg.errors import InputError


def save_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename, fsync the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_bytes(data: bytes, path: Path) -> None:
    """Add to the end of a file and flush it. What a failed write left of `data` is cut off again."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        num_bytes = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, num_bytes)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what `save_bytes` was writing into a folder when its process was killed. Nobody else may write there."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, renamed to `path` when all went well and removed when not; never over what is there.

    It is filled in the nearest folder that exists, as `.<name>.<process>.tmp`, locked. After a kill
    it stays behind, unlocked, and the next call with the same name removes it.
    """
    try:
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is there already; name a new folder, or remove this one")
        place = next(folder for folder in path.absolute().parents if folder.exists())
        _remove_old_attempts(place, path.name)
        temporary = place / f".{path.name}.{os.getpid()}.tmp"
        temporary.mkdir()
        lock = _lock(temporary)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror}); name another folder") from None
    try:
        yield temporary
        os.sync()  # many files, flushed at once
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(path)  # fails if somebody else made and filled one in the meantime
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(f"{path}: is there now, made by another command meanwhile; name a new folder") from None
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); make room, or name another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_old_attempts(place: Path, name: str) -> None:
    for leftover in place.glob(f".{glob.escape(name)}.*.tmp"):
        if not leftover.name.removesuffix(".tmp").rpartition(".")[2].isdecimal():
            continue  # not one of ours
        lock = _lock(leftover)
        if lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """The kernel's lock on a folder, which ends with the process that holds it; None: somebody holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
