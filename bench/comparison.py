"""`bench compare`: what an experiment has finished, from its journal to the terminal and to files.

In:  the flags of the command.   Out: lines on the terminal, CSV, Markdown, JSON.
Knows nothing of how settings are told apart.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from bench import journal
from bench.compare import Leaderboard
from bench.definitions import average, list_definitions, make_definitions_table
from bench.scoring import format_busy, format_winner, score_winner
from bench.standing import read_standing
from bench.table import format_csv, format_json, format_markdown, print_effects, print_leaderboard
from bench.terminal import make_console
from catseg.errors import InputError
from catseg.files import save_bytes

FORMATS = {"csv": format_csv, "markdown": format_markdown, "json": format_json}
STANDARD_OUTPUT = "-"


def compare(
    name: str | None,
    files: Mapping[str, Path],
    html: Path | None = None,
    definitions: bool = False,
    test: str | None = None,
) -> None:
    """Rank all that an experiment has finished on its latest data, whatever grid file it stood in.

    `files` are what to write the same to, by kind of file; `-` is standard output, and nothing else goes there then.
    `html` is where the page goes. `definitions`: what other tools would print for the best. `test`: photos that
    the best is scored on, once.
    """
    console = make_console()
    folder = choose_experiment(name)
    standing = read_standing(folder)
    board = standing.board
    if not standing.num_trials:
        raise InputError(f"{folder}: no trial has ended yet; `bench run` starts some")
    _write_files(board, files)
    if html is not None:
        from bench.report import make_report  # plotly, and torch for the pictures

        make_report(folder, board, html)
    if not any(str(file) == STANDARD_OUTPUT for file in files.values()):
        console.print(f"{folder.name}: {standing.num_trials} trials on data {standing.data_fingerprint}", markup=False)
        if standing.num_others:
            console.print(f"{standing.num_others} on other data are left out: their scores do not compare.")
        print_leaderboard(console, board)
        print_effects(console, board)
        if html is not None:
            console.print(f"\nPage: {html}", markup=False)
        if definitions:
            _print_definitions(console, folder, board)
        if test is not None:
            _print_test(console, folder, board, test)


def _print_definitions(console: Console, folder: Path, board: Leaderboard) -> None:
    if not board.rows:
        raise InputError(f"{folder}: nothing has finished, so there are no numbers to name; `bench run` goes on")
    folders = journal.list_folders(folder)
    counts = [journal.read_counts(folders[result.key]) for result in board.rows[0].results]
    kept = [list_definitions(count.counts_NK3, count.pixels_N) for count in counts if count is not None]
    console.print(f"\nThe first row, mean over {len(kept)} seeds, as other tools would score it:", highlight=False)
    console.print(make_definitions_table(average(kept)))


def _print_test(console: Console, folder: Path, board: Leaderboard, source: str) -> None:
    if not board.rows:
        raise InputError(f"{folder}: nothing has finished, so there is no winner to test; `bench run` goes on")
    score = score_winner(folder, board, source)
    lines = [format_busy(board)] if score is None else format_winner(score)
    if score is not None and not score.is_recorded:
        lines.append("`bench sync` tells MLflow.")
    for line in lines:
        console.print(line, markup=False)


def _write_files(board: Leaderboard, files: Mapping[str, Path]) -> None:
    for kind, path in files.items():
        text = FORMATS[kind](board)
        if str(path) == STANDARD_OUTPUT:
            sys.stdout.write(text)
        else:
            try:
                save_bytes(text.encode(), path)
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def choose_experiment(name: str | None) -> Path:
    """The folder of the experiment that is meant; InputError if it is not clear which."""
    there = journal.list_experiments()
    names = ", ".join(folder.name for folder in there)
    if not there:
        raise InputError(f"{journal.ROOT}: no experiments here; `bench run` makes one, or change the working folder")
    if name is None and len(there) > 1:
        raise InputError(f"{journal.ROOT}: several experiments; name one of {names}")
    chosen = [folder for folder in there if name in (None, folder.name)]
    if not chosen:
        raise InputError(f"{name}: no such experiment here; there are {names}")
    return chosen[0]
