"""Results, curves and pictures -> one HTML file that needs nothing else: no network, no other file.

In:  a leaderboard, and what the journal holds beside it.   Out: a page, whole or not at all.
Knows nothing of how any of it was computed.      (A settings, N photos)

The page is page.html with page.css, page.js, Plotly and the data put in. Its policy lets no script run but these two
and nothing reach a network, whatever names a user's files, classes or settings carry; the data are JSON in which no
character can end a script.
"""

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from bench.compare import NO_SPREAD, Leaderboard, mark_machine, sort_values
from bench.curves import Curves, load_curves
from bench.gallery import Gallery, make_gallery
from bench.journal import list_folders, read_settings
from bench.page import (
    MACHINE_COSTS,
    MAX_ROWS,
    format_facts,
    format_method,
    format_verdict,
    list_failed,
    list_stopped,
    make_effects_table,
    make_leaderboard_table,
    name_row,
)
from bench.trial import format_value
from catseg.errors import InputError
from catseg.files import save_bytes
from catseg.photo import FALSE_ALARM, HIT, MISS, VOID_GREY

MAX_SETTINGS = 100  # with curves, pictures and scores per photo; the table holds more


def make_report(experiment_folder: Path, board: Leaderboard, path: Path, question: str | None = None) -> None:
    """Gather what the journal and the photos' folder hold, and write the page.

    `question` is what the experiment was to answer; None: the first comment of its file, if that is
    still there, else one made of what varies.
    """
    curves = load_curves(experiment_folder, board, MAX_SETTINGS)
    gallery = make_gallery(experiment_folder, board, curves) if board.rows else Gallery((), (), (), ())
    settings = _find_settings(experiment_folder, board)
    if question is None:
        question = read_question(Path(settings["grid"])) if "grid" in settings else None
    num_train = settings.get("data", {}).get("train_photos")
    title = experiment_folder.name
    write_report(path, title, question or _ask(board, title), board, curves, gallery, num_train)


def write_report(
    path: Path,
    title: str,
    question: str,
    board: Leaderboard,
    curves: Curves,
    gallery: Gallery,
    num_train: int | None = None,
) -> None:
    """Write the page; InputError where that cannot be done. `title` names the experiment."""
    page = make_page(title, question, board, curves, gallery, num_train)
    try:
        save_bytes(page.encode(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def make_page(
    title: str, question: str, board: Leaderboard, curves: Curves, gallery: Gallery, num_train: int | None
) -> str:
    """The page as one string."""
    script, plotly = (code.replace("\r\n", "\n") for code in (_read("page.js"), get_plotlyjs()))
    facts = [*format_facts(board, num_train), ("Page made", time.strftime("%Y-%m-%d %H:%M %z"))]
    num_left_out = len(board.rows) - MAX_SETTINGS
    parts = {
        "policy": _make_policy(script, plotly),
        "title": escape(title),
        "question": escape(question),
        "verdict": escape(format_verdict(board)),
        "style": _read("page.css"),
        "script": script,
        "plotly": plotly,
        "leaderboard": make_leaderboard_table(board),
        "notes": _make_notes(board),
        "failed": list_stopped(board) + list_failed(board),
        "effects": make_effects_table(board),
        "facts": "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts),
        "method": escape(format_method(board)),
        "missing": escape(gallery.missing),
        "limit": f"Shown are the first {MAX_SETTINGS} of {len(board.rows):,} settings." if num_left_out > 0 else "",
        "data": dump_json(_gather(board, curves, gallery)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def read_question(path: Path) -> str | None:
    """The first comment of an experiment file, if it starts with one."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").strip())
    return " ".join(comment).strip() or None


def dump_json(content: Any) -> str:
    """JSON that may stand within a script: no tag, no entity, no line separator of JavaScript in it; NaN is null."""
    text = json.dumps(_drop_nan(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def find_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) that no other beats: none costs as little or less and scores as much or more.

    By cost. Of equals the first is kept.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _read(name: str) -> str:
    return (files("bench") / name).read_text("utf-8")


def _make_policy(*scripts: str) -> str:
    """Content-Security-Policy: these scripts, styles and pictures within the page, nothing from anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _find_settings(experiment_folder: Path, board: Leaderboard) -> dict[str, Any]:
    folder = list_folders(experiment_folder).get(board.rows[0].results[0].key) if board.rows else None
    return (read_settings(folder) if folder else None) or {}


def _ask(board: Leaderboard, title: str) -> str:
    """What the grid asks, for want of the user's own words."""
    *others, last = board.varying or ("",)
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{title}: which {names} is best?" if last else f"{title}: how good is it?"


def _make_notes(board: Leaderboard) -> str:
    """What a reader of the table must know: HTML."""
    notes = []
    if len(board.rows) > MAX_ROWS:
        notes.append(f"The best {MAX_ROWS:,} of {len(board.rows):,} settings.")
    if len(board.machines) > 1:
        words = "; ".join(f"({mark_machine(number)}) {words}" for number, words in enumerate(board.machines.values()))
        notes.append(f"Timed on several machines, whose seconds do not compare: {words}.")
    if board.rows and not board.has_spread:
        notes.append(f"{NO_SPREAD}; intervals are of the photos alone.")
    return "".join(f"<p>{escape(note)}</p>" for note in notes)


def _gather(board: Leaderboard, curves: Curves, gallery: Gallery) -> dict[str, Any]:
    """All that the charts and pictures are drawn from."""
    rows = board.rows[:MAX_ROWS]
    return {
        "settings": [name_row(row, board) for row in rows],
        "scores": [[round(number, 5) for number in (r.score.value, r.score.low, r.score.high)] for r in rows],
        "states": [row.state for row in rows],
        "axes": [_make_axis(name, [row.settings[name] for row in rows[:MAX_SETTINGS]]) for name in board.varying],
        "machines": [
            {"name": words, "costs": _gather_costs(board, machine)} for machine, words in board.machines.items()
        ],
        "curves": [
            {
                name: {"x": band.epochs, **{key: _round(getattr(band, key)) for key in ("means", "lows", "highs")}}
                for name, band in bands.items()
            }
            for bands in curves.bands
        ],
        "photos": curves.photos,
        "ious": [[_permille(iou) for iou in iou_N.tolist()] for iou_N in curves.iou_AN],
        "gallery": {
            "photos": [
                {"name": p.name, "w": p.width, "h": p.height, "jpeg": _encode(p.jpeg), "truth": _encode(p.truth_png)}
                for p in gallery.photos
            ],
            "same": gallery.same,
            "worst": gallery.worst,
            "seen": [
                seen and {"seed": seen.seed, "pngs": [_encode(png) for png in seen.pngs], "ious": _round(seen.ious)}
                for seen in gallery.seen
            ],
            "colors": {"hit": HIT, "miss": MISS, "alarm": FALSE_ALARM, "void": VOID_GREY},
        },
    }


def _make_axis(name: str, values: list[Any]) -> dict[str, Any]:
    """A setting's values in order, and which of them each row has."""
    ordered = sort_values(values)
    return {
        "name": name,
        "values": [format_value(value) for value in ordered],
        "at": [ordered.index(v) for v in values],
    }


def _gather_costs(board: Leaderboard, machine: str) -> list[dict[str, Any]]:
    """For each cost on one machine the values of the rows, and which rows no other beats."""
    costs = []
    for metric, head, _, _ in MACHINE_COSTS:
        values = [row.find_median(metric, machine) for row in board.rows[:MAX_ROWS]]
        timed = [(index, value) for index, value in enumerate(values) if value is not None]
        if not timed:
            continue
        sign = -1 if "per_second" in metric else 1  # of speed more is better
        front = find_front([(sign * value, board.rows[index].score.value) for index, value in timed])
        costs.append({"label": head, "values": values, "front": [timed[place][0] for place in front]})
    return costs


def _drop_nan(content: Any) -> Any:
    match content:
        case float():
            return content if math.isfinite(content) else None
        case dict():
            return {str(key): _drop_nan(value) for key, value in content.items()}
        case list() | tuple():
            return [_drop_nan(value) for value in content]
    return content


def _round(numbers: Sequence[float]) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]


def _permille(iou: float) -> int | None:
    return None if math.isnan(iou) else round(1000 * iou)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
