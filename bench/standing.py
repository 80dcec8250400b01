"""How the trials of an experiment stand, from the journal: its leaderboard, and whose result is whose.

In:  an experiment's folder.   Out: a Standing of all that is finished on the latest data.
Knows nothing of MLflow, nor of how a leaderboard is shown.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare import Leaderboard, find_axes, make_leaderboard
from bench.journal import gather_counts, list_folders, read_result, read_settings
from bench.trial import LATER_SETTINGS, TrialResult


@dataclass(frozen=True)
class Standing:
    """A leaderboard, and the folder of each trial that is in it."""

    board: Leaderboard
    folders: dict[str, Path]  # by the result's key
    data_fingerprint: str  # of the photos that it is about; "": nothing has ended
    num_trials: int  # that ended on those photos
    num_others: int  # that ended on other photos

    def list_varying(self) -> list[str]:
        """The settings in which trials differ, failed ones too, the seed among them."""
        results = [*self.board.failed, *(result for row in self.board.rows for result in row.results)]
        full = [result.settings for result in results if not result.is_rung]
        short = [result.settings for result in results if result.is_rung]
        return list(find_axes(full, [*short, *(setting.settings for setting in self.board.stopped)]))

    def list_best(self) -> Iterator[TrialResult]:
        """The best seed of the setting that leads, then what would be the best without it, and so on."""
        for row in self.board.rows:
            yield from sorted(row.results, key=lambda result: -result.metrics["val/miou"])


def read_standing(experiment_folder: Path) -> Standing:
    """Fold and compare what has ended on the data of the latest result: scores on other photos do not compare."""
    there = {folder: read_result(folder) for folder in list_folders(experiment_folder).values()}
    found = [(folder, result) for folder, result in there.items() if result]
    folders = {result.key: folder for folder, result in found}
    latest = max(found, key=_read_time)[1].data_fingerprint if found else ""
    results = [result for _, result in found if result.data_fingerprint == latest]
    begun = list_begun((folder for folder, result in there.items() if not result), latest)
    board = make_leaderboard(results, gather_counts(experiment_folder, results), begun)
    return Standing(board, folders, latest, len(results), len(found) - len(results))


def list_begun(folders: Iterable[Path], data_fingerprint: str) -> list[dict[str, Any]]:
    """The settings of those trainings in full on these photos that have begun and not ended, of these trials."""
    unfinished = (read_settings(folder) for folder in folders if not read_result(folder))
    return [
        LATER_SETTINGS | kept["settings"]
        for kept in unfinished
        if kept and not kept.get("is_rung") and kept.get("data", {}).get("fingerprint") == data_fingerprint
    ]


def _read_time(pair: tuple[Path, TrialResult]) -> int:
    """When a result was committed."""
    return (pair[0] / "result.json").stat().st_mtime_ns
