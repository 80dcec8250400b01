"""The commands of `bench data`: words in, words out, no logic.

In:  what was typed.   Out: lines, files, an exit code.
Knows nothing of photos or folders: what a command needs it imports when it is called.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.manners import manners

data_app = typer.Typer(
    help="From outlined photos to a dataset one can trust.", rich_markup_mode=None, no_args_is_help=True
)
Labels = Annotated[Path, typer.Option(metavar="FILE", help="labels.txt: __ignore__, _background_, then the classes")]


@data_app.command()
def check(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a Labelme folder, a VOC folder or an ImageSets list")],
    against: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="another folder that must not share photos; repeatable")
    ] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="labels.txt: others are problems")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write all of it there, too")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit 1 on warnings")] = False,
) -> None:
    """List what is wrong with a folder, and what is in it.

    Every problem of every file, odd shapes, photos that are nearly the same, then photos and pixels per class.
    """
    with manners():
        from bench.data import check

        raise typer.Exit(check(folder, against or (), labels, json, strict))


@data_app.command()
def convert(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="photos and Labelme files side by side")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a folder that is not there yet")],
    labels: Labels,
) -> None:
    """Write the VOC folder of a Labelme folder.

    Photos, masks, overlays and class names as labelme2voc makes them. Whole or not at all.
    """
    with manners():
        from bench.data import convert_folder

        convert_folder(folder, out, labels)


@data_app.command()
def label(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="photos, outlined or not")],
    labels: Labels,
) -> None:
    """Open a folder in Labelme.

    With the options that the installed version knows; ends when its window is closed.
    """
    with manners():
        from bench.label import start_labelme

        raise typer.Exit(start_labelme(folder, labels))


@data_app.command()
def sample(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a folder that is not there yet")],
    photos: Annotated[int | None, typer.Option(min=1, help="how many; else as many as `sample` has")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="draws others than those of `sample`")] = None,
) -> None:
    """Draw cats as a Labelme folder.

    Photos with exact outlines, and labels.txt: to try everything on.
    """
    with manners():
        from bench.data import write_sample

        write_sample(out, photos, seed)


class Species(StrEnum):
    CAT = "cat"
    DOG = "dog"
    BOTH = "both"


class Border(StrEnum):
    VOID = "void"
    CLASS = "class"


@data_app.command()
def download(
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="oxford-pets: 7,349 photos of 37 breeds, 0.8 GB")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a folder that is not there yet")],
    species: Annotated[Species, typer.Option(help="which animals, each species a class")] = Species.CAT,
    border: Annotated[
        Border, typer.Option(help="the band around an animal: out of every score, or part of the animal")
    ] = Border.VOID,
    from_folder: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="has the archives already: nothing is downloaded")
    ] = None,
) -> None:
    """Fetch a public dataset and write it as a VOC folder with its official split; goes on where it was cut."""
    with manners():
        from bench.download import download

        download(dataset, out, species.value, border.value, from_folder)
