"""The winner on the test photos: one setting, chosen on validation alone, looked at once.

In:  a leaderboard, test photos.   Out: a score with its interval, and who was scored on these photos before.
Knows nothing of how the winner was chosen, nor of MLflow.      (S seeds, N photos, K classes)
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.claim import hold, write_test
from bench.compare import Leaderboard, drop_seed, find_axes, identify, name_settings
from bench.counts import format_counts, parse_counts
from bench.journal import Line, is_running, list_folders, list_superseded, read_settings, read_tests
from bench.statistics import Estimate, draw, estimate
from bench.trial import LATER_SETTINGS
from catseg.dataset import PhotoSet, load_test_set
from catseg.photo import count_valid_pixels

WEIGHTS = "best.safetensors"
NUM_LOOKS_NAMED = 3  # of many


@dataclass(frozen=True)
class Look:
    """A setting that was scored on these photos."""

    name: str
    time_ms: int


@dataclass(frozen=True)
class WinnerScore:
    """What the setting that validation chose scores on the test photos."""

    name: str  # what tells the setting from the others
    settings: dict[str, Any]  # without the seed
    source: str
    seeds: tuple[int, ...]
    metrics: tuple[dict[str, float], ...]  # test/... of each seed
    score: Estimate  # test/miou, the mean over the seeds; with one seed the interval is of the photos alone
    num_settings: int  # that were tried, so many had the chance to win
    num_photos: int
    time_ms: int  # when it was scored
    is_recorded: bool  # before this call
    others: tuple[Look, ...]  # at the same photos, oldest first
    folders: tuple[Path, ...]  # of its trials: what MLflow must be told of


@dataclass(frozen=True)
class _Model:
    """The weights of one seed, held."""

    folder: Path
    weights: str  # sha256
    scoring: Line | None  # on these photos, if there is one already


def score_winner(
    experiment_folder: Path, board: Leaderboard, source: str, device_name: str = "auto"
) -> WinnerScore | None:
    """Score the models of the best setting, all its seeds, on test photos, unless these weights were scored on these
    photos before: then it gives what is recorded.

    The leaderboard has a row, and is of trials of this folder. None: another session is at work on one of them, and
    the winner may be another soon.
    """
    row = board.rows[0]
    folders = [list_folders(experiment_folder).get(result.key) for result in row.results]
    there = [folder for folder in folders if folder is not None and not is_running(folder)]
    kept = read_settings(there[0]) if there else None
    if len(there) < len(folders) or kept is None:
        return None
    photos, fingerprint = load_test_set(source, tuple(kept["data"]["classes"]), row.settings["image_size"])
    with ExitStack() as stack:
        for folder in there:  # by seed: two who want the same ones do not wait for each other crosswise
            stack.enter_context(hold(folder / "lock"))
        models = [_find_scoring(folder, fingerprint) for folder in there]
        for model, result in zip(models, row.results, strict=True):
            if result.files and result.files[WEIGHTS]["sha256"] != model.weights:
                return None
        scorings = _score_missing(models, photos, fingerprint, source, row.settings["batch_size"], device_name)
    return _summarise(experiment_folder, board, source, there, scorings, all(model.scoring for model in models))


def _find_scoring(folder: Path, fingerprint: str) -> _Model:
    weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    for scoring in read_tests(folder):
        if (scoring["fingerprint"], scoring["weights"]) == (fingerprint, weights) and parse_counts(scoring):
            return _Model(folder, weights, scoring)
    return _Model(folder, weights, None)


def _score_missing(
    models: Sequence[_Model], photos: PhotoSet, fingerprint: str, source: str, batch_size: int, device_name: str
) -> list[Line]:
    """The scoring of each model; new ones are written down when all are done, so that half a look is none."""
    now_ms = time.time_ns() // 1_000_000
    scorings = []
    for model in models:
        if model.scoring is not None:
            scorings.append(model.scoring)
            continue
        from bench.run import score_test  # torch: not for who only looks up what is recorded

        metrics, counts_NK3 = score_test(model.folder / WEIGHTS, photos, batch_size, device_name)
        pixels_N = count_valid_pixels(photos.native_masks).tolist()
        identity = {"test": source, "fingerprint": fingerprint, "weights": model.weights, "time_ms": now_ms}
        scorings.append(identity | {"metrics": metrics} | format_counts(photos.names, counts_NK3.tolist(), pixels_N))
    for model, scoring in zip(models, scorings, strict=True):
        if model.scoring is None:
            write_test(model.folder, scoring)
    return scorings


def _summarise(
    experiment_folder: Path,
    board: Leaderboard,
    source: str,
    folders: Sequence[Path],
    scorings: Sequence[Line],
    is_recorded: bool,
) -> WinnerScore:
    row = board.rows[0]
    counts = [kept for scoring in scorings if (kept := parse_counts(scoring))]
    draws = draw([np.stack([kept.counts_NK3 for kept in counts])])
    time_ms = max(scoring["time_ms"] for scoring in scorings)
    mine = (identify(row.settings), row.results[0].data_fingerprint, time_ms)
    looks = _list_looks(experiment_folder, source, scorings[0]["fingerprint"])
    failed = [(drop_seed(result.settings), result.is_rung) for result in board.failed]
    full = [settings for settings, is_rung in failed if not is_rung] + [other.settings for other in board.rows]
    short = [settings for settings, is_rung in failed if is_rung] + [setting.settings for setting in board.stopped]
    varying = find_axes([*full, *looks.values()], short)
    return WinnerScore(
        name_settings(row.settings, varying),
        row.settings,
        source,
        row.seeds,
        tuple(scoring["metrics"] for scoring in scorings),
        estimate(draws, np.ones(1)),
        len({identify(settings) for settings in [*full, *short]}),
        draws.num_photos,
        time_ms,
        is_recorded,
        tuple(
            Look(
                name_settings(settings, varying) + ("" if look[1] == mine[1] else " (of other training photos)"),
                look[2],
            )
            for look, settings in sorted(looks.items(), key=lambda item: item[0][2])
            if look != mine
        ),
        tuple(folders),
    )


def _list_looks(experiment_folder: Path, source: str, fingerprint: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Each setting that was scored on these photos, on which data it was trained, and when; what was done anew, too.

    Where only the name of the test photos is known, an equal name is taken for equal photos.
    """
    looks = {}
    for folder in [*list_folders(experiment_folder).values(), *list_superseded(experiment_folder)]:
        for scoring in read_tests(folder):
            kept = read_settings(folder)
            is_same = scoring["fingerprint"] == fingerprint or (
                not scoring["fingerprint"] and scoring["test"] == source
            )
            if kept is not None and is_same:
                settings = drop_seed(LATER_SETTINGS | kept["settings"])
                data = kept.get("data", {}).get("fingerprint", "")
                looks[identify(settings), data, scoring["time_ms"]] = settings
    return looks


def format_winner(score: WinnerScore) -> list[str]:
    """One line: the setting, of how many, its score and how sure that is. Another one if somebody had looked before."""
    low, high = max(score.score.low, 0.0), min(score.score.high, 1.0)
    mious = ", ".join(f"{metrics['test/miou']:.3f}" for metrics in score.metrics)
    seeds = f"mean of {len(score.seeds)} seeds: {mious}" if len(score.seeds) > 1 else "1 seed: of the photos alone"
    photos = "1 photo" if score.num_photos == 1 else f"{score.num_photos} photos"
    tried = "the only setting tried" if score.num_settings == 1 else f"of {score.num_settings} settings tried"
    when = f", as scored on {_format_day(score.time_ms)}" if score.is_recorded else ""
    lines = [
        f"Test: val/miou chose {score.name}, {tried}; test/miou {score.score.value:.3f} on {score.source}"
        f" (95 %: {low:.3f} .. {high:.3f}; {photos}, {seeds}){when}"
    ]
    before = [look for look in score.others if look.time_ms < score.time_ms]
    since = [look for look in score.others if look.time_ms >= score.time_ms]
    parts = [f"{word} {_format_looks(looks)}" for word, looks in (("before", before), ("since", since)) if looks]
    if parts:
        number, last = len(before) + 1, len(score.others) + 1
        place = f"{number} of {last}" if since else f"{number}"
        lines.append(f"These test photos were looked at {', and '.join(parts)}; this is look {place}.")
    return lines


def format_busy(board: Leaderboard) -> str:
    """What is said where `score_winner` gave None."""
    winner = name_settings(board.rows[0].settings, board.varying)
    return f"Test: another session is at work on {winner}; the same command scores what wins then"


def _format_looks(looks: Sequence[Look]) -> str:
    named = ", ".join(f"{look.name} on {_format_day(look.time_ms)}" for look in looks[-NUM_LOOKS_NAMED:])
    more = len(looks) - NUM_LOOKS_NAMED
    return f"by {named}" + (f" and {more} more" if more > 0 else "")


def _format_day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000).astimezone().date().isoformat()
