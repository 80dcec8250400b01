"""What `bench data` does, said on a terminal: look through, convert, draw.

In:  the arguments of a command.   Out: lines, files, an exit code.
Knows nothing of training.
"""

import json
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from catseg.duplicates import NUM_BITS
from catseg.errors import InputError, make_printable
from catseg.files import new_folder, save_bytes
from catseg.folder import Pair, list_pairs, map_pairs
from catseg.labelme import format_labels, load_labels
from catseg.outline import make_annotation
from catseg.photo import encode_png
from catseg.sample import NUM_PHOTOS, SEED, draw_photo, name_photo
from catseg.survey import (
    NearPhotos,
    PhotoFacts,
    Survey,
    find_classes,
    find_near_photos,
    group_twins,
    summarize,
    survey_pair,
)
from catseg.voc import convert

NUM_SIZES, NUM_TWINS, NUM_LEAKS = 4, 4, 100  # sizes, photos of a group, pairs that are named; the rest as a number


def check(folder: str, against: Iterable[str], labels: Path | None, json_path: Path | None, strict: bool) -> int:
    """Look through folders: 0 nothing wrong, 1 warnings and `strict`, 2 problems."""
    known = load_labels(labels) if labels else None
    if json_path is not None:
        _check_json_path(json_path, labels, [folder, *against])
    surveys: list[Survey] = []
    photos: list[list[PhotoFacts]] = []
    sources: dict[Path, str] = {}
    for source in (folder, *against):
        sources.setdefault(Path(source).resolve(), source)  # `cats/` is `cats`, and no leak into itself
    classes_of = {source: known or find_classes(source) for source in sources.values()}
    listed = _list_all(classes_of)
    for source, classes in classes_of.items():
        facts, problems = _look_through(listed[source], source)
        surveys.append(summarize(source, classes, facts, problems))
        photos.append(facts)
    near = find_near_photos(photos)
    leaks = [pair for pair in near if pair.across]
    twins = group_twins(near)
    num_problems = sum(len(survey.problems) for survey in surveys)
    num_warnings = sum(len(survey.warnings) for survey in surveys) + len(leaks) + len(twins)
    _print(*(line for survey in surveys for line in (*survey.problems, *survey.warnings)))
    _print(*_list_leaks(leaks), *_list_twins(twins))
    _print(*(line for survey in surveys for line in _format_survey(survey)))
    _print(f"{_count(num_problems, 'problem')}, {_count(num_warnings, 'warning')}")
    if json_path is not None:
        content = {"folders": [asdict(survey) for survey in surveys], "near_duplicates": [asdict(p) for p in near]}
        _save_json(content, json_path)
    if num_problems:
        return 2
    return 1 if strict and num_warnings else 0


def convert_folder(folder: Path, out: Path, labels: Path) -> None:
    """Labelme folder -> VOC folder."""
    classes = load_labels(labels)
    num_photos = follow(convert(folder, out, classes), f"converting {folder}")
    _print(f"{out}: {num_photos} photos with masks; classes {', '.join(classes)}")


def write_sample(out: Path, num_photos: int | None, seed: int | None) -> None:
    """Drawn cats as a Labelme folder: photos, their exact outlines, labels.txt. None: as the built-in `sample`."""
    num_photos = NUM_PHOTOS if num_photos is None else num_photos
    seed = SEED if seed is None else seed

    def draw() -> Generator[tuple[int, int], None, None]:
        with new_folder(out) as begun:
            (begun / "labels.txt").write_text(format_labels(("cat",)), "utf-8")
            for number in range(num_photos):
                photo, mask = draw_photo(number, seed)
                name = name_photo(number)
                (begun / f"{name}.png").write_bytes(encode_png(photo))
                annotation = make_annotation(mask, f"{name}.png", ("cat",), tolerance_px=0)
                (begun / f"{name}.json").write_text(annotation, "utf-8")
                yield number + 1, num_photos

    follow(draw(), "drawing cats")
    _print(f"{out}: {_count(num_photos, 'drawn photo')} with exact outlines; labels in {out / 'labels.txt'}")


def _look_through(pairs: list[Pair], source: str) -> tuple[list[PhotoFacts], list[str]]:
    facts: list[PhotoFacts] = []
    problems: list[str] = []

    def look() -> Generator[tuple[int, int], None, None]:
        with closing(map_pairs(survey_pair, pairs)) as results:
            for number, result in enumerate(results, 1):
                if isinstance(result, InputError):
                    problems.extend(result.problems)
                else:
                    facts.append(result)
                yield number, len(pairs)

    follow(look(), f"reading {source}")
    return facts, problems


def follow(steps: Generator[tuple[int, int], None, None], words: str) -> int:
    """A progress bar along (done, total) steps, where there is a terminal; the total."""
    console, total = Console(stderr=True), 0
    with closing(steps), Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(words), total=None)
        for done, total in steps:
            bar.update(task, completed=done, total=total)
    return total


def _print(*lines: str) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(make_printable(line), markup=False)


def _list_all(classes_of: dict[str, tuple[str, ...]]) -> dict[str, list[Pair]]:
    """The pairs of every folder; all that cannot be listed are named at once."""
    listed: dict[str, list[Pair]] = {}
    problems: list[str] = []
    for source, classes in classes_of.items():
        try:
            listed[source] = list_pairs(source, classes)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return listed


def _list_leaks(leaks: list[NearPhotos]) -> list[str]:
    if not leaks:
        return []
    more = [f"  and {len(leaks) - NUM_LEAKS} more; --json lists all"] if len(leaks) > NUM_LEAKS else []
    return [
        "nearly the same photo in two folders: what is learnt from one is known of the other; take one out "
        f"(first, how many of {NUM_BITS} bits of their hashes differ)",
        *(f"  {pair.distance:3d}  {pair.first}  {pair.second}" for pair in leaks[:NUM_LEAKS]),
        *more,
    ]


def _list_twins(twins: list[tuple[int, list[str]]]) -> list[str]:
    """A group in a line: the frames of one scene would be thousands of pairs."""
    if not twins:
        return []
    return [
        "nearly the same photo more than once in a folder: keep one, or all on one side of a split "
        f"(first, how many of {NUM_BITS} bits the nearest differ in)",
        *(f"  {distance:3d}  {_name_some(paths)}" for distance, paths in twins),
    ]


def _name_some(paths: list[str]) -> str:
    more = f"  and {len(paths) - NUM_TWINS} more" if len(paths) > NUM_TWINS else ""
    return "  ".join(paths[:NUM_TWINS]) + more


def _format_survey(survey: Survey) -> list[str]:
    lines = [f"{survey.source}: {_count(survey.num_photos, 'photo')} read"]
    name_width, count_width = max(map(len, survey.photos), default=0), len(_count(survey.num_photos, "photo"))
    for name, num_photos in survey.photos.items():
        photos = _count(num_photos, "photo")
        lines.append(f"  {name:{name_width}s}  {photos:>{count_width}s}  {survey.shares[name]:6.1%} of pixels")
    sizes = [f"{size} ({number})" for size, number in survey.sizes.items()]
    more = [f"and {len(sizes) - NUM_SIZES} more"] if len(sizes) > NUM_SIZES else []
    lines.append(f"  sizes: {', '.join(sizes[:NUM_SIZES] + more) or 'none'}")
    kinds = [f"{number} {word}" for word, number in (survey.orientations | survey.modes).items()]
    turned = [f"{survey.num_turned} turned by EXIF"] if survey.num_turned else []
    lines.append(f"  {', '.join(kinds + turned) or 'nothing'}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _check_json_path(path: Path, labels: Path | None, sources: list[str]) -> None:
    """A report must not replace a device, a link or the labels, nor lie where the next check would read it."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"--json: {path}: is no plain file; name another")
    if labels is not None and path.exists() and path.samefile(labels):
        raise InputError(f"--json: {path}: is the file of labels; name another")
    if any(path.resolve().parent == Path(source).resolve() for source in sources):
        raise InputError(f"--json: {path}: lies among the annotations; put it elsewhere")


def _save_json(content: object, path: Path) -> None:
    try:
        save_bytes(json.dumps(content, indent=2).encode(), path)
    except OSError as error:
        raise InputError(f"--json: {path}: cannot be written ({error.strerror}); name another file") from None
