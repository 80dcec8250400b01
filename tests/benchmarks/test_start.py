"""How long `bench --help` takes beside what it cannot do without."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from contest import Contest, Contestant, read_replayed
from work import Work

pytestmark = pytest.mark.benchmark(timer=read_replayed)

ROOT = Path(__file__).parents[2]
HELP, AGAIN, TYPER, PYTHON = "bench --help", "bench --help again", "import typer", "Python alone"
COMMANDS = {
    HELP: ("from bench.cli import main; main()", "--help"),
    TYPER: ("import typer",),
    AGAIN: ("from bench.cli import main; main()", "--help"),
    PYTHON: ("pass",),
}


def make_start(arguments: tuple[str, ...]) -> Work:
    """A process of its own, from its start to its end."""
    command = [sys.executable, "-c", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return lambda number: subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_start(enter, name):
    pytest.importorskip("typer")
    contestants = tuple(Contestant(other, partial(make_start, arguments)) for other, arguments in COMMANDS.items())
    enter(Contest("start of a command", contestants, twins=(HELP, AGAIN), base=TYPER), name)
