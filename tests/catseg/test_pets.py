"""The Oxford-IIIT Pets: exact masks, the official split, and what is left out."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from catseg.dataset import read_pairs
from catseg.errors import InputError
from catseg.folder import list_pairs
from catseg.pets import convert_pets
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
    pack,
    write_archives,
)


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
    contents = {"images.tar.gz": pack(list_images(pets[1:])), "annotations.tar.gz": pack(list_annotations(pets)[:-1])}
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
        contents = {"images.tar.gz": pack(list_images(pets)), "annotations.tar.gz": pack(files)}
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
    source = write_archives(
        tmp_path / "own", {"images.tar.gz": pack(list_images(pets)), "annotations.tar.gz": pack(files)}
    )
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
