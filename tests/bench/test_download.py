"""`bench data download`: what it asks for, what it says, what is left when it is stopped."""

import errno
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import bench.download
from bench.download import download_pets
from tests.pets_archives import (
    clone_pet,
    draw_pets,
    list_images,
    make_contents,
    make_member,
    make_source,
    pack,
    serve,
    write_archives,
)

ROOT = Path(__file__).parents[2]
DOWNLOAD = """
import sys
from pathlib import Path
from bench.download import download_pets
from catseg.server import Archive, Source

url, out, images, annotations = sys.argv[1:]
source = Source(url, Archive("images.tar.gz", images, 10**7), Archive("annotations.tar.gz", annotations, 10**7))
download_pets(Path(out), "cat", "void", None, source)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, an empty one; and no proxy between us and this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home" / "catseg"


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_refused(result, *words):
    assert result.exit_code == 2, result.stdout
    lines = result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    for word in words:
        assert any(word in line for line in lines), lines


def test_the_archives_are_downloaded_once_and_the_output_says_what_to_do_next(tmp_path, cache, capsys):
    with serve(make_contents(draw_pets())) as server:
        source = make_source(server.contents, server.url)
        download_pets(tmp_path / "out", "cat", "void", source=source)
        lines = capsys.readouterr().out.splitlines()
        download_pets(tmp_path / "again", "both", "class", source=source)
        assert [name for name, _ in server.asked] == ["annotations.tar.gz", "images.tar.gz"]
    assert list_files(cache) == ["annotations.tar.gz", "images.tar.gz"]
    out = tmp_path / "out"
    assert lines == [
        f"{out}: 4 photos with masks, 3 in trainval.txt, 1 in test.txt; classes cat; borders are void",
        f"licence: {bench.download.LICENCE}",
        f"train:   bench run --grid experiments/grid.yaml --train {out}/ImageSets/Segmentation/trainval.txt "
        f"--test {out}/ImageSets/Segmentation/test.txt",
    ]
    assert "`classes: [cat, dog]`" in capsys.readouterr().out


def test_a_folder_that_has_the_archives_is_used_as_it_is(tmp_path, cache, capsys):
    pets = clone_pet(draw_pets()[0], 100)
    pets[5] = replace(pets[5], photo=b"no")
    source = write_archives(tmp_path / "own", make_contents(pets))
    download_pets(tmp_path / "out", "cat", "void", tmp_path / "own", source)
    assert not cache.exists()
    assert list_files(tmp_path / "own") == ["annotations.tar.gz", "images.tar.gz"]
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("left out: images/Bengal_1_5.jpg: cannot be decoded")
    assert "99 photos with masks, 50 in trainval.txt, 49 in test.txt" in second


def test_the_command_prints_nothing_but_lines_that_can_be_copied(tmp_path, cache, capsys):
    source = write_archives(tmp_path / "own", make_contents(draw_pets()))
    download_pets(tmp_path / "my [bold]pets", "dog", "void", tmp_path / "own", source)
    printed = capsys.readouterr()
    assert f"--train '{tmp_path}/my [bold]pets/ImageSets/Segmentation/trainval.txt'" in printed.out
    assert printed.err == ""


def test_an_experiment_runs_on_the_official_split(tracked_workplace, cache, write_grid, bench, find_ranking):
    pets = clone_pet(draw_pets()[4], 4) + clone_pet(draw_pets()[6], 4)
    source = write_archives(tracked_workplace / "own", make_contents(pets))
    download_pets(tracked_workplace / "pets", "cat", "void", tracked_workplace / "own", source)
    lists = tracked_workplace / "pets" / "ImageSets" / "Segmentation"
    grid = write_grid("lr: [0.001]", data="{train: photos, classes: [cat]}")
    result = bench(
        "run", "--grid", grid, "--train", lists / "trainval.txt", "--val", "train", "--test", lists / "test.txt"
    )
    assert result.exit_code == 0, result.output
    assert "test" in result.stdout
    assert len(find_ranking(result.stdout)) == 1


@pytest.mark.parametrize("arguments", [("--species", "both"), ("--border", "class"), ("--from", "own"), ()])
def test_what_is_typed_arrives(arguments, bench, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("bench.download.download_pets", lambda *given: calls.append(given))
    assert bench("data", "download", "oxford-pets", "out", *arguments).exit_code == 0
    wanted = {"--species": "cat", "--border": "void", "--from": None} | dict([arguments] if arguments else [])
    own = wanted["--from"] and Path(wanted["--from"])
    assert calls == [(Path("out"), wanted["--species"], wanted["--border"], own)]


def test_mistakes_are_one_line_each_and_begin_nothing(tmp_path, cache, bench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(bench("data", "download", "oxford-cats", "out"), "oxford-cats", "known are oxford-pets")
    check_refused(bench("data", "download", "oxford-pets", "out", "--species", "bird"), "bird")
    check_refused(bench("data", "download", "oxford-pets", "out", "--from", "own"), "own/images.tar.gz: no such file")
    (tmp_path / "out").mkdir()
    check_refused(bench("data", "download", "oxford-pets", "out"), "out: is there already")
    write_archives(tmp_path / "own", make_contents(draw_pets()))
    unofficial = bench("data", "download", "oxford-pets", "new", "--from", "own")
    check_refused(unofficial, "own/annotations.tar.gz: not the official file", "own/images.tar.gz: not the official")
    assert list_files(tmp_path) == ["own/annotations.tar.gz", "own/images.tar.gz"]


def test_a_full_disk_is_one_line_and_leaves_no_folder(tmp_path, cache, refusal, monkeypatch):
    def write(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("catseg.pets.write_mask", write)
    source = write_archives(tmp_path / "own", make_contents(draw_pets()))
    line = refusal(download_pets, tmp_path / "out", "cat", "void", tmp_path / "own", source)
    assert line.startswith(f"{tmp_path / 'out'}: cannot be written (No space left on device)")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_cut_download_leaves_no_folder_and_the_same_command_finishes_it(tmp_path, cache, refusal):
    with serve(make_contents(draw_pets())) as server:
        source = make_source(server.contents, server.url)
        server.cuts = [10**9, 100, 100, 100]
        line = refusal(download_pets, tmp_path / "out", "cat", "void", None, source)
        assert "300 bytes are kept" in line
        assert list_files(tmp_path) == ["home/catseg/annotations.tar.gz", "home/catseg/images.tar.gz.part"]
        download_pets(tmp_path / "out", "cat", "void", source=source)
        assert server.asked[-1] == ("images.tar.gz", "bytes=300-")
    assert len(list((tmp_path / "out" / "JPEGImages").iterdir())) == 4


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_download_goes_on_where_it_was(signum, tmp_path, cache, wait_until):
    images = [*list_images(draw_pets()), make_member("images/noise.mat", random.Random(0).randbytes(300_000))]
    contents = make_contents(draw_pets()) | {"images.tar.gz": pack(images)}
    with serve(contents) as server:
        source = make_source(contents, server.url)
        server.slow_s = 0.002  # a second in all
        arguments = [server.url, str(tmp_path / "out"), source.images.md5, source.annotations.md5]
        part = cache / "images.tar.gz.part"
        process = subprocess.Popen([sys.executable, "-c", DOWNLOAD, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: part.exists() and part.stat().st_size > 100_000, 60)
            process.send_signal(signum)
        finally:
            process.wait(60)
        assert process.returncode == -signum
        assert list_files(tmp_path) == ["home/catseg/annotations.tar.gz", "home/catseg/images.tar.gz.part"]
        kept = part.read_bytes()
        assert contents["images.tar.gz"].startswith(kept)
        server.slow_s = 0.0
        download_pets(tmp_path / "out", "cat", "void", source=source)
        assert server.asked[-1] == ("images.tar.gz", f"bytes={len(kept)}-")
    assert len(list((tmp_path / "out" / "JPEGImages").iterdir())) == 4
