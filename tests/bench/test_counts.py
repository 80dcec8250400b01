"""Counts per photo: written and read back; results from before valid pixels were counted are read, too."""

import json

import pytest

from bench.counts import format_counts, parse_counts

COUNTS = [[[1, 2, 3], [0, 0, 0]], [[4, 5, 6], [7, 8, 9]]]


def test_counts_are_read_as_they_were_written():
    kept = parse_counts(json.loads(json.dumps(format_counts(("tom", "kitty"), COUNTS, (90, 80)))))
    assert kept.photos == ("tom", "kitty")
    assert kept.counts_NK3.tolist() == COUNTS
    assert kept.pixels_N.tolist() == [90, 80]


def test_what_was_kept_before_valid_pixels_is_read_without_them():
    content = format_counts(("tom", "kitty"), COUNTS, (90, 80))
    del content["valid_pixels"]
    kept = parse_counts(content)
    assert (kept.counts_NK3.tolist(), kept.pixels_N) == (COUNTS, None)


@pytest.mark.parametrize(
    "content", [None, [], {}, {"counts_per_class": {}}, {"counts_per_class": {"tom": 3}}, {"counts_per_class": None}]
)
def test_what_is_not_whole_is_none(content):
    assert parse_counts(content) is None
