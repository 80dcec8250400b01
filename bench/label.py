"""Labelme, the outlining application, started on a folder of photos in a process of its own.

In:  a folder, a file of labels.   Out: Labelme's window, and its exit code once that is closed.
Knows nothing of annotations or masks; never imports labelme (GPL), whose version it asks for by `--help` alone.
"""

import codecs
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from catseg.errors import InputError
from catseg.folder import list_files
from catseg.labelme import load_labels
from catseg.photo import PHOTO_SUFFIXES

INSTALL = "`pip install -c constraints.txt -e '.[label]'`, or `pipx install labelme` for an application of its own"
HELP_SECONDS = 60  # measured: 1; a first start from a slow disk takes many times that
END_SECONDS = 2
MAX_WORDS = 300  # characters of Labelme's that are passed on

# What Labelme is to do, in the spellings of its versions, newest first: of each row the first that the
# installed version names. The last two rows are what Labelme does anyway since 6.0.
OPTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("--validate-label", "--validatelabel"), ("exact",)),  # a label that is not in the file is refused, not saved
    (("--no-sort-labels", "--nosortlabels"), ()),  # the order of the file is that of the label ids
    (("--autosave",), ()),
    (("--nodata",), ()),  # a photo embedded in its annotation is a second one, and the one that Labelme shows
)

# What Qt 5.15 (Labelme 6) and Qt 6 (Labelme 7) need of Debian and Ubuntu to draw a window under X11.
PACKAGES = (
    "libgl1 libegl1 libglib2.0-0 libfontconfig1 libdbus-1-3 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 "
    "libxcb-keysyms1 libxcb-shape0 libxcb-xinerama0"
)
DESKTOP = "it draws a window: start it on a machine with a desktop, or over `ssh -X`"

STOPPED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)  # from outside; other signals are crashes


def start_labelme(folder: Path, labels_path: Path) -> int:
    """Open `folder` in Labelme and wait until its window is closed; the exit code, as a shell counts it.

    What keeps Labelme from starting is an InputError with its own last words and a remedy. Whatever
    ends this process (Ctrl-C, a closed terminal) ends Labelme too; it saves each change as it is made.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make one and put photos into it")
    if not list_files(folder, PHOTO_SUFFIXES):
        raise InputError(f"{folder}: no photo in it ({', '.join(PHOTO_SUFFIXES)}); name the folder that holds them")
    load_labels(labels_path)  # at a label that stands there twice, Labelme drops every option it was given
    if labels_path.read_bytes().startswith(codecs.BOM_UTF8):
        raise InputError(f"{labels_path}: begins with a byte order mark, a letter to Labelme; save it as plain UTF-8")
    labelme = find_labelme()
    command = [labelme, *choose_options(ask_help(labelme), labels_path), str(folder)]
    with tempfile.TemporaryFile() as log:  # Labelme tells it every step; only an end in failure is of interest
        process = subprocess.Popen(command, stderr=log)
        try:
            returncode = process.wait()
        finally:  # on the way out of a Ctrl-C, too; `subprocess.run` would leave a dead process behind
            end(process)
        log.seek(0)
        words = log.read().decode("utf-8", errors="replace")
    if -returncode in STOPPED:
        return 128 - returncode
    if returncode != 0:
        raise InputError(explain_failure(labelme, words))
    return 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, in time to finish a file that it is writing; then end it."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find_labelme() -> str:
    """The executable of this environment, or else the one on PATH, which pipx and `uv tool` put there."""
    labelme = shutil.which("labelme", path=str(Path(sys.executable).parent)) or shutil.which("labelme")
    if labelme is None:
        raise InputError(f"labelme: not installed; {INSTALL}")
    return labelme


def ask_help(labelme: str) -> str:
    """What the installed version says of its options; this also imports it, so that a broken one shows here."""
    try:
        answer = subprocess.run(
            [labelme, "--help"], capture_output=True, text=True, errors="replace", timeout=HELP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{labelme}: no answer to --help in {HELP_SECONDS} s; start it by hand once") from None
    except OSError as error:  # the virtual environment it was installed in is gone, for one
        raise InputError(f"{labelme}: cannot be started ({error.strerror}); install it again: {INSTALL}") from None
    if answer.returncode != 0:
        raise InputError(explain_failure(labelme, answer.stderr))
    if "--labels" not in answer.stdout:
        raise InputError(f"{labelme}: its --help names no --labels, so it is not Labelme; {INSTALL}")
    return answer.stdout


def choose_options(help_text: str, labels_path: Path) -> list[str]:
    """The options that make any version label strictly, in order, save by itself and embed no photos.

    The user's ~/.labelmerc is left out where it can be: the one that versions 3 to 5 wrote turns saving off
    and embedding on, and at its outdated keys Labelme 6 drops every option it was given, the labels too.
    """
    known = set(re.findall(r"--[a-z-]+", help_text))
    options = ["--labels", str(labels_path)]
    if re.search(r"--config\b.*\byaml-\s*format", help_text, re.DOTALL):  # since 4
        options += ["--config", "{}"]
    for spellings, values in OPTIONS:
        spelling = next((spelling for spelling in spellings if spelling in known), None)
        if spelling is not None:
            options += [spelling, *values]
    return options


def explain_failure(labelme: str, words: str) -> str:
    """One line: where, the line of `words` that says what went wrong, and what to do about it.

    That is not always the last one: Qt ends with a list of its plugins.
    """
    lines = [line.strip()[:MAX_WORDS] for line in words.splitlines() if line.strip()]
    libraries = f"on Debian and Ubuntu: `apt install {PACKAGES}`"
    for sign, remedy in (
        ("cannot open shared object file", libraries),
        ("could not connect to display", DESKTOP),
        ("no Qt platform plugin", libraries if _has_desktop() else DESKTOP),
    ):
        told = next((line for line in reversed(lines) if sign in line), None)
        if told is not None:
            return f"{labelme}: {told.rstrip('.')}; {remedy}"
    last = lines[-1] if lines else "it ended without a word"
    return f"{labelme}: {last}; see whether `labelme` alone starts, and install it again if not: {INSTALL}"


def _has_desktop() -> bool:
    """Linux's two kinds of desktop name themselves in the environment; other systems always have one."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
