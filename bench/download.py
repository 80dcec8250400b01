"""What `bench data download` does: a public dataset becomes a VOC folder with its official split.

In:  the arguments of the command.   Out: lines, a folder.
Knows nothing of servers or archives.
"""

import os
import shlex
from collections.abc import Generator
from pathlib import Path

from rich.console import Console

from bench.data import follow
from catseg.errors import InputError, make_printable
from catseg.folder import VOC_LISTS
from catseg.pets import LICENCE, OXFORD, Pets, convert_pets
from catseg.server import Source, check_archives, fetch, locate_cache

DATASETS = ("oxford-pets",)


def download(dataset: str, out: Path, species: str, border: str, from_folder: Path | None) -> None:
    """Any dataset that we know by name."""
    if dataset not in DATASETS:
        raise InputError(f"{dataset}: no such dataset; known are {', '.join(DATASETS)}")
    download_pets(out, species, border, from_folder)


def download_pets(
    out: Path, species: str, border: str, from_folder: Path | None = None, source: Source = OXFORD
) -> None:
    """The Oxford-IIIT Pets; the archives come from a folder, the cache, or the internet and then into the cache."""
    if os.path.lexists(out):  # better said before 800 MB than after
        raise InputError(f"{out}: is there already; name a new folder, or remove this one")
    folder = from_folder or locate_cache()
    if from_folder:
        check_archives(from_folder, source)
    else:
        for archive in (source.annotations, source.images):
            follow(fetch(archive, folder, source), f"downloading {archive.name}")
    written: list[Pets] = []

    def convert() -> Generator[tuple[int, int], None, None]:
        written.append((yield from convert_pets(folder, out, species, border, source)))

    follow(convert(), f"writing {out}")
    _report(out, border, written[0])


def _report(out: Path, border: str, pets: Pets) -> None:
    lists = {kind: out / VOC_LISTS / "Segmentation" / f"{kind}.txt" for kind in pets.num_photos}
    train, test = (shlex.quote(str(lists[kind])) for kind in ("trainval", "test"))
    numbers = ", ".join(f"{number} in {kind}.txt" for kind, number in pets.num_photos.items())
    classes = ", ".join(pets.classes)
    become = "void" if border == "void" else "part of the animal"
    console = Console(soft_wrap=True, highlight=False)
    for line in (
        *(f"left out: {problem}" for problem in pets.left_out),
        f"{out}: {sum(pets.num_photos.values())} photos with masks, {numbers}; classes {classes}; borders are {become}",
        f"licence: {LICENCE}",
        f"train:   bench run --grid experiments/grid.yaml --train {train} --test {test}",
    ):
        console.print(make_printable(line), markup=False)
    if pets.classes != ("cat",):
        console.print(f"         with `classes: [{classes}]` under `data:` in that file", markup=False)
