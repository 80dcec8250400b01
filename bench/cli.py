"""The commands: words in, words out, no logic.

In:  what was typed.   Out: lines, files, an exit code (0 done, 1 a trial failed, 2 a mistake of the
user's, 130, 143 or 129 stopped).   torch and mlflow are imported by the command that needs them.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


def main() -> None:
    """What the `bench` command starts."""
    for signum in (signal.SIGTERM, signal.SIGHUP):  # told to stop, or its terminal was closed
        signal.signal(signum, _stop)
    app()


@app.command()
def run(
    grid: Grid,
    train: Train = None,
    val: Val = None,
    test: Annotated[str | None, typer.Option(metavar="DIR", help="test photos: the winner is scored on them")] = None,
    only: Only = None,
    retry: Retry = "",
    device: Device = "auto",
) -> None:
    """Train what is not done yet, then rank everything."""
    with _manners():
        from bench.session import run_experiment

        raise typer.Exit(run_experiment(grid, {"train": train, "val": val, "test": test}, only, retry, device))


@app.command()
def plan(
    grid: Grid,
    train: Train = None,
    val: Val = None,
    only: Only = None,
    device: Device = "auto",
) -> None:
    """List what is done, what is left, and about how long it takes."""
    with _manners():
        from bench.session import show_plan

        show_plan(grid, {"train": train, "val": val}, only, device)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a best.safetensors, or the id of an MLflow run")],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="where masks and overlays go")],
    device: Device = "auto",
) -> None:
    """Write a mask and an overlay for each photo."""
    with _manners():
        from bench.tracking import fetch_checkpoint
        from catseg.checkpoint import load_model
        from catseg.device import choose_device
        from catseg.predict import write_predictions

        is_file = Path(model).exists() or "/" in model or model.endswith(".safetensors")
        with nullcontext(Path(model)) if is_file else fetch_checkpoint(model) as checkpoint:
            unet, card = load_model(checkpoint)
        for photo, mask, overlay, share in write_predictions(unet, card, photos, out, choose_device(device)):
            typer.echo(f"{photo}: {', '.join(card.classes)} on {share:.1%} of it -> {mask} {overlay}")


@app.command()
def ui(port: Annotated[int, typer.Option(help="of the page on 127.0.0.1")] = 5000) -> None:
    """Serve MLflow's pages on this folder's store."""
    with _manners():
        import subprocess

        from bench.tracking import make_ui_command

        command, environment = make_ui_command(port)
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


@contextmanager
def _manners() -> Iterator[None]:
    """The user's mistakes as lines without a traceback; a stop as a stop."""
    from catseg.errors import InputError

    try:
        yield
    except InputError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped; finished trials are kept, the same command does the rest", err=True)
        raise typer.Exit(130) from None


def _stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
