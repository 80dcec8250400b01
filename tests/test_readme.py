"""The README is true: its map equals the folders, its commands exist, its YAML loads, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.grid import load_experiment
from bench.trial import SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def read_block(heading: str) -> str:
    """The first fenced block after a heading."""
    return README.split(f"## {heading}\n", 1)[1].split("```", 2)[1].partition("\n")[2]


def test_the_map_names_every_module_and_nothing_else():
    folder, named = "", set()
    for line in read_block("The map").splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        elif name.endswith(".py"):
            named.add(folder + name)
    there = {
        f"{package}/{path.name}"
        for package in ("catseg", "bench")
        for path in (ROOT / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert named == there


def list_commands() -> set[str]:
    """`run`, `data check`, ..."""
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    return {
        prefix + (command.name or command.callback.__name__)
        for prefix, group in groups
        for command in group.registered_commands
    }


def test_every_command_is_in_the_table_and_has_help():
    documented = set(re.findall(r"^\| `bench ((?:data )?[a-z]+)", README, re.MULTILINE))
    assert documented == list_commands()
    for command in documented:
        result = CliRunner().invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0
        assert result.output.count("\n") > 5


@pytest.mark.parametrize("page", ["README.md", "docs/labelling.md", "docs/bundle.md"])
def test_flags_that_are_shown_exist(page):
    shown = re.findall(r"bench ((?:data )?[a-z]+)\b([^`\n|#]*)", (ROOT / page).read_text("utf-8"))
    assert shown
    for command, rest in shown:
        if command not in list_commands():  # "bench data" in a sentence
            continue
        help_text = CliRunner().invoke(app, [*command.split(), "--help"]).output
        for flag in re.findall(r"--[a-z]+", rest):
            assert flag in help_text, (page, command, flag)


def test_the_example_file_loads(tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(read_block("The experiment file"), "utf-8")
    experiment = load_experiment(path, {}, None)
    assert len(experiment.trials) == 2 * 2 * 3


def test_every_setting_is_documented():
    section = README.split("## The experiment file", 1)[1].split("\n## ", 1)[0]
    for setting in SETTINGS:
        assert setting in section


def test_links_and_named_files_exist():
    targets = re.findall(r"\]\(([^)#]+)", README) + re.findall(r"experiments/\w+\.yaml", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("number", [0, 1])
def test_ci_runs_the_test_command_of_the_readme(number):
    """The two commands: the first trains, the second is what .ci/run does."""
    commands = re.findall(r"^pip install .*$", README, re.MULTILINE)[:2]
    install, then = commands[number].split(" && ")
    assert shlex.split(install)[:5] == ["pip", "install", "-q", "-c", "constraints.txt"]
    if number == 0:
        assert then == "bench run --grid experiments/grid.yaml"
    else:
        ci = (ROOT / ".ci/run").read_text("utf-8")
        assert install in ci
        assert then in ci
