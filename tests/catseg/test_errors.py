"""What is said of an error fits into one line."""

from catseg.errors import first_line


def test_an_error_is_told_by_its_first_line_or_by_its_kind_where_it_says_nothing():
    assert first_line(OSError("\n  no room\nat all\n")) == "no room"
    assert first_line(ValueError()) == first_line(ValueError(" \n")) == "ValueError"
