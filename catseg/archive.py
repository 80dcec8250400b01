"""The files of a .tar.gz that may be broken or hostile, one after the other in memory.

In:  an archive, which paths are wanted.   Out: names and contents; nothing is written anywhere.
Knows nothing of where an archive comes from or what is in it.
"""

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Generator
from pathlib import Path, PurePosixPath

from catseg.errors import InputError

MAX_MEMBER_BYTES = 50_000_000  # of one file in an archive
MAX_MEMBERS = 100_000


class _Bounded(io.RawIOBase):
    """Gives no more at once than a file may have, and no more in all than an archive may have.

    tarfile believes what headers say of themselves and would read gigabytes at once.
    """

    def __init__(self, stream: gzip.GzipFile, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        if self.tell() + size > self._max_bytes:
            raise tarfile.ReadError(f"over {self._max_bytes:,} bytes unpacked")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def read_members(path: Path, wanted: re.Pattern[str], max_bytes: int) -> Generator[tuple[str, bytes], None, None]:
    """(first group of `wanted`, content) of the files in an archive whose paths match; others are passed over.

    InputError, one line, for an archive that is cut or damaged, and for what none of photos holds:
    paths that lead out of it, links, devices, files beyond all size, two different ones of one name.
    """
    seen: dict[str, bytes] = {}
    try:
        with (
            gzip.open(path) as unpacked,
            tarfile.open(fileobj=_Bounded(unpacked, max_bytes), mode="r:") as archive,
        ):
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise tarfile.ReadError(f"over {MAX_MEMBERS:,} files")
                _check_member(path, member)
                found = wanted.fullmatch(str(PurePosixPath(member.name)))
                file = archive.extractfile(member)
                if found is None or file is None:
                    continue
                content = file.read()
                digest = hashlib.sha256(content).digest()
                if found[1] not in seen:
                    seen[found[1]] = digest
                    yield found[1], content
                elif seen[found[1]] != digest:
                    raise InputError(f"{path}: {member.name!r:.200} twice, and different; download it anew")
    except InputError:
        raise
    except Exception as error:  # readers of broken archives raise nearly anything
        raise InputError(f"{path}: cannot be unpacked ({error}); download it anew") from None


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        reason = "leads out of it"
    elif not (member.isfile() or member.isdir()) or member.issparse():
        reason = "is neither a plain file nor a folder"
    elif not 0 <= member.size <= MAX_MEMBER_BYTES:
        reason = f"claims {member.size:,} bytes"
    else:
        return
    raise InputError(f"{path}: evil member {member.name!r:.200} {reason}; download the archive anew")
