"""The Oxford-IIIT Pets: downloads that go on where they were cut, archives that are not trusted, exact masks."""

import fcntl
import gzip
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg.dataset import read_pairs
from catseg.errors import InputError
from catseg.folder import list_pairs
from catseg.pets import OXFORD, check_archives, convert_pets, fetch
from catseg.photo import VOC_PALETTE, VOID, read_mask, read_photo
from tests.pets_archives import (
    clone_pet,
    draw_pet,
    draw_pets,
    encode,
    list_annotations,
    list_images,
    make_contents,
    make_member,
    make_source,
    pack,
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
from catseg.pets import Archive, Source, fetch

url, folder, md5 = sys.argv[1:]
for done, total in fetch(Archive("images.tar.gz", md5, 10**6), Path(folder), Source(url, wait_s=0.01)):
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


# --- downloads -----------------------------------------------------------------------------------------------------


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


# --- the VOC folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def convert(tmp_path):
    """convert(pets, species=..., border=...): the folder made of them, and what was said of it."""

    def run(pets, **choice):
        source = write_archives(tmp_path / "own", make_contents(pets))
        steps = convert_pets(tmp_path / "own", tmp_path / "out", source=source, **choice)
        seen = []
        while True:
            try:
                seen.append(next(steps))
            except StopIteration as end:
                assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)] or end.value.left_out
                return tmp_path / "out", end.value

    return run


def find_pet(pets, name):
    return next(pet for pet in pets if pet.name == name)


@pytest.mark.parametrize(("border", "border_id"), [("void", VOID), ("class", 1)])
def test_a_cat_is_one_around_it_nothing_and_its_border_as_chosen(border, border_id, convert):
    pets = draw_pets()
    out, found = convert(pets, border=border)
    names = sorted(path.stem for path in (out / "SegmentationClass").iterdir())
    assert names == ["Bengal_1", "Bengal_2", "Bombay_10", "Siamese_3"]
    assert sorted(path.name for path in (out / "JPEGImages").iterdir()) == [f"{name}.jpg" for name in names]
    for name in names:
        trimap = find_pet(pets, name).values
        mask = read_mask(out / "SegmentationClass" / f"{name}.png")
        assert {1, 2, 3} == set(np.unique(trimap))
        for value, label_id in ((1, 1), (2, 0), (3, border_id)):
            assert set(mask[trimap == value]) == {label_id}
        assert (out / "JPEGImages" / f"{name}.jpg").read_bytes() == find_pet(pets, name).photo
    assert (found.classes, found.num_photos, found.left_out) == (("cat",), {"trainval": 3, "test": 1}, ())
    with Image.open(out / "SegmentationClass" / "Bengal_1.png") as image:
        assert image.getpalette() == VOC_PALETTE


def test_the_official_split_is_kept_in_its_order(convert):
    out, _ = convert(draw_pets())
    lists = out / "ImageSets" / "Segmentation"
    assert (lists / "trainval.txt").read_text() == "Bengal_1\nBengal_2\nSiamese_3\n"
    assert (lists / "test.txt").read_text() == "Bombay_10\n"
    pairs = list_pairs(str(lists / "trainval.txt"), ("cat",))
    assert [pair.name for pair in pairs] == ["Bengal_1", "Bengal_2", "Siamese_3"]
    assert read_pairs(pairs, [32])[32].names == ("Bengal_1", "Bengal_2", "Siamese_3")


@pytest.mark.parametrize(
    ("species", "classes", "ids"),
    [
        ("dog", ("dog",), {"beagle_2": 1, "basset_hound_11": 1}),
        ("both", ("cat", "dog"), {"beagle_2": 2, "Bengal_1": 1}),
    ],
)
def test_dogs_are_a_class_of_their_own(species, classes, ids, convert):
    out, found = convert(draw_pets(), species=species, border="class")
    assert found.classes == classes
    assert (out / "class_names.txt").read_text().split() == ["_background_", *classes]
    for name, label_id in ids.items():
        assert set(np.unique(read_mask(out / "SegmentationClass" / f"{name}.png"))) == {0, label_id}
    num = len(list_pairs(str(out), classes))
    assert num == {"dog": 2, "both": 6}[species]


def test_photos_that_are_no_jpeg_become_one(convert):
    pixels = draw_pets()[0]
    photo = read_photo(pixels.photo, "x")
    alpha = np.dstack([photo, np.full(photo.shape[:2], 128, np.uint8)])
    cmyk = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(cmyk, "JPEG")
    files = {"PNG": encode(photo, "PNG"), "GIF": encode(photo, "GIF"), "alpha": encode(alpha, "PNG")}
    files |= {"CMYK": cmyk.getvalue(), "grey": encode(photo[..., 0], "JPEG"), "16": encode_16(photo)}
    pets = [replace(pixels, name=name, photo=data) for name, data in files.items() if name != "16"]
    out, _ = convert([*pets, find_pet(draw_pets(), "Bombay_10")])
    for pet in pets:
        with Image.open(out / "JPEGImages" / f"{pet.name}.jpg") as image:
            assert image.format == "JPEG"
            assert image.mode in ("RGB", "L")
        written = read_photo(out / "JPEGImages" / f"{pet.name}.jpg").astype(int)
        limit = 0 if pet.name == "grey" else 6
        assert abs(written - read_photo(pet.photo, pet.name)).mean() <= limit


def encode_16(photo):
    return encode(photo[..., 0].astype(np.uint16) * 256, "PNG")


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_photo_that_exif_turns_stays_under_its_trimap(orientation, convert):
    pet, other = draw_pets()[0], draw_pets()[2]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = replace(pet, photo=encode(read_photo(pet.photo, "x"), exif=exif.tobytes(), quality=95))
    out, found = convert([turned, other])
    assert found.left_out == ()
    ((photo, mask),) = [pair.read() for pair in list_pairs(str(out), ("cat",)) if pair.name == pet.name]
    assert abs(photo.astype(int) - read_photo(pet.photo, "x")).mean() < 4
    assert (mask == 0).sum() == (pet.values == 2).sum()


def spoil(pets, name, **changes):
    return [replace(pet, **changes) if pet.name == name else pet for pet in pets]


SPOILT = {
    "no photo": ({"photo": b"not a photo"}, "images/Bengal_1_5.jpg: cannot be decoded"),
    "half a photo": ({"photo": None}, "images/Bengal_1_5.jpg: cannot be decoded"),
    "16 bits": ({"photo": encode_16(np.zeros((36, 48, 3), np.uint8))}, "more than 8 bits"),
    "other size": ({"trimap": encode(np.ones((48, 36), np.uint8), "PNG")}, "36 x 48 pixels, its photo 48 x 36"),
    "no trimap": ({"trimap": b""}, "annotations/trimaps/Bengal_1_5.png: cannot be decoded"),
    "colours": ({"trimap": encode(np.ones((36, 48, 3), np.uint8), "PNG")}, "more than 1, 2 and 3"),
    "other values": ({"trimap": encode(np.full((36, 48), 4, np.uint8), "PNG")}, "more than 1, 2 and 3"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_one_bad_photo_in_a_hundred_is_left_out_and_named(kind, convert):
    changes, words = SPOILT[kind]
    pet = draw_pets()[0]
    pets = spoil(
        clone_pet(pet, 100), "Bengal_1_5", **{k: v if v is not None else pet.photo[:500] for k, v in changes.items()}
    )
    out, found = convert(pets)
    (line,) = found.left_out
    assert words in line
    assert line.isprintable()
    assert found.num_photos == {"trainval": 50, "test": 49}
    assert not list(out.rglob("Bengal_1_5.*"))
    assert "Bengal_1_5\n" not in (out / "ImageSets" / "Segmentation" / "test.txt").read_text()
    assert line in (out / "README.txt").read_text()
    assert len(list_pairs(str(out), ("cat",))) == 99


def test_two_bad_photos_in_a_hundred_are_too_many(convert, tmp_path):
    pets = clone_pet(draw_pets()[0], 100)
    pets = spoil(spoil(pets, "Bengal_1_5", photo=b"no"), "Bengal_1_7", trimap=b"no")
    with pytest.raises(InputError) as caught:
        convert(pets)
    first, second, verdict = caught.value.problems
    assert "Bengal_1_5" in first
    assert "Bengal_1_7" in second
    assert "2 of 100 photos cannot be used" in verdict
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_photos_and_trimaps_that_are_missing_are_left_out(tmp_path):
    pets = clone_pet(draw_pets()[0], 200)
    contents = {NAME: pack(list_images(pets[1:])), "annotations.tar.gz": pack(list_annotations(pets)[:-1])}
    source = write_archives(tmp_path / "own", contents)
    steps = convert_pets(tmp_path / "own", tmp_path / "out", source=source)
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert end.value.value.left_out == (
        "annotations/trimaps/Bengal_1_199.png: not in the archive",
        "images.tar.gz: no photo 'Bengal_1_0'",
    )


def test_annotations_without_their_lists_are_refused(tmp_path, refusal):
    pets = draw_pets()
    for name in ("list", "trainval", "test"):
        files = [file for file in list_annotations(pets) if not file[0].name.endswith(f"/{name}.txt")]
        contents = {NAME: pack(list_images(pets)), "annotations.tar.gz": pack(files)}
        source = write_archives(tmp_path / "own", contents)
        line = refusal(list, convert_pets(tmp_path / "own", tmp_path / "out", source=source))
        assert f"no annotations/{name}.txt" in line


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("test", b"Bengal_1 6 1 2\nBombay_10 6 1 2\n", "'Bengal_1' in trainval.txt and test.txt"),
        ("test", b"Bombay_10 6 1 2\nnew\x1b[31m_1 1 1 1\n", "of no species in list.txt"),
        ("test", b"beagle_2 6 2 2\n", "no photo of cat in test.txt"),
        ("list", b"\xff\xfe\n", "of no species in list.txt"),
    ],
)
def test_lists_that_contradict_each_other_are_refused(name, text, words, tmp_path):
    pets = draw_pets()
    files = [
        make_member(member.name, text) if member.name.endswith(f"/{name}.txt") else (member, content)
        for member, content in list_annotations(pets)
    ]
    source = write_archives(tmp_path / "own", {NAME: pack(list_images(pets)), "annotations.tar.gz": pack(files)})
    with pytest.raises(InputError, match="download it anew") as caught:
        list(convert_pets(tmp_path / "own", tmp_path / "out", source=source))
    assert any(words in problem for problem in caught.value.problems)
    assert all(problem.isprintable() for problem in caught.value.problems)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_conversion_left_half_way_leaves_nothing(tmp_path):
    source = write_archives(tmp_path / "own", make_contents(draw_pets()))
    steps = convert_pets(tmp_path / "own", tmp_path / "out", source=source)
    next(steps)
    steps.close()
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_folder_that_is_there_is_not_touched(tmp_path, refusal):
    source = write_archives(tmp_path / "own", make_contents(draw_pets()))
    (tmp_path / "out").mkdir()
    assert "is there already" in refusal(list, convert_pets(tmp_path / "own", tmp_path / "out", source=source))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_licence_travels_with_the_photos(convert):
    out, _ = convert(draw_pets())
    text = (out / "README.txt").read_text()
    assert "CC BY-SA 4.0" in text
    assert "Parkhi" in text
    assert "Left out:\nnothing\n" in text


def test_a_pet_drawn_for_these_tests_has_a_border():
    assert set(np.unique(draw_pet(0, "a", 1, "test").values)) == {1, 2, 3}
