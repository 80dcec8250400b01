"""labels.txt as people write it, and class_names.txt as it comes with masks."""

import pytest

from catseg.labelme import load_labels


@pytest.fixture
def write(tmp_path):
    """write(content): a labels.txt with these bytes, or this text."""

    def write_file(content: bytes | str):
        path = tmp_path / "labels.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ("__ignore__\n_background_\ncat\n", ("cat",)),  # as the tutorial has it
        ("__ignore__\n_background_\ncat\ndog\nbird", ("cat", "dog", "bird")),
        ("_background_\ncat\ndog", ("cat", "dog")),  # class_names.txt
        ("__ignore__\ncat\n", ("cat",)),
        ("cat\n", ("cat",)),
        ("dog\ncat\n", ("dog", "cat")),  # their order, not the alphabet's
        ("\n\n__ignore__\n\n_background_\n\n  cat \n\t\ndog\n\n", ("cat", "dog")),
        ("__ignore__\r\n_background_\r\ncat\r\n", ("cat",)),
        ("\ufeff__ignore__\n_background_\ncat\n", ("cat",)),
        ("\ufeff__ignore__\r\n_background_\r\ncat", ("cat",)),
        ("猫\nstreet cat\nCat\ncat\n", ("猫", "street cat", "Cat", "cat")),
        ("# cat\n", ("# cat",)),  # there are no comments
    ],
)
def test_classes_are_read_in_their_order(write, content, classes):
    assert load_labels(write(content)) == classes


def test_as_many_classes_are_read_as_there_are_ids(write):
    names = tuple(f"class-{number}" for number in range(254))
    assert load_labels(write("__ignore__\n_background_\n" + "\n".join(names))) == names


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "0 classes; write 1 to 254"),
        ("\n \n", "0 classes"),
        ("__ignore__\n_background_\n", "0 classes"),
        ("\n".join(f"class-{number}" for number in range(255)), "255 classes; write 1 to 254"),
        ("__ignore__\n_background_\ncat\ndog\ncat\n", "'cat' stands there twice"),
        ("cat\n cat \n", "'cat' stands there twice"),
        ("_background_\n__ignore__\ncat\n", "__ignore__ must stand before"),
        ("cat\n_background_\n", "_background_ must stand before"),
        ("__ignore__\ncat\n_background_\n", "_background_ must stand before"),
        ("__ignore__\n__ignore__\ncat\n", "__ignore__ must stand before"),
        ("_background_\n_background_\ncat\n", "_background_ must stand before"),
        (b"ch\xe2t\n", "save it as UTF-8"),
        ("cat\n".encode("utf-16"), "save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "save it as UTF-8"),
        (("x" * 1_000_000 + "\n") * 2, "no text file"),
    ],
)
def test_file_that_names_no_classes_is_refused(write, refusal, content, says):
    path = write(content)
    line = refusal(load_labels, path)
    assert line.startswith(f"{path}: ") and says in line and len(line) < 1_000


def test_missing_file_is_refused_with_an_example(tmp_path, refusal):
    line = refusal(load_labels, tmp_path / "labels.txt")
    assert "no such file" in line and "__ignore__, _background_, cat" in line


def test_folder_in_place_of_the_file_is_refused(tmp_path, refusal):
    assert refusal(load_labels, tmp_path).startswith(f"{tmp_path}: cannot be read (")
