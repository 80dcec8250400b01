"""What `bench data` does, said on a terminal: look through, convert, draw, download.

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
from catseg.errors import InputError
from catseg.files import new_folder, save_bytes
from catseg.folder import Pair, list_pairs, map_pairs
from catseg.labelme import format_labels, load_labels
from catseg.outline import make_annotation
from catseg.photo import encode_png
from catseg.sample import draw_photo, name_photo
from catseg.survey import (
    NearPhotos,
    PhotoFacts,
    Survey,
    find_classes,
    find_near_photos,
    summarize,
    survey_pair,
)
from catseg.voc import convert

NUM_SIZES = 4  # sizes named in the summary; the rest as a number


def check(folder: str, against: Iterable[str], labels: Path | None, json_path: Path | None, strict: bool) -> int:
    """Look through folders: 0 nothing wrong, 1 warnings and `strict`, 2 problems."""
    known = load_labels(labels) if labels else None
    surveys: list[Survey] = []
    photos: list[list[PhotoFacts]] = []
    sources: dict[Path, str] = {}
    for source in (folder, *against):
        sources.setdefault(Path(source).resolve(), source)  # `cats/` is `cats`, and no leak into itself
    classes_of = {source: known or find_classes(source) for source in sources.values()}
    listed = {source: list_pairs(source, classes) for source, classes in classes_of.items()}
    for source, classes in classes_of.items():
        facts, problems = _look_through(listed[source], source)
        surveys.append(summarize(source, classes, facts, problems))
        photos.append(facts)
    near = find_near_photos(photos)
    num_problems = sum(len(survey.problems) for survey in surveys)
    num_warnings = sum(len(survey.warnings) for survey in surveys) + len(near)
    _print(*(line for survey in surveys for line in (*survey.problems, *survey.warnings)), *_list_near(near))
    _print(*(line for survey in surveys for line in _format_survey(survey)))
    _print(_format_verdict(num_problems, num_warnings, near))
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


def write_sample(out: Path, num_photos: int, seed: int) -> None:
    """Drawn cats as a Labelme folder: photos, their exact outlines, labels.txt."""
    if num_photos < 1:
        raise InputError(f"--photos: at least 1, got {num_photos}")

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
        console.print(line, markup=False)


def _list_near(near: list[NearPhotos]) -> list[str]:
    """Leaks first: they spoil a score, the others only weigh double."""
    leaks = [pair for pair in near if pair.across]
    twins = [pair for pair in near if not pair.across]
    lines = []
    for pairs, words in (
        (leaks, "nearly the same photo in two folders: what is learnt from one is known of the other; take one out"),
        (twins, "nearly the same photo twice in a folder: keep one, or both on one side of a split"),
    ):
        if pairs:
            lines.append(f"{words} (first, how many of {NUM_BITS} bits of their hashes differ)")
            lines += [f"  {pair.distance:3d}  {pair.first}  {pair.second}" for pair in pairs]
    return lines


def _format_survey(survey: Survey) -> list[str]:
    lines = [f"{survey.source}: {_count(survey.num_photos, 'photo')} read"]
    name_width, count_width = max(map(len, survey.photos)), len(_count(survey.num_photos, "photo"))
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


def _format_verdict(num_problems: int, num_warnings: int, near: list[NearPhotos]) -> str:
    leaks = sum(pair.across for pair in near)
    return (
        f"{_count(num_problems, 'problem')}, {_count(num_warnings, 'warning')}, "
        f"{len(near)} of them pairs of photos nearly the same ({leaks} across folders)"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _save_json(content: object, path: Path) -> None:
    try:
        save_bytes(json.dumps(content, ensure_ascii=False, indent=2).encode(), path)
    except OSError as error:
        raise InputError(f"--json: {path}: cannot be written ({error.strerror}); name another file") from None
