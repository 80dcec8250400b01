"""Files and folders that are there whole or not at all, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catseg.errors import InputError
from catseg.files import append_bytes, new_folder, remove_leftovers, save_bytes

ROOT = Path(__file__).parent.parent.parent
FILL_AND_WAIT = """
import sys, time
from pathlib import Path
from catseg.files import new_folder

with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half.txt").write_text("half")
    print("begun", flush=True)
    for _ in range(1200):  # not in one: a signal just before it would be seen after it
        time.sleep(0.05)
"""


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    save_bytes(b"old and long", path)
    save_bytes(b"new", path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_is_replaced_is_never_seen_half_written(tmp_path):
    """Whoever holds the old file open reads on in it: the new one is another file."""
    path = tmp_path / "a.bin"
    save_bytes(b"old", path)
    with path.open("rb") as file:
        save_bytes(b"new and longer", path)
        assert file.read() == b"old"


def test_failed_saving_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.bin"
    path.mkdir()
    with pytest.raises(OSError):
        save_bytes(b"new", path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def fail(monkeypatch):
    """fail(call): from now on this call of the system's finds the disk full; `os.write` after half of its bytes."""
    write = os.write

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_half(descriptor: int, data: memoryview) -> int:
        if len(data) > 1:
            return write(descriptor, data[: len(data) // 2])
        return refuse()

    def break_call(call: str) -> None:
        monkeypatch.setattr(os, call, write_half if call == "write" else refuse)

    return break_call


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_failed_saving_leaves_what_was_there_and_nothing_else(tmp_path, fail, call, old):
    path = tmp_path / "a.bin"
    if old is not None:
        save_bytes(old, path)
    fail(call)
    with pytest.raises(OSError, match="No space left"):
        save_bytes(b"new and longer", path)
    assert [(found, found.read_bytes()) for found in tmp_path.iterdir()] == ([(path, old)] if old else [])


@pytest.fixture
def write_slowly(monkeypatch):
    """The system writes at most three bytes at once."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))


@pytest.mark.usefixtures("write_slowly")
@pytest.mark.parametrize("call", [save_bytes, append_bytes])
def test_short_write_is_continued(tmp_path, call):
    path = tmp_path / "a.bin"
    call(b"0123456789", path)
    assert path.read_bytes() == b"0123456789"


def test_appending_creates_the_file_and_adds_to_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    for data in (b"one\n", b"", b"two\n"):
        append_bytes(data, path)
    assert path.read_bytes() == b"one\ntwo\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("old", [b"one\n", b""])
def test_what_failed_appending_left_is_cut_off_again(tmp_path, fail, monkeypatch, call, old):
    path = tmp_path / "a.jsonl"
    append_bytes(old, path)
    fail(call)
    with pytest.raises(OSError, match="No space left"):
        append_bytes(b"and much more\n", path)
    assert path.read_bytes() == old
    monkeypatch.undo()
    append_bytes(b"two\n", path)
    assert path.read_bytes() == old + b"two\n"


def test_appending_where_nothing_may_be_opened_changes_nothing(tmp_path, fail):
    path = tmp_path / "a.jsonl"
    fail("open")
    with pytest.raises(OSError, match="No space left"):
        append_bytes(b"one\n", path)
    assert list(tmp_path.iterdir()) == []


def test_only_leftovers_of_saving_are_removed(tmp_path):
    kept = {"a.bin", "a.tmp", ".a", ".tmp", ".a.tmp.bin", ".a.temp", "below/.a.tmp"}
    (tmp_path / "below").mkdir()
    for name in kept | {".a.tmp", ".a.bin.123.tmp", ".events.jsonl.4.tmp"}:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert set(list_names(tmp_path)) == kept | {"below"}


def test_leftover_of_a_killed_process_is_removed(tmp_path):
    """Killed between writing and renaming: the old file is whole, and beside it lies the new one."""
    path = tmp_path / "a.bin"
    save_bytes(b"old", path)
    script = (
        "import os, pathlib, signal, sys\n"
        "from catseg.files import save_bytes\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_bytes(b'new', pathlib.Path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list_names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert list_names(tmp_path) == ["a.bin"] and path.read_bytes() == b"old"


def test_no_leftovers_no_folder_no_harm(tmp_path):
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "gone")
    assert list_names(tmp_path) == []


def fill(path: Path, *names: str) -> None:
    with new_folder(path) as folder:
        for name in names:
            (folder / name).write_text(name)


def list_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_new_folder_holds_what_was_put_into_it_and_nothing_lies_beside_it(tmp_path):
    fill(tmp_path / "above" / "out", "a", "b")
    assert list_names(tmp_path) == ["above", "above/out", "above/out/a", "above/out/b"]


def test_new_folder_is_not_there_before_it_is_whole(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        assert not out.exists()
        assert folder.parent == tmp_path and folder.name.startswith(".out.")  # the same disk: renamed, never copied
    assert out.is_dir() and not folder.exists()


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


@pytest.mark.parametrize(
    "make",
    [
        make_folder,
        Path.mkdir,
        Path.touch,
        lambda path: path.symlink_to(path.parent),
        lambda path: path.symlink_to("nowhere"),
    ],
    ids=["folder", "empty folder", "file", "link", "dead link"],
)
def test_new_folder_is_never_made_over_what_is_there(tmp_path, refusal, make):
    out = tmp_path / "out"
    make(out)
    before = list_names(tmp_path), out.is_symlink()
    line = refusal(fill, out, "a")
    assert line.startswith(f"{out}: is there already") and "remove this one" in line
    assert (list_names(tmp_path), out.is_symlink()) == before


@pytest.mark.parametrize("make", [make_folder, Path.touch])
def test_what_somebody_else_put_there_in_the_meantime_is_kept(tmp_path, make):
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught, new_folder(out) as folder:
        (folder / "a").touch()
        make(out)
    assert str(out) in caught.value.problems[0] and len(caught.value.problems) == 1
    assert list_names(tmp_path) in (["out"], ["out", "out/mine"])


@pytest.mark.parametrize("error", [ValueError, InputError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_work_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error, match="enough"), new_folder(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").touch()
        raise error("enough")
    assert list_names(tmp_path) == []


def start_filling(out: Path) -> subprocess.Popen:
    """A process in the midst of filling `out`."""
    process = subprocess.Popen([sys.executable, "-c", FILL_AND_WAIT, str(out)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    return process


def kill(process: subprocess.Popen, by: signal.Signals) -> None:
    process.send_signal(by)
    process.wait(timeout=20)
    process.stdout.close()


def test_killed_work_leaves_no_folder_and_the_next_one_cleans_up(tmp_path):
    out = tmp_path / "out [1]"  # a pattern for glob, were it not escaped
    kill(start_filling(out), signal.SIGKILL)
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".out [1].") and list_names(leftover) == ["half.txt"]
    fill(tmp_path / "out", "b")  # of another name: not its leftovers
    assert leftover.exists()
    fill(out, "a")
    assert list_names(tmp_path) == ["out", "out [1]", "out [1]/a", "out/b"]


def test_interrupted_work_leaves_nothing(tmp_path):
    kill(start_filling(tmp_path / "out"), signal.SIGINT)
    assert list_names(tmp_path) == []


def test_many_folders_are_made_without_leaving_files_open(tmp_path):
    before = len(list(Path("/dev/fd").iterdir()))
    for number in range(20):
        (tmp_path / f".out-{number}.1.tmp").mkdir()  # a leftover, locked and removed
        fill(tmp_path / f"out-{number}", "a")
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_work_of_a_living_process_is_left_alone(tmp_path):
    out = tmp_path / "out"
    process = start_filling(out)
    try:
        fill(out, "mine")
        (begun,) = tmp_path.glob(".out.*.tmp")
        assert list_names(begun) == ["half.txt"] and list_names(out) == ["mine"]
    finally:
        kill(process, signal.SIGKILL)


@pytest.mark.parametrize("owner", ["notes", "", "²", "1 of mine"])
def test_a_folder_of_the_users_with_such_a_name_is_left_alone(tmp_path, owner):
    kept = tmp_path / f".out.{owner}.tmp"
    kept.mkdir()
    fill(tmp_path / "out", "a")
    assert kept.is_dir()


@pytest.mark.parametrize(
    "name", ["file/out", "file/deep/out", "x" * 300, "x" * 250], ids=["in a file", "below a file", "long", "too long"]
)
def test_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, refusal, name):
    (tmp_path / "file").touch()
    line = refusal(fill, tmp_path / name, "a")
    assert line.startswith(f"{tmp_path / name}: cannot be made (") and "another folder" in line
    assert list_names(tmp_path) == ["file"]


def test_folders_above_it_are_made_only_when_it_is_whole(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "deep/er/out"):
        raise ZeroDivisionError
    assert list_names(tmp_path) == []
    fill(tmp_path / "deep/er/out", "a")
    assert list_names(tmp_path / "deep/er") == ["out", "out/a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_in_one_that_may_not_be_written_is_refused(tmp_path, refusal):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be made (Permission denied)" in refusal(fill, tmp_path / "out", "a")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a place where even root makes no folder")
def test_folder_where_none_can_be_made_is_refused(refusal):
    assert refusal(fill, Path("/proc/out"), "a").startswith("/proc/out: cannot be made (")
