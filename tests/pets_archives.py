"""The Oxford-IIIT Pets in small: archives of their layout with drawn cats, and a server on this machine."""

import gzip
import hashlib
import io
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from catseg.sample import draw_photo
from catseg.server import Archive, Source

HEADER = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "


@dataclass(frozen=True)
class Pet:
    """A photo as it lies in the archives; `kind` is the official list that names it, or none."""

    name: str
    species: int  # 1 cat, 2 dog
    kind: str
    photo: bytes
    trimap: bytes

    @property
    def values(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.trimap)))


def encode(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def draw_trimap(mask: np.ndarray) -> np.ndarray:
    """1 the animal, 2 around it, 3 wherever one of them is next to the other."""
    padded = np.pad(mask, 1, "edge")
    height, width = mask.shape
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    trimap = np.where(mask > 0, 1, 2)
    return np.where(np.min(shifted, axis=0) != np.max(shifted, axis=0), 3, trimap).astype(np.uint8)


def draw_pet(number: int, name: str, species: int, kind: str, size: tuple[int, int] = (48, 36)) -> Pet:
    photo, mask = draw_photo(number)
    small = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))
    small_mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return Pet(name, species, kind, encode(small, quality=90), encode(draw_trimap(small_mask), "PNG"))


def draw_pets() -> list[Pet]:
    """Five cats, two dogs; one cat is in neither list."""
    rows = [("Bengal_1", 1, "trainval"), ("beagle_2", 2, "test"), ("Bombay_10", 1, "test"), ("Sphynx_7", 1, "")]
    rows += [("Bengal_2", 1, "trainval"), ("basset_hound_11", 2, "trainval"), ("Siamese_3", 1, "trainval")]
    return [draw_pet(number, *row) for number, row in enumerate(rows)]


def clone_pet(pet: Pet, number: int) -> list[Pet]:
    """The same photo under many names: for what is counted by the hundred."""
    return [replace(pet, name=f"{pet.name}_{index}", kind=("trainval", "test")[index % 2]) for index in range(number)]


def make_member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


def pack(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A .tar.gz, the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def list_images(pets: list[Pet]) -> list[tuple[tarfile.TarInfo, bytes]]:
    files = [make_member("images", type=tarfile.DIRTYPE), make_member("images/Bengal_100.mat", b"MATLAB")]
    return files + [make_member(f"images/{pet.name}.jpg", pet.photo) for pet in pets]


def list_annotations(pets: list[Pet]) -> list[tuple[tarfile.TarInfo, bytes]]:
    def write(rows: list[Pet]) -> bytes:
        return "".join(f"{pet.name} 6 {pet.species} 2\n" for pet in rows).encode()

    listed = [pet for pet in pets if pet.kind]
    files = [make_member("./annotations/README", b"read me"), make_member("annotations/xmls/Bengal_1.xml", b"<a/>")]
    files += [make_member("annotations/list.txt", HEADER.encode() + write(listed))]
    files += [
        make_member(f"annotations/{kind}.txt", write([pet for pet in listed if pet.kind == kind]))
        for kind in ("trainval", "test")
    ]
    for pet in pets:
        files.append(make_member(f"annotations/trimaps/._{pet.name}.png", APPLE_DOUBLE))
        files.append(make_member(f"annotations/trimaps/{pet.name}.png", pet.trimap))
    return files


def make_source(contents: dict[str, bytes], base_url: str = "http://127.0.0.1:9/") -> Source:
    """What to expect of archives of these contents; impatient."""
    images, annotations = (
        Archive(name, hashlib.md5(contents[name], usedforsecurity=False).hexdigest(), 4_000_000)
        for name in ("images.tar.gz", "annotations.tar.gz")
    )
    return Source(base_url, images, annotations, num_tries=3, wait_s=0.01, timeout_s=5.0)


def make_contents(pets: list[Pet]) -> dict[str, bytes]:
    return {"images.tar.gz": pack(list_images(pets)), "annotations.tar.gz": pack(list_annotations(pets))}


def write_archives(folder: Path, contents: dict[str, bytes]) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return make_source(contents)


@dataclass
class PetsServer:
    """What the server gives, how it misbehaves, and what it was asked."""

    contents: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # the next answers end after so many bytes
    statuses: list[int] = field(default_factory=list)  # the next answers are nothing but these
    range_shift: int = 0  # how far from what was asked an answer begins
    piece: int = 10**9  # bytes of a range in one answer
    stall_after: int | None = None  # bytes, and then silence
    slow_s: float = 0.0  # between pieces
    headers: dict[str, str] = field(default_factory=dict)  # sent, too
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # name, Range
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(contents: dict[str, bytes]):
    """A PetsServer on a free port of 127.0.0.1; change its fields as the test goes on."""
    state = PetsServer(contents)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_words):
            pass

        def do_GET(self):
            answer(self, state)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/pets/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, state: PetsServer) -> None:
    name, wanted = request.path.rpartition("/")[2], request.headers.get("Range")
    state.asked.append((name, wanted))
    request.close_connection = True
    body = state.contents.get(name)
    if state.statuses or body is None:
        request.send_error(state.statuses.pop(0) if state.statuses else 404)
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
    if wanted and state.ranges and start >= len(body):
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{len(body)}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    start = start + state.range_shift if start else 0
    request.send_response(206 if wanted and state.ranges else 200)
    stop = min(len(body), start + state.piece) if wanted and state.ranges else len(body)
    if wanted and state.ranges:
        request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
    for key, value in {"Content-Length": str(stop - start), **state.headers}.items():
        request.send_header(key, value)
    request.end_headers()
    send(request, body[start : start + state.cuts.pop(0)] if state.cuts else body[start:stop], state)


def send(request: BaseHTTPRequestHandler, body: bytes, state: PetsServer) -> None:
    try:
        if state.stall_after is not None:
            request.wfile.write(body[: state.stall_after])
            state.closing.wait(20)
        elif state.slow_s:
            for begin in range(0, len(body), 500):
                request.wfile.write(body[begin : begin + 500])
                if state.closing.wait(state.slow_s):
                    return
        else:
            request.wfile.write(body)
    except ConnectionError:  # the client has gone
        pass
