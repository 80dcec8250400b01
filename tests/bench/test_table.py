"""A leaderboard as people and programs read it."""

import csv
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from bench.table import (
    format_csv,
    format_json,
    format_markdown,
    make_records,
    print_effects,
    print_leaderboard,
)
from tests.leaderboards import HERE, THERE, fail, finish, make_board

SEEDED = {0.1: (0.60, 0.64, 0.62), 0.2: (0.63, 0.59, 0.61), 0.3: (0.30, 0.33, 0.31)}


@pytest.fixture(scope="module")
def seeded():
    return make_board([finish(miou, seed, lr=lr) for lr, row in SEEDED.items() for seed, miou in enumerate(row)])


def print_to_text(board, width=80, effects=False):
    text = io.StringIO()
    (print_effects if effects else print_leaderboard)(Console(file=text, width=width), board)
    return text.getvalue()


def list_cells(text):
    return [line.split() for line in text.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]


def test_four_settings_of_one_seed_fit_in_eighty_columns_with_every_number():
    results = [
        finish(miou, seconds=seconds, init_features=width, lr=lr, image_size=size, loss=loss)
        for miou, seconds, width, lr, size, loss in (
            (0.25, 7.0, 8, 0.0005, 128, "bce_dice"),
            (0.875, 98.7, 16, 0.003, 96, "dice"),
        )
    ]
    lines = print_to_text(make_board(results, 0)).splitlines()
    assert max(map(len, lines)) <= 80
    assert list_cells("\n".join(lines)) == [
        ["1", "16", "0.003", "96", "dice", "0.875", "0.775", "2", "98.7", "10", "457"],
        ["2", "8", "0.0005", "128", "bce_dice", "0.250", "0.150", "2", "7.0", "143", "457"],
    ]


def test_what_is_off_or_on_is_null_or_true_as_in_the_experiment_file():
    board = make_board([finish(0.5, ema=None), finish(0.6, ema=0.99, deep_supervision=True)])
    text = print_to_text(board) + print_to_text(board, effects=True) + format_markdown(board)
    assert [row[1:3] for row in list_cells(text)] == [["0.99", "true"], ["null", "false"]]
    assert re.search(r"ema +null +0.99", print_to_text(make_board([finish(0.5), finish(0.6, ema=0.99)]), effects=True))
    assert not re.search("None|True|False", text)


def test_settings_that_all_trials_share_are_no_columns():
    text = print_to_text(make_board([finish(lr=0.1), finish(lr=0.2)]))
    assert "lr" in text
    assert "loss" not in text


def test_it_says_on_what_machine_it_was_timed_and_what_one_seed_is_worth():
    text = print_to_text(make_board([finish()]))
    assert "Machine: Example CPU, 2 threads, torch 2.13.0" in text
    assert "One seed per setting: an order, not a comparison." in text


def test_what_failed_is_listed_with_its_kind_and_reason_even_if_nothing_finished():
    text = print_to_text(make_board([dataclasses.replace(fail(lr=0.1), name="lr=0.1", reason="loss is nan at [2]")]))
    assert text == "FAILED  lr=0.1: nonfinite: loss is nan at [2]\n"


def test_only_the_first_hundred_are_shown_and_the_others_counted():
    text = print_to_text(make_board([finish(lr=0.001 + number / 10_000) for number in range(103)]))
    assert len(list_cells(text)) == 100
    assert "... and 3 below" in text


def test_a_trial_that_ran_on_several_machines_is_not_timed():
    text = print_to_text(make_board([finish(environment=HERE | {"machine_fingerprint": "mixed"})]))
    assert "several machines or numbers of threads in one trial" in " ".join(text.split())
    assert "10.0" not in text


def test_seeds_folded_say_what_is_tied_and_what_is_worse(seeded):
    text = print_to_text(seeded, width=140)
    rows = list_cells(text)
    assert [row[:2] for row in rows] == [["1", "0.1"], ["1", "0.2"], ["3", "0.3"]] * 2
    assert [("best" in row, "tied" in row, "worse" in row) for row in rows[:3]] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert rows[0][-3:] == ["0.600", "0.640", "0.620"]
    assert "lr=0.1 is best, val/miou 0.620, tied with 1 of 2 others: lr=0.2." in text


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_leaves_out_what_can_be_spared_and_cuts_nothing(seeded, width):
    text = print_to_text(seeded, width)
    table = [line for line in text.splitlines() if list_cells(line)]
    assert max(map(len, table)) <= width
    assert "…" not in text
    assert "worse" in text


def test_unlike_machines_never_share_a_timing_column():
    board = make_board([finish(0.6, 0, 10.0, lr=0.1), finish(0.5, 0, 90.0, THERE, lr=0.2)])
    text = print_to_text(board, 120)
    assert "Machine A: Example CPU" in text
    assert "Machine B: Other CPU" in text
    records = make_records(board)
    assert [record["cost/train_seconds [here]"] for record in records] == [10, None]
    assert [record["cost/train_seconds [there]"] for record in records] == [None, 90]


def test_effects_name_each_step_with_its_interval_and_what_one_seed_leaves_open(seeded):
    lines = print_to_text(seeded, 100, effects=True).splitlines()
    cells = [line.split() for line in lines if line.strip().startswith("lr")]
    assert [row[:3] for row in cells] == [["lr", "0.1", "0.2"], ["lr", "0.2", "0.3"]]
    assert cells[1][3] == "-0.297"
    one_seed = print_to_text(make_board([finish(0.5, lr=0.1), finish(0.4, lr=0.2)]), 100, effects=True)
    assert "with one seed nobody knows" in one_seed
    assert print_to_text(make_board([finish()]), effects=True) == ""


def test_csv_has_a_line_for_each_setting_and_every_number_unrounded(seeded):
    rows = list(csv.DictReader(io.StringIO(format_csv(seeded))))
    assert [(row["rank"], row["lr"], row["num_seeds"], row["verdict"]) for row in rows] == [
        ("1", "0.1", "3", "best"),
        ("1", "0.2", "3", "tied"),
        ("3", "0.3", "3", "worse"),
    ]
    assert [float(value) for value in rows[0]["seed_mious"].split()] == [0.60, 0.64, 0.62]
    assert float(rows[2]["to_best"]) == pytest.approx(seeded.rows[2].to_best.value, abs=0)


def test_json_holds_rows_effects_failures_and_machines(seeded):
    content = json.loads(format_json(seeded))
    assert [row["rank"] for row in content["rows"]] == [1, 1, 3]
    assert content["effects"][0]["setting"] == "lr"
    assert content["machines"] == {"here": "Example CPU, 2 threads, torch 2.13.0"}
    assert json.loads(format_json(make_board([fail(lr=0.1)])))["failed"][0]["kind"] == "nonfinite"


def test_markdown_is_a_table_as_wide_in_every_line(seeded):
    lines = format_markdown(seeded).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1
    assert any("lr=0.1 is best" in line for line in lines)
    assert format_csv(make_board([fail()])) == "rank\n"
    assert "FAILED" in format_markdown(make_board([fail()]))
