"""The commands: words in, words out, no logic.

In:  what was typed.   Out: lines, files, an exit code (0 done, 1 a trial failed or a strict check warns, 2 a
mistake of the user's or bad data, 130, 143 or 129 stopped).   torch and mlflow are imported by the command
that needs them.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

app = typer.Typer(
    help="Train a grid of U-Nets on outlined cats, keep every result, lay them side by side in MLflow.",
    rich_markup_mode=None,  # halves the time of --help
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Grid = Annotated[Path, typer.Option("--grid", metavar="FILE", help="the experiment file, see experiments/")]
Train = Annotated[str | None, typer.Option(metavar="DIR", help="training photos, instead of the file's data.train")]
Val = Annotated[
    str | None, typer.Option(metavar="DIR", help="validation photos, instead of data.val; `train` for the same photos")
]
Only = Annotated[str | None, typer.Option(metavar="SETTINGS", help="some trials, as in loss=dice,lr=0.001")]
Retry = Annotated[
    str, typer.Option(metavar="KINDS", help="failures to try again: oom,nonfinite,killed,timeout,data,crash")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0")]
TrackingUri = Annotated[
    str | None,
    typer.Option(metavar="URI", envvar="MLFLOW_TRACKING_URI", help="MLflow's store or server, instead of ./mlflow.db"),
]


class Engine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


def main() -> None:
    """What the `bench` command starts."""
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # told to stop, or its terminal was closed
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup's
            signal.signal(signum, _stop)
    app()


@app.command()
def run(
    grid: Grid,
    train: Train = None,
    val: Val = None,
    test: Annotated[str | None, typer.Option(metavar="DIR", help="test photos: the winner is scored on them")] = None,
    only: Only = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="trials at a time; they share the cores, and sums may differ in the last place by their share. "
            "`auto`: as many as a short measurement finds fastest; one if not given",
        ),
    ] = None,
    retry: Retry = "",
    rerun: Annotated[bool, typer.Option("--rerun", help="do anew what other code finished, keep the old")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="stop at the first trial that fails")] = False,
    device: Device = "auto",
    engine: Annotated[
        Engine, typer.Option(help="where trials run: here, or on the hosts of a Ray cluster")
    ] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="of the Ray cluster; without, Ray is started on this machine"),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(
            metavar="G", help="with Ray: GPUs of each trial, 0.5 for two to share one; else 1, if there are any"
        ),
    ] = None,
    cpus_per_trial: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="with Ray: cores, and threads, of each trial; else 1")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Train what is not done yet, then rank everything.

    The same command again does what is missing, whatever happened before; two at once share the work. Ctrl-C
    stops after the step, with a checkpoint; a second one at once.
    """
    with _manners("stopped; all is kept, the same command goes on"):
        from bench.session import Rules, make_cluster, parse_jobs, parse_kinds, run_experiment

        _use_store(tracking_uri)
        cluster = make_cluster(engine is Engine.RAY, jobs, address, gpus_per_trial, cpus_per_trial)
        rules = Rules(parse_kinds(retry), rerun, fail_fast, parse_jobs(jobs or "1"), device, cluster)
        raise typer.Exit(run_experiment(grid, {"train": train, "val": val, "test": test}, only, rules))


@app.command()
def plan(
    grid: Grid,
    train: Train = None,
    val: Val = None,
    only: Only = None,
    device: Device = "auto",
) -> None:
    """List what is done, running, resumable, failed, left, and about how long it takes."""
    with _manners():
        from bench.overview import show_plan

        show_plan(grid, {"train": train, "val": val}, only, device)


@app.command()
def compare(
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="needed where there are several")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="a line per setting, unrounded; - is standard output")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="the table, for a README or an issue")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="rows, effects, machines, for a program")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="one page with charts and photos that needs no network"),
    ] = None,
    definitions: Annotated[
        bool, typer.Option("--definitions", help="also what other tools would print for the best")
    ] = False,
    test: Annotated[
        str | None, typer.Option(metavar="DIR", help="score the best on these photos, once, with all its seeds")
    ] = None,
    speed: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="not scores but speed: two files of `pytest --benchmark-only`"),
    ] = None,
) -> None:
    """Which settings are best, by how much and how surely, and at what cost; or the speed of two states of the code.

    One row per setting, its seeds folded, from the journal. Tied are those that cannot be told from the best.
    """
    with _manners():
        if speed is None:
            from bench.comparison import compare

            files = {"csv": csv, "markdown": markdown, "json": json}
            wanted = {kind: file for kind, file in files.items() if file is not None}
            compare(experiment, wanted, html, definitions, test)
        else:
            from bench.speed import compare_speed
            from catseg.errors import InputError

            if experiment is not None:
                raise InputError(f"--speed: compares two files, not an experiment, got {experiment}; leave it out")
            if definitions or any(option is not None for option in (csv, markdown, json, html, test)):
                raise InputError("--speed: compares two files of benchmarks; leave the other options out")
            typer.echo("\n".join(compare_speed(*speed)))


@app.command()
def sync(tracking_uri: TrackingUri = None) -> None:
    """Bring MLflow up to date with the journals.

    What it missed is sent, nothing twice; runs that a killed process left open get their true status.
    """
    with _manners():
        from bench.overview import sync

        _use_store(tracking_uri)
        sync()


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a best.safetensors, or the id of an MLflow run")],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="photos, or folders of them")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="where masks and overlays go")],
    labelme: Annotated[bool, typer.Option("--labelme", help="outlines, too, in DIR/labelme, to correct them")] = False,
    worst: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="only the N photos the model is least sure of")
    ] = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a mask and an overlay for each photo; outlines for Labelme, too."""
    with _manners():
        from bench.prediction import predict_files

        _use_store(tracking_uri)
        predict_files(model, photos, out, labelme, worst, device)


data_app = typer.Typer(
    help="From outlined photos to a dataset one can trust.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(data_app, name="data")
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
    with _manners():
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
    with _manners():
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
    with _manners():
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
    with _manners():
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
    with _manners():
        from bench.download import download

        download(dataset, out, species.value, border.value, from_folder)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="of the page on 127.0.0.1")] = 5000, tracking_uri: TrackingUri = None
) -> None:
    """Serve MLflow's pages on this folder's store."""
    with _manners():
        import subprocess

        from bench.store import make_ui_command

        _use_store(tracking_uri)
        command, environment = make_ui_command(port)
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


@contextmanager
def _manners(when_stopped: str = "stopped") -> Iterator[None]:
    """The user's mistakes as lines without a traceback; a stop as a stop."""
    from catseg.errors import InputError

    try:
        yield
    except InputError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(when_stopped, err=True)
        raise typer.Exit(130) from None


def _use_store(tracking_uri: str | None) -> None:
    """For this process and those that it starts."""
    if tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri


def _stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + (signal.SIGTERM if signum == signal.SIGUSR1 else signum))
