"""A leaderboard in words and HTML tables: what stands on the page before any script has run.

In:  a leaderboard.   Out: sentences; HTML in which whatever a user named is escaped.
Knows nothing of files, charts or photos.
"""

from collections.abc import Iterable
from html import escape

from bench.compare import NO_SPREAD, ONE_SEED, Effect, Leaderboard, Row, mark_machine, name_settings
from bench.statistics import Estimate
from bench.trial import format_value

MAX_ROWS = 1000  # of the table; a browser sorts them in a moment
BAR_WIDTH, BAR_HEIGHT = 132, 18  # px, of an interval with its seeds
MINUS, NOTHING = "\u2212", "\u2013"  # as they are set in print

# What a setting costs wherever it runs, and what it costs on one machine: metric, heading, digits, title.
COSTS = (
    ("cost/parameters", "parameters", 0, "numbers that are trained"),
    ("cost/forward_gflop", "GFLOP", 2, "operations for one photo forward, in thousands of millions"),
)
MACHINE_COSTS = (
    ("cost/photos_per_second", "training photos/s", 0, "training speed, the median epoch"),
    ("cost/inference_photos_per_second", "predicted photos/s", 0, "prediction speed, the median batch"),
    ("cost/train_seconds", "training s", 1, "seconds of training, all epochs"),
    ("cost/peak_mib", "peak MiB", 0, "the most memory it took"),
)


def name_row(row: Row, board: Leaderboard) -> str:
    """init_features=16, lr=0.003: what sets it apart."""
    return name_settings(row.settings, board.varying, ", ")


def format_verdict(board: Leaderboard) -> str:
    """One sentence: which setting is best, how surely, and what cannot be told from it."""
    if not board.rows:
        return "No trial has finished yet."
    best, others = board.rows[0], board.rows[1:]
    score = f"val/miou {_format_interval(best.score)}"
    if not others:
        return f"{name_row(best, board)} has finished, with {score}; there is nothing to compare it with."
    states = [row.state for row in others]
    tied, unknown, worse = (states.count(state) for state in ("tied", "unknown", "worse"))
    if unknown == len(others):
        few = NO_SPREAD if not board.has_spread else "Too few seeds: an order, no comparison"
        return f"{few}. First in it is {name_row(best, board)} with {score}."
    if len(others) == 1:
        rest = "the other one cannot be told from it" if tied else "the other one is worse"
    elif tied == len(others):
        rest = f"none of the {tied} others can be told from it"
    elif tied:
        rest = f"{tied} of {len(others)} others cannot be told from it"
    elif unknown:
        rest = f"{worse} of {len(others)} others are worse"
    else:
        rest = f"all {worse} others are worse"
    few_seeds = f"; {unknown} with one seed cannot be compared" if unknown else ""
    return f"{name_row(best, board)} is best with {score}; {rest}{few_seeds}."


def make_leaderboard_table(board: Leaderboard) -> str:
    """All settings, best first, each column to be sorted by; timings of unlike machines in columns of their own."""
    rows = board.rows[:MAX_ROWS]
    machine_costs = [
        (machine, *cost)
        for machine in board.machines
        for cost in MACHINE_COSTS
        if any(row.find_median(cost[0], machine) is not None for row in rows)
    ]
    costs = [cost for cost in COSTS if any(row.find_median(cost[0]) is not None for row in rows)]
    letters = _name_machines(board)
    heads = [
        _head("#", "place; all that cannot be told from the best share place 1", "rank"),
        *(_head(name, "a setting that varies") for name in board.varying),
        _head("val/miou", "the mean over the seeds, with its 95 % interval", "number"),
        '<th scope="col">seeds and interval</th>',
        _head("to the best", "difference in val/miou, with the interval after Holm's correction", "number"),
        _head("verdict", "against the best"),
        _head("epochs", "trained, and the best one of each seed", "number"),
        *(_head(head, title, "number") for _, head, _, title in costs),
        *(_head(f"{head}{letters[machine]}", title, "number") for machine, _, head, _, title in machine_costs),
    ]
    scale = _make_scale([value for row in rows for value in (row.score.low, row.score.high, *row.mious)])
    body = []
    for row in rows:
        cells = [
            f'<td class="rank" data-v="{row.rank}">{row.rank}</td>',
            *(_setting_cell(row.settings[name]) for name in board.varying),
            _score_cell(row.score),
            f"<td>{_draw_interval(row.score, scale, row.mious)}{_list_seeds(row)}</td>",
            _difference_cell(row),
            _verdict_cell(row),
            _epochs_cell(row),
            *(_number_cell(row.find_median(metric), digits) for metric, _, digits, _ in costs),
            *(
                _number_cell(row.find_median(metric, machine), digits)
                for machine, metric, _, digits, _ in machine_costs
            ),
        ]
        body.append(f'<tr class="{row.state}">{"".join(cells)}</tr>')
    return (
        f"<table id=leaderboard><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        if rows
        else ""
    )


def make_effects_table(board: Leaderboard) -> str:
    """What each step along an axis changed, all else equal; empty where nothing varies."""
    if not board.effects:
        return ""
    scale = _make_scale(
        [0.0, *(value for effect in board.effects for value in (effect.change.low, effect.change.high))]
    )
    rows = "".join(_effect_row(effect, scale) for effect in board.effects)
    heads = (
        ("setting", ""),
        ("step", ""),
        ("change of val/miou", "number"),
        ("95 % interval", ""),
        ("pairs", "number"),
        ("says", ""),
    )
    head = "".join(f'<th scope="col" class="{kind}">{head}</th>' for head, kind in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def list_stopped(board: Leaderboard) -> str:
    """The settings that got but a few epochs, as a list; empty where there are none."""
    names = [escape(name_settings(each.settings, board.varying, ", ")) for each in board.stopped]
    items = [
        f"<li>{name}: {each.state}, val/miou then {each.miou:.3f}</li>"
        for name, each in zip(names, board.stopped, strict=True)
    ]
    return f"<h3>Stopped, not ranked</h3><ul>{''.join(items)}</ul>" if items else ""


def list_failed(board: Leaderboard) -> str:
    """The trials that ended without a model, as a list; empty where there are none."""
    items = [f"<li>{escape(r.name)}: {escape(str(r.failure))}: {escape(r.reason)}</li>" for r in board.failed]
    return f"<h3>Failed</h3><ul>{''.join(items)}</ul>" if items else ""


def format_facts(board: Leaderboard, num_train: int | None) -> list[tuple[str, str]]:
    """Machine, torch, commit, data: what a reader must know to do it again."""
    results = [result for row in board.rows for result in row.results]
    letters = _name_machines(board)
    machines = [f"{words}{letters[machine]}" for machine, words in board.machines.items()]
    commits = {
        result.environment["git_commit"][:12]
        + (" and changes not committed" if result.environment.get("git_dirty") == "true" else "")
        for result in results
        if "git_commit" in result.environment
    }
    trained = "" if num_train is None else f"{num_train} to train, "
    seeds = sorted({seed for row in board.rows for seed in row.seeds})
    return [
        ("Machines" if len(machines) > 1 else "Machine", "; ".join(machines) or "several in one trial"),
        ("Code", ", ".join(sorted(commits)) or "unknown commit"),
        (
            "Versions",
            ", ".join(
                sorted(
                    {
                        f"catseg {r.environment.get('catseg', '?')}, Python {r.environment.get('python', '?')}"
                        for r in results
                    }
                )
            ),
        ),
        ("Data", ", ".join(sorted({result.data_fingerprint for result in results}))),
        ("Photos", f"{trained}{board.num_photos} to validate"),
        ("Trials", f"{len(results)} finished, {len(board.failed)} failed; seeds {', '.join(map(str, seeds))}"),
    ]


def format_method(board: Leaderboard) -> str:
    """How the numbers are made, in three sentences."""
    return (
        "val/miou is the intersection over union of each class, pixels pooled over all "
        f"{board.num_photos} validation photos, the mean over the classes, and then over the seeds of a setting. "
        f"Its 95 % interval comes from drawing seeds and photos anew {board.num_draws:,} times, the same photos for "
        "all settings, and from Student's t, for a few seeds say little of their spread; with one seed everywhere it "
        "is of the photos alone. "
        "The best setting is compared with every other on the same photos, and Holm's correction keeps the chance "
        "of one wrong verdict among all of them at 5 %."
    )


def _name_machines(board: Leaderboard) -> dict[str, str]:
    """' (A)', ' (B)', ...: nothing where there is one machine."""
    several = len(board.machines) > 1
    return {machine: f" ({mark_machine(n)})" if several else "" for n, machine in enumerate(board.machines)}


def _head(text: str, title: str, kind: str = "text") -> str:
    name = escape(text).replace("_", "_<wbr>")
    return f'<th scope="col" data-kind="{kind}" title="{escape(title)}"><button type="button">{name}</button></th>'


def _cell(value: float | None, html: str) -> str:
    return f'<td class="number" data-v="{"" if value is None else repr(float(value))}">{html}</td>'


def _number_cell(value: float | None, digits: int) -> str:
    return _cell(value, NOTHING if value is None else f"{value:,.{digits}f}")


def _setting_cell(value: object) -> str:
    """By which null, that is off, comes last, and numbers beside it are sorted as numbers."""
    kind = "word" if isinstance(value, bool) or not isinstance(value, int | float) else "number"
    text = escape(format_value(value))
    return f'<td class="{kind}" data-v="{"" if value is None else text}">{text}</td>'


def _difference_cell(row: Row) -> str:
    if row.to_best is None:
        return _cell(0.0, NOTHING)
    difference = row.to_best
    interval = f"<small>{_sign(difference.low)} to {_sign(difference.high)}</small>"
    return _cell(difference.value, f"{_sign(difference.value)} {interval}")


def _sign(number: float) -> str:
    return f"{number:+.3f}".replace("-", MINUS) if abs(number) >= 0.0005 else "0.000"


def _verdict_cell(row: Row) -> str:
    order = {"best": 0, "tied": 1, "unknown": 2, "worse": 3}[row.state]
    return f'<td data-v="{order}"><span class="verdict">{ONE_SEED if row.state == "unknown" else row.state}</span></td>'


def _epochs_cell(row: Row) -> str:
    best = ", ".join(str(result.best_epoch) for result in row.results)
    epochs = row.settings.get("epochs")
    return _cell(epochs, f"{epochs} <small>best {best}</small>")


def _score_cell(score: Estimate) -> str:
    low, high = (f"{number:.3f}".replace("-", MINUS) for number in (score.low, score.high))
    return _cell(score.value, f"<b>{score.value:.3f}</b> <small>{low} to {high}</small>")


def _list_seeds(row: Row) -> str:
    """Each seed's own score."""
    seeds = " ".join(
        f'<span title="seed {escape(str(seed))}">{miou:.3f}</span>'
        for seed, miou in zip(row.seeds, row.mious, strict=True)
    )
    word = "seeds" if len(row.seeds) > 1 else "seed"
    return f"<small>{word} {seeds}</small>"


def _effect_row(effect: Effect, scale: tuple[float, float]) -> str:
    change = effect.change
    says = ONE_SEED if effect.num_seeds < 2 else "no difference seen"
    if effect.num_seeds > 1 and not change.holds_zero:
        says = "better" if change.value > 0 else "worse"
    interval = f"{_sign(change.low)} to {_sign(change.high)}"
    cells = (
        f'<td class="word">{escape(effect.setting)}</td>',
        f"<td>{escape(format_value(effect.before))} → {escape(format_value(effect.after))}</td>",
        f'<td class="number"><b>{_sign(change.value)}</b></td>',
        f"<td>{_draw_interval(change, scale, (), zero=True)}<small>{interval}</small></td>",
        f'<td class="number">{effect.num_pairs}</td>',
        f'<td><span class="verdict">{says}</span></td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _format_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _make_scale(values: list[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _draw_interval(estimate: Estimate, scale: tuple[float, float], seeds: Iterable[float], zero: bool = False) -> str:
    """A line from low to high, a mark at the value, a dot for each seed: a picture of what stands beside it."""
    low, high = scale

    def place(value: float) -> str:
        return f"{4 + (BAR_WIDTH - 8) * (value - low) / (high - low):.1f}"

    middle = BAR_HEIGHT // 2
    start, end, value = place(estimate.low), place(estimate.high), place(estimate.value)
    parts = [f'<line class="zero" x1="{place(0)}" x2="{place(0)}" y1="0" y2="{BAR_HEIGHT}"/>' if zero else ""]
    parts.append(f'<line class="range" x1="{start}" x2="{end}" y1="{middle}" y2="{middle}"/>')
    parts += [f'<circle cx="{place(miou)}" cy="{middle}" r="2.5"/>' for miou in seeds]
    parts.append(f'<line class="value" x1="{value}" x2="{value}" y1="{middle - 7}" y2="{middle + 7}"/>')
    return f'<svg width="{BAR_WIDTH}" height="{BAR_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'
