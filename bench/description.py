"""What MLflow's pages say in words: the names and colours of runs, their data, and Markdown on runs and experiments.

In:  a trial's settings and result, a Leaderboard.   Out: text, as it is shown.
Knows nothing of MLflow, of files or of a clock.
"""

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare import Leaderboard, Row
from bench.table import format_markdown
from bench.trial import TrialResult, format_value

# Each starts what is ours of a description: what somebody wrote above it stays.
RUN_HEADING = "Settings that vary:"
BOARD_HEADING = "Leaderboard, kept by `bench`:"
NUM_RANKED = 100  # runs below learn no rank: with each new result, those of all below it change
MAX_NOTE_CHARACTERS = 18_000  # MLflow takes 20,000


@dataclass(frozen=True)
class Photos:
    """What a trial learns from, or is measured on, as MLflow's column of datasets shows it."""

    context: str  # training, validation
    name: str
    digest: str
    source: str
    profile: str  # JSON


def name_run(name: str) -> str:
    """The values of what varies: MLflow's lists and legends cut a name off before a second `setting=value`."""
    return " ".join(term.partition("=")[2] for term in name.split())


def name_setting(name: str) -> str:
    """What a trial has in common with its other seeds: grouped by it, MLflow shows means over the seeds."""
    return name_run(" ".join(term for term in name.split() if not term.startswith("seed="))) or "one setting"


def make_color(index: int) -> str:
    """Colours far apart for runs side by side: MLflow's own repeat themselves."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 0.55 + 0.3 * (index % 3) / 2)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def describe_data(data: dict[str, Any]) -> list[Photos]:
    """The training and the validation photos. MLflow takes two of one name and digest for one: names differ."""
    train, val = data["train"], data["val"]
    name = Path(train).name or train
    if data["val_is_train"]:
        val_name = f"{name}, the same photos"
    elif val is None:
        val_name = f"{name}, held out"
    else:
        val_name = Path(val).name or val
        val_name += ", for validation" if val_name == name else ""
    source = train if val is None or data["val_is_train"] else val
    roles = [("training", name, train, data["train_photos"]), ("validation", val_name, source, data["val_photos"])]
    return [
        Photos(context, called, data["fingerprint"], where, json.dumps({"photos": count, "classes": data["classes"]}))
        for context, called, where, count in roles
    ]


def format_run_note(settings: dict[str, Any], result: TrialResult | None, place: str = "") -> str:
    """What a run is and what came of it; `place` is its setting's in the leaderboard, where that is known."""
    terms = [" = ".join(term.split("=", 1)) for term in settings["name"].split()]
    lines = [f"{RUN_HEADING} **{', '.join(terms)}**", ""]
    if result is not None and result.status == "finished":
        miou, epochs = result.metrics["val/miou"], settings["settings"]["epochs"]
        lines.append(f"- val/miou **{miou:.3f}**, after epoch {result.best_epoch} of {epochs}")
        if result.is_rung:
            lines.append("- short, to choose which settings are trained in full: not ranked")
    elif result is not None:
        lines.append(f"- failed: {result.failure}: {result.reason}")
    if place:
        lines.append(f"- {place}")
    return "\n".join([*lines, f"- a trial of `{settings['grid']}`"])


def list_places(board: Leaderboard) -> dict[str, str]:
    """Where each result's setting stands, by the result's key; of the first NUM_RANKED settings."""
    places: dict[str, str] = {}
    for row in board.rows[:NUM_RANKED]:
        place = f"rank {row.rank} of {len(board.rows)} settings"
        if len(row.results) > 1:
            place += f", the mean of {len(row.results)} seeds {row.score.value:.3f}"
        places |= {result.key: f"{place}: {_judge(row)}" for result in row.results}
    return places


def format_board_note(board: Leaderboard) -> str:
    """An experiment's description: what leads, for MLflow shows the first line alone until it is asked for more;
    then the leaderboard, as many rows of it as MLflow takes.
    """
    lines = [
        f"{BOARD_HEADING} {_format_lead(board)}",
        "",
        *map(_space_out, format_markdown(board, is_narrow=True).splitlines()),
    ]
    num_cut = 0
    while sum(len(line) + 1 for line in lines) > MAX_NOTE_CHARACTERS:
        last_row = max(index for index, line in enumerate(lines) if line.startswith("|"))
        del lines[last_row]
        num_cut += 1
    if num_cut:
        lines.append(f"\n{num_cut} settings further down are left out here; `bench compare` lists them.")
    return "\n".join(lines)


def join_note(before: str, ours: str) -> str:
    """A description with our part brought up to date, and above it what somebody else wrote there."""
    heading = BOARD_HEADING if ours.startswith(BOARD_HEADING) else RUN_HEADING
    return before.partition(heading)[0] + ours


def _format_lead(board: Leaderboard) -> str:
    best, *others = board.rows
    name = (
        ", ".join(f"{setting} = {format_value(best.settings[setting])}" for setting in board.varying) or "one setting"
    )
    line = f"**{name}** leads with val/miou **{best.score.value:.3f}**"
    if not others:
        return line
    verdicts = [row.is_tied for row in others]
    if None in verdicts:
        return f"{line}; one seed, so nobody knows whether it is better than the {len(others)} others"
    return f"{line}; tied with it: {verdicts.count(True)} of {len(others)} others"


def _space_out(line: str) -> str:
    """A table's line with air between its columns: MLflow's pages have none."""
    return line if line.startswith("|--") else line.replace(" | ", " \u00a0|\u00a0 ")


def _judge(row: Row) -> str:
    """A setting beside the best."""
    if row.to_best is None:
        return "best"
    if row.is_tied is None:
        return f"{row.to_best.value:+.3f}, one seed: nobody knows"
    return f"{row.state} ({row.to_best.low:+.3f} to {row.to_best.high:+.3f})"
