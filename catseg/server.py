"""Archives on a server -> the same archives here, whole and with the right checksum.

In:  a base URL, names and checksums.   Out: files in a folder; a download that was cut goes on where it was.
Knows nothing of what is in them.
"""

import fcntl
import os
import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
import urllib3

from catseg.errors import InputError

CHUNK_BYTES = 65_536  # so much is lost when a connection stalls


@dataclass(frozen=True)
class Archive:
    """A file on the server: its name, its checksum, and more bytes than it has, packed or unpacked."""

    name: str
    md5: str
    max_bytes: int


@dataclass(frozen=True)
class Source:
    """Where a dataset's two archives come from, and the patience for each: so many tries, and so long a silence."""

    base_url: str
    images: Archive
    annotations: Archive
    num_tries: int = 5
    wait_s: float = 2.0  # before the second try, and longer before each further one
    timeout_s: float = 30.0


def locate_cache() -> Path:
    """Where downloads are kept for the next time: the user's cache folder."""
    return Path(pooch.os_cache("catseg"))


def check_archives(folder: Path, source: Source) -> None:
    """Refuse a folder of the user's that lacks an archive or has another; nothing is changed in it."""
    problems = []
    for archive in (source.annotations, source.images):
        path = folder / archive.name
        if not path.is_file():
            problems.append(f"{path}: no such file; download it from {source.base_url}{archive.name}")
        elif not _is_intact(path, archive):
            problems.append(f"{path}: not the official file (its MD5 is another); download it anew")
    if problems:
        raise InputError(problems)


def fetch(archive: Archive, folder: Path, source: Source) -> Generator[tuple[int, int], None, None]:
    """Make sure that `folder` has the archive; yields (bytes done, bytes in all) while it is downloaded.

    What was begun stays in `<name>.part`, and the next call goes on from there after a cut, a kill or Ctrl-C.
    """
    path, part, url = folder / archive.name, folder / f"{archive.name}.part", source.base_url + archive.name
    try:
        with _lock(folder):
            if not path.is_file() or not _is_intact(path, archive):
                yield from _download(url, part, archive, source)
                _accept(part, url, archive)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written ({reason}); make room, or see whose it is") from None


def _is_intact(path: Path, archive: Archive) -> bool:
    return bool(pooch.file_hash(str(path), "md5") == archive.md5)


def _accept(part: Path, url: str, archive: Archive) -> None:
    """Let pooch compare the checksum and put the file in its place, or remove it.

    The bytes come before, and not by pooch's downloader: pooch throws away what that does not finish.
    """

    def hand_over(url: str, output_file: str, asker: object) -> None:
        part.replace(output_file)

    pooch.get_logger().setLevel("WARNING")  # it would announce a download
    try:
        pooch.retrieve(url, f"md5:{archive.md5}", archive.name, part.parent, downloader=hand_over)
    except ValueError:
        reason = "what came is not the official file (its MD5 is another) and is removed"
        raise InputError(f"{url}: {reason}; try again, or name a folder that has it by --from") from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Two downloads must not write one file. The kernel lets go of the lock if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another download is at work there; wait for its end or stop it") from None
        except OSError:
            pass  # a network file system that locks no folders
        for leftover in folder.glob("tmp????????"):  # pooch's, of a process that was killed as it compared checksums
            leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def _download(url: str, part: Path, archive: Archive, source: Source) -> Generator[tuple[int, int], None, None]:
    """Fill `part` with what is at the URL, from where it ends; a cut connection is taken up again, a few times."""
    reason = ""
    for number in range(source.num_tries):
        time.sleep(source.wait_s * number)
        try:
            reason = yield from _continue(url, part, archive, source)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = type(error).__name__  # their texts fill a screen
        if not reason:
            return
    kept = part.stat().st_size if part.exists() else 0
    raise InputError(
        f"{url}: {source.num_tries} tries, the last one ended by {reason}; check the connection and run the same "
        f"command again ({kept:,} bytes are kept), or name a folder that has the archives by --from"
    )


def _continue(url: str, part: Path, archive: Archive, source: Source) -> Generator[tuple[int, int], None, str]:
    """One request for what is missing. Returns why there is something missing still, or nothing."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=source.timeout_s) as response:
        status, (start, total) = response.status_code, _read_extent(response)
        if status == 416 or (status == 206 and start != done):
            if 0 < done == total:  # all had come before a kill
                return ""
            part.unlink(missing_ok=True)
            return f"{status}, from the wrong place"
        page = response.headers.get("Content-Type", "").startswith("text/html")  # "please log in to this network"
        words = f"{status} {response.reason}{', and sends a web page' if page else ''}"
        if status >= 500 or status in (408, 429):
            return words
        if status not in (200, 206) or page:
            raise InputError(f"{url}: the server says {words}; download it by hand and name its folder by --from")
        done = start or 0
        with part.open("ab" if done else "wb") as file:
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):  # checksums are of what is sent
                file.write(chunk)
                done += len(chunk)
                if max(done, total) > archive.max_bytes:
                    part.unlink()
                    raise InputError(f"{url}: over {archive.max_bytes:,} bytes, not the official file; use --from")
                yield done, max(done, total)
    return "" if done >= total else "a cut"


def _read_extent(response: requests.Response) -> tuple[int | None, int]:
    """At which byte an answer starts, and how many there are in all (0: the server does not say)."""
    if response.status_code in (206, 416):
        extent = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        return (int(extent[1]) if extent and extent[1] else None), int(extent[2]) if extent else 0
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else 0
