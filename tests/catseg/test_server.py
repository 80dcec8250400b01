"""Downloads from a real server on loopback: cut, killed, stalled, spoilt, and taken up where they were."""

import fcntl
import gzip
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from catseg.errors import InputError
from catseg.pets import OXFORD
from catseg.server import check_archives, fetch
from tests.pets_archives import (
    draw_pets,
    make_contents,
    make_source,
    serve,
    write_archives,
)

ROOT = Path(__file__).parents[2]
BODY = random.Random(0).randbytes(300_000)
NAME = "images.tar.gz"
PART = f"{NAME}.part"
FETCH = """
import sys
from pathlib import Path
from catseg.server import Archive, Source, fetch

url, folder, md5 = sys.argv[1:]
archive = Archive("images.tar.gz", md5, 10**6)
for done, total in fetch(archive, Path(folder), Source(url, archive, archive, wait_s=0.01)):
    print(done, total, flush=True)
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with serve({NAME: BODY, "annotations.tar.gz": b""}) as state:
        yield state


@pytest.fixture
def download(server, tmp_path):
    """download(): all steps of one call of `fetch` for BODY into `cache`."""

    def run(**changes) -> list[tuple[int, int]]:
        source = replace(make_source(server.contents | {NAME: BODY}, server.url), **changes)
        return list(fetch(source.images, tmp_path / "cache", source))

    return run


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def read_cache(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def test_an_archive_is_fetched_once(download, server, cache):
    steps = download()
    assert steps[-1] == (len(BODY), len(BODY))
    assert steps == sorted(steps)
    assert read_cache(cache) == {NAME: BODY}
    assert download() == []
    assert server.asked == [(NAME, None)]


def test_a_cut_connection_is_taken_up_where_it_was_cut(download, server, cache):
    server.cuts = [100_001, 50_000]
    steps = download()
    assert server.asked == [(NAME, None), (NAME, "bytes=100001-"), (NAME, "bytes=150001-")]
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {len(BODY)}
    assert read_cache(cache) == {NAME: BODY}


def test_what_came_before_the_last_try_is_kept_for_the_next_call(download, server, cache, refusal):
    server.cuts = [10, 20, 30]
    line = refusal(download)
    assert f"{server.url}{NAME}: 3 tries" in line
    assert "60 bytes are kept" in line
    assert read_cache(cache) == {PART: BODY[:60]}
    download()
    assert server.asked[-1] == (NAME, "bytes=60-")
    assert read_cache(cache) == {NAME: BODY}


def test_a_server_that_knows_no_ranges_starts_over(download, server, cache):
    server.ranges, server.cuts = False, [100_000]
    download()
    assert server.asked == [(NAME, None), (NAME, "bytes=100000-")]
    assert read_cache(cache) == {NAME: BODY}


@pytest.mark.parametrize("extra", [b"", b"x"])
def test_more_than_the_server_has_is_thrown_away(extra, download, server, cache):
    cache.mkdir()
    (cache / PART).write_bytes(BODY + b"older and longer" + extra)
    download()
    assert server.asked == [(NAME, f"bytes={len(BODY) + 16 + len(extra)}-"), (NAME, None)]
    assert read_cache(cache) == {NAME: BODY}


def test_a_download_killed_after_its_last_byte_is_not_repeated(download, server, cache):
    cache.mkdir()
    (cache / PART).write_bytes(BODY)
    assert download() == []
    assert len(server.asked) == 1
    assert read_cache(cache) == {NAME: BODY}


def test_an_answer_that_begins_elsewhere_is_not_appended(download, server, cache):
    server.cuts, server.range_shift = [1000], 7
    download()
    assert server.asked == [(NAME, None), (NAME, "bytes=1000-"), (NAME, None)]
    assert read_cache(cache) == {NAME: BODY}


def test_a_server_that_gives_less_than_was_asked_for_is_asked_again(download, server, cache):
    server.cuts, server.piece = [1000], 200_000
    download()
    assert server.asked == [(NAME, None), (NAME, "bytes=1000-"), (NAME, "bytes=201000-")]
    assert read_cache(cache) == {NAME: BODY}


@pytest.mark.parametrize("begun", [b"", b"wrong from the start"])
def test_wrong_bytes_are_removed_and_named(begun, download, server, cache, refusal):
    cache.mkdir()
    if begun:
        (cache / PART).write_bytes(begun)
    else:
        server.contents[NAME] = BODY[::-1]
    line = refusal(download)
    assert f"{server.url}{NAME}: what came is not the official file" in line
    assert "removed" in line
    assert read_cache(cache) == {}
    server.contents[NAME] = BODY
    download()
    assert read_cache(cache) == {NAME: BODY}


def test_a_spoilt_copy_is_fetched_anew(download, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(b"spoilt")
    download()
    assert read_cache(cache) == {NAME: BODY}


def test_a_file_that_is_not_there_is_asked_for_once(download, server, cache, refusal):
    server.contents.pop(NAME)
    line = refusal(download)
    assert "404 Not Found" in line
    assert "--from" in line
    assert len(server.asked) == 1
    assert read_cache(cache) == {}


def test_a_server_out_of_order_is_asked_a_few_times(download, server, cache, refusal):
    server.statuses = [500, 502, 503]
    assert "503 Service Unavailable" in refusal(download)
    assert len(server.asked) == 3
    server.statuses = [503, 429]
    download()
    assert read_cache(cache) == {NAME: BODY}


def test_the_page_of_a_network_that_wants_a_login_does_not_replace_what_came(download, server, cache, refusal):
    cache.mkdir()
    (cache / PART).write_bytes(BODY[:1000])
    server.ranges, server.headers = False, {"Content-Type": "text/html; charset=utf-8"}
    assert "a web page" in refusal(download)
    assert read_cache(cache) == {PART: BODY[:1000]}


def test_silence_ends_a_try_and_keeps_what_came(download, server, cache, refusal):
    server.stall_after = 70_000
    start = time.monotonic()
    line = refusal(lambda: download(timeout_s=0.2))
    assert time.monotonic() - start < 5
    assert "ReadTimeout" in line
    kept = (cache / PART).read_bytes()
    assert len(kept) >= 65_536
    assert BODY.startswith(kept)
    server.stall_after = None
    download()
    assert read_cache(cache) == {NAME: BODY}


def test_a_server_that_gives_a_byte_at_a_time_does_not_hold_us_for_ever(download, server, cache, refusal):
    server.cuts = [1] * 1000
    assert "3 bytes are kept" in refusal(download)
    assert len(server.asked) == 3


def test_no_server_is_one_line(server, cache, refusal):
    source = replace(make_source(server.contents), timeout_s=1.0)
    line = refusal(list, fetch(source.images, cache, source))
    assert "3 tries" in line
    assert "Connection" in line


@pytest.mark.parametrize("cut", [[], [1000, 1000]])
def test_more_bytes_than_the_archive_has_are_not_written(cut, server, cache, refusal):
    server.cuts = list(cut)
    source = make_source(server.contents, server.url)
    line = refusal(list, fetch(replace(source.images, max_bytes=200_000), cache, source))
    assert "200,000 bytes" in line
    assert read_cache(cache) == {}


def test_a_stream_of_unknown_length_ends_at_the_limit(server, cache, refusal):
    server.headers = {"Content-Length": ""}
    source = make_source(server.contents, server.url)
    refusal(list, fetch(replace(source.images, max_bytes=200_000), cache, source))
    assert read_cache(cache) == {}


def test_bytes_are_kept_as_sent_though_the_server_calls_them_encoded(tmp_path):
    content = gzip.compress(b"a tar")
    with serve({NAME: content, "annotations.tar.gz": b""}) as state:
        state.headers = {"Content-Encoding": "gzip"}
        source = make_source(state.contents, state.url)
        list(fetch(source.images, tmp_path, source))
    assert (tmp_path / NAME).read_bytes() == content


def test_a_download_left_half_way_is_kept(server, cache):
    source = make_source(server.contents, server.url)
    steps = fetch(source.images, cache, source)
    done, _ = next(steps)
    steps.close()
    assert read_cache(cache) == {PART: BODY[:done]}
    list(fetch(source.images, cache, source))
    assert server.asked[-1] == (NAME, f"bytes={done}-")


def test_a_killed_download_goes_on_where_it_was(server, cache, download):
    server.slow_s = 0.05
    cut = 3 * 65_536
    md5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
    server.stall_after = cut + 100
    command = [sys.executable, "-c", FETCH, server.url, str(cache), md5]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline().split()[0]) < cut:
            pass
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = (cache / PART).read_bytes()
    assert kept == BODY[: len(kept)]
    assert len(kept) >= cut
    server.stall_after, server.slow_s = None, 0.0
    download()
    assert server.asked[-1] == (NAME, f"bytes={len(kept)}-")
    assert read_cache(cache) == {NAME: BODY}


def test_two_downloads_do_not_write_one_file(download, cache, refusal):
    cache.mkdir()
    descriptor = os.open(cache, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert "another download" in refusal(download)
    finally:
        os.close(descriptor)
    download()


def test_what_pooch_left_when_it_was_killed_is_removed(download, cache):
    cache.mkdir()
    (cache / "tmpabcd1234").write_bytes(b"pooch's")
    (cache / "tmp of mine.txt").write_bytes(b"mine")
    download()
    assert read_cache(cache) == {NAME: BODY, "tmp of mine.txt": b"mine"}


def test_a_cache_that_cannot_be_made_is_one_line(download, tmp_path, refusal):
    (tmp_path / "cache").write_text("a file")
    assert "cannot be written" in refusal(download)


def test_a_full_disk_is_one_line(server, cache, refusal):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    cache.mkdir()
    (cache / PART).symlink_to("/dev/full")
    source = make_source(server.contents, server.url)
    assert "No space left" in refusal(list, fetch(source.images, cache, source))


def test_a_folder_of_ones_own_is_checked_and_left_alone(tmp_path):
    source = write_archives(tmp_path / "own", make_contents(draw_pets()))
    check_archives(tmp_path / "own", source)
    with pytest.raises(InputError) as caught:
        check_archives(tmp_path / "own", OXFORD)
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        str(tmp_path / "own" / "annotations.tar.gz"),
        str(tmp_path / "own" / "images.tar.gz"),
    ]
    assert len(list((tmp_path / "own").iterdir())) == 2
    with pytest.raises(InputError) as caught:
        check_archives(tmp_path, source)
    assert all("no such file" in problem for problem in caught.value.problems)
