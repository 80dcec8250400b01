"""The Oxford-IIIT Pets (37 breeds, a trimap each): fetched, and written as a VOC folder of cats, dogs or both.

In:  two archives, from the internet or a folder.   Out: JPEGImages/, SegmentationClass/, ImageSets/, class_names.txt.
Knows nothing of terminals or training.      (H height, W width in pixels)

The archives are input like any other: of them reach the disk only photos that were decoded and masks
that were made. Of the 7,390 photos some are PNG or GIF files called .jpg, and some JPEGs are damaged:
what can be decoded is encoded anew where it must be, the rest is left out and named.
"""

import fcntl
import os
import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import requests
import urllib3

from catseg.archive import read_members
from catseg.errors import InputError
from catseg.files import new_folder
from catseg.folder import VOC_LISTS
from catseg.photo import VOID, UInt8, open_checked, read_photo
from catseg.voc import make_folders, write_mask, write_photo

BASE_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"
LICENCE = 'CC BY-SA 4.0; Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012; photos remain their owners\''

CLASSES = {"cat": ("cat",), "dog": ("dog",), "both": ("cat", "dog")}  # what a user can ask for
SPECIES = {"1": "cat", "2": "dog"}  # as list.txt writes them
LISTS = ("trainval", "test")  # the official split; 41 photos are in neither

PLAIN = "[A-Za-z0-9_-]{1,100}"
PHOTO = re.compile(rf"images/({PLAIN})\.jpg")
ANNOTATION = re.compile(rf"annotations/((?:list|trainval|test)\.txt|trimaps/{PLAIN}\.png)")
MAX_LEFT_OUT = 0.01  # share of the photos; beyond it, the archives are not what they should be
CHUNK_BYTES = 65_536  # so much is lost when a connection stalls


@dataclass(frozen=True)
class Archive:
    """A file on the server: its name, its checksum, and more bytes than it has, packed or unpacked."""

    name: str
    md5: str
    max_bytes: int


@dataclass(frozen=True)
class Source:
    """Where the archives come from, and the patience for each: so many tries, and so long a silence."""

    base_url: str = BASE_URL
    images: Archive = Archive("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", 2_000_000_000)  # 792 MB
    annotations: Archive = Archive("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", 500_000_000)  # 19 MB
    num_tries: int = 5
    wait_s: float = 2.0  # before the second try, and longer before each further one
    timeout_s: float = 30.0


OXFORD = Source()


@dataclass(frozen=True)
class Pets:
    """What was written: classes, how many photos each list names, and a line for each photo that was left out."""

    classes: tuple[str, ...]
    num_photos: dict[str, int]
    left_out: tuple[str, ...]


def locate_cache() -> Path:
    """Where downloads are kept for the next time: the user's cache folder."""
    return Path(pooch.os_cache("catseg"))


def check_archives(folder: Path, source: Source = OXFORD) -> None:
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


def fetch(archive: Archive, folder: Path, source: Source = OXFORD) -> Generator[tuple[int, int], None, None]:
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


def convert_pets(
    folder: Path, out: Path, species: str = "cat", border: str = "void", source: Source = OXFORD
) -> Generator[tuple[int, int], None, Pets]:
    """Write the VOC folder of the archives in `folder`; yields (photos done, photos in all). Whole or not at all.

    `species` is of CLASSES; by `border`, "void" or "class", the trimaps' band around an animal becomes
    void or part of the animal. A photo that cannot be decoded or has no trimap of its size is left
    out, for one bad file shall not cost the others; InputError lists them all if they are over 1 %.
    """
    classes, images = CLASSES[species], folder / source.images.name
    lists, trimaps = _read_annotations(folder / source.annotations.name, source.annotations.max_bytes, species)
    awaited = lists["trainval"] | lists["test"]
    num_awaited, left_out = len(awaited), dict[str, str]()
    with new_folder(out) as begun:
        make_folders(begun, classes)
        for name, data in read_members(images, PHOTO, source.images.max_bytes):
            if name not in awaited:
                continue
            label_id = classes.index(awaited.pop(name)) + 1
            try:
                _write_pet(begun, name, data, trimaps, label_id, VOID if border == "void" else label_id)
            except InputError as error:
                left_out[name] = str(error).rpartition("; ")[0]
            yield num_awaited - len(awaited), num_awaited
        left_out |= {name: f"{images.name}: no photo {name!r:.120}" for name in awaited}
        if len(left_out) > MAX_LEFT_OUT * num_awaited:
            verdict = f"{folder}: {len(left_out)} of {num_awaited} photos cannot be used; download the archives anew"
            raise InputError([*left_out.values(), verdict])
        names = {kind: [name for name in lists[kind] if name not in left_out] for kind in LISTS}
        pets = Pets(classes, {kind: len(names[kind]) for kind in LISTS}, tuple(left_out.values()))
        _write_texts(begun, names, f"species {species}, border {border}", pets)
    return pets


def _read_annotations(path: Path, max_bytes: int, species: str) -> tuple[dict[str, dict[str, str]], dict[str, bytes]]:
    """For each official list, what the photos of these species show; and all trimaps, still packed as PNG."""
    files = dict(read_members(path, ANNOTATION, max_bytes))
    for kind in ("list", *LISTS):
        if f"{kind}.txt" not in files:
            raise InputError(f"{path}: no annotations/{kind}.txt in it; download it anew")
    rows = {kind: _split_rows(files.pop(f"{kind}.txt")) for kind in ("list", *LISTS)}
    shown = {row[0]: SPECIES[row[2]] for row in rows["list"] if len(row) > 2 and row[2] in SPECIES}
    names = {kind: [row[0] for row in rows[kind]] for kind in LISTS}
    lists = {kind: {n: shown[n] for n in names[kind] if shown.get(n) in CLASSES[species]} for kind in LISTS}
    unknown = [name for kind in LISTS for name in names[kind] if name not in shown]
    problems = [f"{name!r:.120} of no species in list.txt" for name in unknown]
    problems += [f"{name!r:.120} in trainval.txt and test.txt" for name in set(names["trainval"]) & set(names["test"])]
    problems += [f"no photo of {species} in {kind}.txt" for kind in LISTS if not lists[kind]]
    if problems:
        raise InputError([f"{path}: {problem}; download it anew" for problem in problems])
    return lists, files


def _split_rows(text: bytes) -> list[list[str]]:
    """`name class species breed`, as words; `#` begins a comment."""
    return [line.split() for line in text.decode("utf-8", "replace").splitlines() if line.strip() and line[0] != "#"]


def _write_pet(out: Path, name: str, data: bytes, trimaps: dict[str, bytes], label_id: int, border_id: int) -> None:
    """Photo and mask; both as they lie in their files, for whoever drew the trimaps did not look at EXIF."""
    photo = read_photo(data, f"images/{name}.jpg", upright=True)
    mask = _read_trimap(trimaps, name, photo.shape[:2], [VOID, label_id, 0, border_id])
    write_photo(out, name, data, photo)
    write_mask(out, name, mask)


def _read_trimap(trimaps: dict[str, bytes], name: str, shape: tuple[int, ...], label_ids: list[int]) -> UInt8:
    """mask_HW of a trimap: 1 the animal, 2 around it, 3 the border between; `label_ids` says what each becomes."""
    where = f"annotations/trimaps/{name}.png"
    if f"trimaps/{name}.png" not in trimaps:
        raise InputError(f"{where}: not in the archive; left out")
    image = open_checked(trimaps[f"trimaps/{name}.png"], where, upright=True)
    values = np.asarray(image)
    if image.mode not in ("L", "P") or not np.isin(values, (1, 2, 3)).all():
        raise InputError(f"{where}: holds more than 1, 2 and 3; left out")
    if values.shape != shape:
        raise InputError(f"{where}: {image.width} x {image.height} pixels, its photo {shape[1]} x {shape[0]}; left out")
    mask: UInt8 = np.asarray(label_ids, np.uint8)[values]
    return mask


def _write_texts(out: Path, names: dict[str, list[str]], choice: str, pets: Pets) -> None:
    """ImageSets/Segmentation/*.txt, and in README.txt what the licence wants to travel with the photos."""
    folder = out / VOC_LISTS / "Segmentation"
    folder.mkdir(parents=True)
    for kind in LISTS:
        (folder / f"{kind}.txt").write_text("".join(f"{name}\n" for name in names[kind]), "utf-8")
    changes = (f"Changed: {choice}; masks from trimaps; photos that were no plain JPEG encoded anew.", "Left out:")
    lines = ("The Oxford-IIIT Pet Dataset", BASE_URL, LICENCE, "", *changes, *(pets.left_out or ("nothing",)))
    (out / "README.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
