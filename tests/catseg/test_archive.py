"""Archives that are cut, damaged or made to do harm: a line each, and nothing is written."""

import gzip
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from catseg import archive
from catseg.archive import read_members
from catseg.errors import InputError
from catseg.pets import ANNOTATION, PHOTO, convert_pets
from tests.pets_archives import (
    draw_pets,
    list_annotations,
    list_images,
    make_contents,
    make_member,
    pack,
    write_archives,
)

ROOT = Path(__file__).parents[2]
NAME = "images.tar.gz"

EVIL = {
    "parent": make_member("../evil.jpg", b"evil"),
    "parent within": make_member("images/../../evil.jpg", b"evil"),
    "absolute": make_member("/etc/evil", b"evil"),
    "absolute photo": make_member("//images/evil.jpg", b"evil"),
    "symlink": make_member("images/evil.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "symlinked folder": make_member("images", type=tarfile.SYMTYPE, linkname="/tmp"),
    "hard link": make_member("images/evil.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": make_member("images/evil.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": make_member("images/evil.jpg", type=tarfile.FIFOTYPE),
    "sparse": make_member("images/evil.jpg", type=tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("where", [NAME, "annotations.tar.gz"])
@pytest.mark.parametrize("kind", EVIL)
def test_an_evil_member_is_named_and_nothing_is_written(kind, where, tmp_path, refusal):
    pets = draw_pets()
    members = {NAME: list_images(pets), "annotations.tar.gz": list_annotations(pets)}
    members[where].insert(4, EVIL[kind])
    source = write_archives(tmp_path / "own", {name: pack(files) for name, files in members.items()})
    line = refusal(list, convert_pets(tmp_path / "own", tmp_path / "out", source=source))
    assert line.startswith(f"{tmp_path / 'own' / where}: evil member {EVIL[kind][0].name!r}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["annotations.tar.gz", NAME, "own"]
    assert not list(tmp_path.parent.glob("evil*"))


def claim(size: int, name: str = "images/evil.jpg", kind: bytes = tarfile.REGTYPE) -> bytes:
    """A .tar.gz whose only header says so many bytes, and then has none."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT), mtime=0)


@pytest.mark.parametrize("size", [10_000_000_000, 50_000_001, -512])
def test_a_member_that_claims_too_much_is_not_read(size, tmp_path, refusal):
    (tmp_path / NAME).write_bytes(claim(size))
    assert f"claims {size:,} bytes" in refusal(list, read_members(tmp_path / NAME, PHOTO, 2_000_000_000))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [10_000_000_000, 50_000_001, -512])
def test_a_header_that_claims_too_much_is_not_read(kind, size, tmp_path, refusal):
    (tmp_path / NAME).write_bytes(claim(size, kind=kind))
    assert "a header claims" in refusal(list, read_members(tmp_path / NAME, PHOTO, 2_000_000_000))


def test_a_bomb_is_not_unpacked_beyond_the_limit(tmp_path, refusal):
    members = [make_member(f"images/zeros_{number}.jpg", bytes(1_000_000)) for number in range(40)]
    (tmp_path / NAME).write_bytes(pack(members))
    assert (tmp_path / NAME).stat().st_size < 100_000
    taken = []
    with pytest.raises(InputError, match="over 9,000,000 bytes unpacked"):
        taken.extend(name for name, _ in read_members(tmp_path / NAME, PHOTO, 9_000_000))
    passed_over = refusal(list, read_members(tmp_path / NAME, ANNOTATION, 9_000_000))
    assert "over 9,000,000 bytes" in passed_over


def test_a_bomb_of_headers_ends_at_a_number_of_files(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    (tmp_path / NAME).write_bytes(pack([make_member(f"images/a_{number}.mat") for number in range(11)]))
    assert "over 10 files" in refusal(list, read_members(tmp_path / NAME, PHOTO, 1_000_000))


def test_a_bomb_takes_little_memory(tmp_path):
    (tmp_path / NAME).write_bytes(pack([make_member(f"images/{number}.mat", bytes(20_000_000)) for number in range(8)]))
    script = (
        "import resource, sys; from pathlib import Path; from catseg.archive import read_members; import re\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert list(read_members(Path(sys.argv[1]), re.compile('(x)'), 2_000_000_000)) == []\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / NAME)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(process.stdout) < 20_000  # KiB


def test_one_name_twice_is_refused_unless_both_are_the_same(tmp_path, refusal):
    first, other = make_member("images/a.jpg", b"one"), make_member("./images/a.jpg", b"two")
    (tmp_path / NAME).write_bytes(pack([first, first]))
    assert list(read_members(tmp_path / NAME, PHOTO, 1_000_000)) == [("a", b"one")]
    (tmp_path / NAME).write_bytes(pack([first, other]))
    assert "'images/a.jpg' twice" in refusal(list, read_members(tmp_path / NAME, PHOTO, 1_000_000)).replace("./", "")


@pytest.mark.parametrize("keep", [0, 5, 200, 2000, -600, -60])
def test_a_cut_archive_is_one_line(keep, tmp_path, refusal):
    pets = draw_pets()
    contents = make_contents(pets)
    contents[NAME] = contents[NAME][:keep]
    source = write_archives(tmp_path / "own", contents)
    line = refusal(list, convert_pets(tmp_path / "own", tmp_path / "out", source=source))
    assert line.startswith(f"{tmp_path / 'own' / NAME}: cannot be unpacked")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_tar_cut_before_it_was_packed_is_one_line(tmp_path, refusal):
    plain = gzip.decompress(pack(list_images(draw_pets())))
    (tmp_path / NAME).write_bytes(gzip.compress(plain[:3000]))
    assert "unexpected end" in refusal(list, read_members(tmp_path / NAME, PHOTO, 1_000_000))


@pytest.mark.parametrize("content", [b"<html>not an archive</html>", gzip.compress(b"not a tar" * 100)])
def test_something_else_is_one_line(content, tmp_path, refusal):
    (tmp_path / NAME).write_bytes(content)
    assert "cannot be unpacked" in refusal(list, read_members(tmp_path / NAME, PHOTO, 1_000_000))


def test_no_flipped_byte_brings_more_than_a_refusal(tmp_path):
    plain = gzip.decompress(pack([EVIL["symlink"], *list_images(draw_pets()[:2])]))
    rng = random.Random(0)
    for _ in range(400):
        mutant = bytearray(plain)
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(len(plain))] = rng.randrange(256)
        (tmp_path / NAME).write_bytes(gzip.compress(bytes(mutant), 1))
        try:
            names = [name for name, _ in read_members(tmp_path / NAME, PHOTO, 1_000_000)]
        except InputError:
            continue
        assert all(name.replace("_", "").replace("-", "").isalnum() for name in names)


def test_only_plain_names_are_taken(tmp_path):
    names = ["images/a b.jpg", "images/.a.jpg", "images/ä.jpg", "images/sub/a.jpg", "images/a.jpg.exe", "a.jpg"]
    names += ["images/a\n.jpg", "images/" + "a" * 101 + ".jpg", "images\\..\\a.jpg", "images/a.JPG", "images/.jpg"]
    (tmp_path / NAME).write_bytes(
        pack([make_member(name, b"no") for name in names] + [make_member("images/a-B_1.jpg")])
    )
    assert list(read_members(tmp_path / NAME, PHOTO, 1_000_000)) == [("a-B_1", b"")]
