"""The commands: words in, words out, no logic.

In:  what was typed.   Out: lines, files, an exit code (0 done, 1 a trial failed or a strict check warns, 2 a
mistake of the user's or bad data, 130, 143 or 129 stopped).   torch and mlflow are imported by the command
that needs them.
"""

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from bench.data_commands import data_app
from bench.manners import manners

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


class Runtime(StrEnum):  # catseg.runtimes' names, without waiting for torch
    TORCH = "torch"
    TORCH_BFLOAT16 = "torch-bfloat16"
    ONNX = "onnx"
    INT8 = "int8"
    OPENVINO = "openvino"
    OPENVINO_BFLOAT16 = "openvino-bfloat16"


RUNTIMES = ", ".join(Runtime)
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
    regret: Annotated[
        bool, typer.Option("--regret", help="after a halving, train what it stopped, too: what would it have lost?")
    ] = False,
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
    with manners("stopped; all is kept, the same command goes on"):
        from bench.rules import Rules, make_cluster, parse_jobs, parse_kinds
        from bench.session import run_experiment

        _use_store(tracking_uri)
        cluster = make_cluster(engine is Engine.RAY, jobs, address, gpus_per_trial, cpus_per_trial)
        rules = Rules(
            parse_kinds(retry), rerun, fail_fast, parse_jobs("1" if jobs is None else jobs), device, regret, cluster
        )
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
    with manners():
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
    with manners():
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
    with manners():
        from bench.overview import sync

        _use_store(tracking_uri)
        sync()


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a bundle, a best.safetensors, or the id of an MLflow run")
    ],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="photos, or folders of them")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="where masks and overlays go")],
    labelme: Annotated[bool, typer.Option("--labelme", help="outlines, too, in DIR/labelme, to correct them")] = False,
    worst: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="only the N photos the model is least sure of")
    ] = None,
    device: Device = "auto",
    runtime: Annotated[
        Runtime | None, typer.Option(metavar="NAME", help=f"of a bundle: {RUNTIMES}; else onnx, on a GPU torch")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a mask and an overlay for each photo; outlines for Labelme, too."""
    with manners():
        from bench.prediction import predict_files

        _use_store(tracking_uri)
        predict_files(model, photos, out, labelme, worst, device, runtime.value if runtime else None)


@app.command()
def export(
    out: Annotated[Path, typer.Option(metavar="DIR", help="the bundle: a folder that is not there yet")],
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="needed where there are several")
    ] = None,
    trial: Annotated[
        str | None, typer.Option(metavar="NAME", help="not the best but this one: its folder's name, or the key in it")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="the same, by the id of its MLflow run")] = None,
    train: Annotated[str | None, typer.Option(metavar="DIR", help="where its training photos are now")] = None,
    val: Annotated[str | None, typer.Option(metavar="DIR", help="where its validation photos are now")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="also a file that computes with 8-bit integers")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the best model as a folder that runs without this project, each file scored anew.

    Best by val/miou: the setting's mean over its seeds, then the best seed. Exit code 1, and no folder, if a file
    loses more than it may.
    """
    with manners():
        from bench.export import export

        _use_store(tracking_uri)
        raise typer.Exit(export(experiment, out, trial, run, {"train": train, "val": val}, int8))


Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a folder that `bench export` wrote, or a copy")]


@app.command()
def verify(bundle: Bundle) -> None:
    """Check that a bundle is whole, holds nothing else, and does what it did.

    Names, sums, config, networks; then its drawn photos are predicted again in every runtime that is installed.
    """
    with manners():
        from bench.verification import verify

        verify(bundle)


@app.command()
def evaluate(
    bundle: Bundle,
    data: Annotated[str, typer.Option(metavar="DIR", help="photos with masks: a Labelme or VOC folder, a list")],
    runtime: Annotated[
        Runtime | None, typer.Option(metavar="NAME", help=f"{RUNTIMES}; else torch, in the precision of the run")
    ] = None,
    device: Device = "auto",
) -> None:
    """Score a bundle on photos with masks, as `bench run` counts val/miou."""
    with manners():
        from bench.verification import evaluate_bundle

        evaluate_bundle(bundle, data, runtime.value if runtime else None, device)


app.add_typer(data_app, name="data")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="of the page on 127.0.0.1")] = 5000, tracking_uri: TrackingUri = None
) -> None:
    """Serve MLflow's pages on this folder's store."""
    with manners():
        import subprocess

        from bench.store import make_ui_command

        _use_store(tracking_uri)
        command, environment = make_ui_command(port)
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


def _use_store(tracking_uri: str | None) -> None:
    """For this process and those that it starts."""
    if tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri


def _stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + (signal.SIGTERM if signum == signal.SIGUSR1 else signum))
