"""A request to stop, as the system makes it: Ctrl-C, `kill`, a closed terminal, a batch system whose time is up.

In:  signals.   Out: the first one, for whoever looks; at the second one the end.
Knows nothing of what is to be stopped.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

WORKER = "worker"  # the name of the processes that compute
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides

# Slurm sends SIGUSR1 where `--signal=USR1@90` asks for it, else SIGTERM: both mean that time is up.
EXIT_CODES = {
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGUSR1: 128 + signal.SIGTERM,
    signal.SIGHUP: 128 + signal.SIGHUP,
}


IMPATIENCE_SECONDS = 0.3  # a wrapper and its terminal may both send what was pressed once


@dataclass
class Stop:
    """What has been asked for so far."""

    asked: bool = False
    exit_code: int | None = None  # as a signal asks for it


@contextmanager
def listen() -> Iterator[Stop]:
    """Within the block a first signal is noted, and a second one ends this process and its workers at once.

    A closed terminal is no impatience. What this process was started to ignore (nohup, a script's
    background) it ignores.
    """
    stop = Stop()
    noted = 0.0

    def note(signum: int, _: FrameType | None) -> None:
        nonlocal noted
        exit_code = EXIT_CODES[signal.Signals(signum)]
        if stop.exit_code is None:
            stop.asked, stop.exit_code, noted = True, exit_code, time.monotonic()
        elif signum != signal.SIGHUP and time.monotonic() - noted > IMPATIENCE_SECONDS:
            _end_at_once(exit_code)

    before = {s: signal.getsignal(s) for s in EXIT_CODES if signal.getsignal(s) is not signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, note)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end_at_once(exit_code: int) -> None:
    """The mirror is left: it says in MLflow what became of the runs, and ends."""
    for child in multiprocessing.active_children():
        if child.name == WORKER:
            child.kill()
    if os.isatty(1):
        os.write(1, SHOW_CURSOR)
    os._exit(exit_code)
