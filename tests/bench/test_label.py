"""Labelme started with the options its version knows; executables that stand for each generation, broken ones too."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.label import choose_options, explain_failure, find_labelme, start_labelme

# The options that `labelme --help` names, by version; the rest of the text is left out.
HELP_2 = """
usage: labelme [-h] [--version] [-O OUTPUT] [--nodata] [--labels LABELS]
               [--nosortlabels]
"""
HELP_3 = """
usage: labelme [-h] [--version] [--reset-config]
               [--logger-level {debug,info,warning,fatal,error}]
               [--output OUTPUT] [--config CONFIG_FILE] [--nodata]
               [--autosave] [--nosortlabels] [--flags FLAGS]
               [--labelflags LABEL_FLAGS] [--labels LABELS]
               [--validatelabel {exact,instance}] [--keep-prev]
               [--epsilon EPSILON]
               [filename]
  --config CONFIG_FILE  config file (default: /home/cat/.labelmerc)
  --nodata              stop storing image data to JSON file
  --labels LABELS       comma separated list of labels OR file containing
                        labels
"""
HELP_5 = """
usage: labelme [-h] [--version] [--reset-config]
               [--logger-level {debug,info,warning,fatal,error}]
               [--output OUTPUT] [--config CONFIG] [--nodata] [--autosave]
               [--nosortlabels] [--flags FLAGS] [--labelflags LABEL_FLAGS]
               [--labels LABELS] [--validatelabel {exact}] [--keep-prev]
               [--epsilon EPSILON]
               [filename]
  --config CONFIG       config file or yaml-format string (default:
                        /home/cat/.labelmerc)
"""
HELP_6 = """
usage: labelme [-h] [--version] [--reset-config]
               [--logger-level {debug,info,warning,fatal,error}]
               [--output OUTPUT] [--config CONFIG] [--with-image-data]
               [--no-auto-save] [--no-sort-labels] [--flags FLAGS]
               [--label-flags LABEL_FLAGS] [--labels LABELS]
               [--validate-label {exact}] [--keep-prev] [--epsilon EPSILON]
               [path]
  --config CONFIG       config file or yaml-format string (default:
                        /home/cat/.labelmerc)
  --with-image-data     store image data in JSON file
  --no-auto-save        disable auto save
  --no-sort-labels, --nosortlabels
                        stop sorting labels
  --validate-label {exact}, --validatelabel {exact}
                        label validation types
"""
HELP_7 = HELP_6.replace("{debug,info,warning,fatal,error}", "{debug,info,warning,error,critical}")

LABELS = Path("labels.txt")


@pytest.mark.parametrize(
    ("help_text", "options"),
    [
        (HELP_2, ["--nosortlabels", "--nodata"]),
        (HELP_3, ["--validatelabel", "exact", "--nosortlabels", "--autosave", "--nodata"]),
        (HELP_5, ["--config", "{}", "--validatelabel", "exact", "--nosortlabels", "--autosave", "--nodata"]),
        (HELP_6, ["--config", "{}", "--validate-label", "exact", "--no-sort-labels"]),
        (HELP_7, ["--config", "{}", "--validate-label", "exact", "--no-sort-labels"]),
    ],
    ids=["2", "3", "4 and 5", "6", "7"],
)
def test_each_version_gets_the_options_it_names(help_text, options):
    assert choose_options(help_text, LABELS) == ["--labels", "labels.txt", *options]


def test_coloured_help_is_read_too():
    assert "--validate-label" in choose_options("\x1b[1;36m--validate-label\x1b[0m {exact}", LABELS)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one photo, as far as its name says, and beside it labels.txt."""
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncat\n", "utf-8")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.JPG").touch()
    return folder


@pytest.fixture
def start(folder):
    """start(): Labelme on the folder, with its labels."""
    return lambda: start_labelme(folder, folder.parent / "labels.txt")


@pytest.fixture
def bins(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two empty folders for executables: that of this Python, and the only one on PATH."""
    here, path = tmp_path / "venv", tmp_path / "pipx"
    for bin_folder in (here, path):
        bin_folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(here / "python"))
    monkeypatch.setenv("PATH", str(path))
    return here, path


def write_labelme(folder: Path, run: str, help_text: str = HELP_6) -> Path:
    """An executable that answers --help with `help_text` and otherwise does `run`, lines of Python."""
    path = folder / "labelme"
    lines = [
        f"#!{PYTHON}",
        "import os, sys, time",
        f"if sys.argv[1:] == ['--help']: print({help_text!r}); sys.exit()",
        run,
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


PYTHON = sys.executable


def test_labelme_is_started_on_the_folder_and_its_end_waited_for(bins, folder, start):
    write_labelme(bins[1], f"time.sleep(0.2); open({str(folder / 'told')!r}, 'w').write('\\n'.join(sys.argv[1:]))")
    assert start() == 0
    told = (folder / "told").read_text("utf-8").splitlines()
    assert told == [*choose_options(HELP_6, folder.parent / "labels.txt"), str(folder)]


def test_labelme_of_this_environment_goes_before_the_one_on_path(bins):
    on_path = write_labelme(bins[1], "")
    assert find_labelme() == str(on_path)
    own = write_labelme(bins[0], "")
    assert find_labelme() == str(own)


def test_without_labelme_one_line_says_how_to_install_it(bins, start, refusal):
    line = refusal(start)
    assert line.startswith("labelme: not installed; ")
    assert "-e '.[label]'" in line and "pipx install labelme" in line


def test_folder_that_is_not_there_is_named(bins, tmp_path, refusal):
    assert refusal(start_labelme, tmp_path / "gone", LABELS).startswith(f"{tmp_path / 'gone'}: no such folder")


def test_folder_without_photos_is_named(bins, folder, start, refusal):
    (folder / "cat.JPG").rename(folder / "cat.txt")
    assert refusal(start).startswith(f"{folder}: no photo in it ")


def test_photos_in_folders_below_are_not_enough(bins, folder, start, refusal):
    """Labelme would show them, but a dataset is not read from there."""
    (folder / "monday").mkdir()
    (folder / "cat.JPG").rename(folder / "monday" / "cat.JPG")
    assert refusal(start).startswith(f"{folder}: no photo in it ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),  # Labelme would take the path itself for a label
        (b"cat\ncat\n", "twice"),
        (b"\xef\xbb\xbf__ignore__\ncat\n", "byte order mark"),
    ],
)
def test_labels_that_labelme_would_misread_are_refused(bins, folder, start, refusal, content, says):
    write_labelme(bins[1], "")
    labels = folder.parent / "labels.txt"
    if content is None:
        labels.unlink()
    else:
        labels.write_bytes(content)
    line = refusal(start)
    assert line.startswith(f"{labels}: ") and says in line


def test_broken_installation_is_told_in_its_own_last_words(bins, start, refusal):
    path = write_labelme(bins[1], "")
    path.write_text(f"#!{PYTHON}\nimport labelme_is_gone\n", "utf-8")
    assert refusal(start).startswith(f"{path}: ModuleNotFoundError: No module named 'labelme_is_gone'; ")


def test_missing_system_library_is_told_with_its_package(bins, start, refusal):
    path = write_labelme(bins[1], "")
    error = "libGL.so.1: cannot open shared object file: No such file or directory"
    path.write_text(f"#!{PYTHON}\nraise ImportError({error!r})\n", "utf-8")
    line = refusal(start)
    assert f"{path}: ImportError: {error}; " in line and "apt install libgl1 " in line


# What Qt 5.15 says: the line that tells is not the last.
NO_PLUGIN = """
qt.qpa.plugin: Could not load the Qt platform plugin "xcb" in "" even though it was found.
This application failed to start because no Qt platform plugin could be initialized. Reinstalling ...

Available platform plugins are: eglfs, linuxfb, minimal, offscreen, vnc, xcb.
"""
NO_DISPLAY = f"qt.qpa.xcb: could not connect to display\n{NO_PLUGIN}"


@pytest.mark.parametrize(
    ("display", "words", "told", "remedy"),
    [
        ("", NO_PLUGIN, "no Qt platform plugin could be initialized", "a machine with a desktop"),
        ("", NO_DISPLAY, "could not connect to display", "a machine with a desktop"),
        (":7", NO_DISPLAY, "could not connect to display", "a machine with a desktop"),
        (":0", NO_PLUGIN, "no Qt platform plugin could be initialized", "apt install libgl1 "),
    ],
)
def test_want_of_a_display_is_told_from_want_of_a_library(monkeypatch, display, words, told, remedy):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    line = explain_failure("labelme", words)
    assert told in line and remedy in line and "\n" not in line


def test_crash_is_told(bins, start, refusal):
    write_labelme(bins[1], f"sys.stderr.write({NO_DISPLAY!r}); sys.stderr.flush(); os.abort()")
    assert "could not connect to display" in refusal(start)


def test_failure_without_a_word_is_told_too(bins, start, refusal):
    write_labelme(bins[1], "sys.exit(3)")
    assert "it ended without a word" in refusal(start)


def test_stop_from_outside_is_an_exit_code_as_shells_count(bins, start):
    write_labelme(bins[1], f"os.kill(os.getpid(), {int(signal.SIGTERM)})")
    assert start() == 128 + signal.SIGTERM


def test_help_that_never_comes_is_given_up(bins, start, refusal, monkeypatch):
    monkeypatch.setattr("bench.label.HELP_SECONDS", 0.5)
    path = write_labelme(bins[1], "")
    path.write_text("#!/bin/sh\nexec /bin/sleep 60\n", "utf-8")
    assert refusal(start).startswith(f"{path}: no answer to --help in 0.5 s; ")


def test_launcher_whose_python_is_gone_is_named(bins, start, refusal):
    path = write_labelme(bins[1], "")
    path.write_text("#!/no/such/python\n", "utf-8")
    assert refusal(start).startswith(f"{path}: cannot be started (No such file or directory); ")


def test_something_else_named_labelme_is_not_started(bins, folder, start, refusal):
    write_labelme(bins[1], f"open({str(folder / 'started')!r}, 'w')", help_text="usage: labelme [-h]")
    assert "not Labelme" in refusal(start)
    assert not (folder / "started").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_bench_ends_labelme(tmp_path, folder, signum):
    write_labelme(tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)")
    script = """
import signal, sys
from pathlib import Path
from bench.label import start_labelme
sys.executable = "/no/labelme/beside/python"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
start_labelme(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    command = [PYTHON, "-c", script, folder, tmp_path / "labels.txt"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=os.environ | {"PATH": path}, stderr=subprocess.DEVNULL
    )
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text("utf-8").strip()))
    process.send_signal(signum)  # to bench alone, as `kill` does
    assert process.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def wait_for(condition, seconds: float = 10):
    """The first true value of `condition()`; fails if none comes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")
