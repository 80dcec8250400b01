"""A request to stop, as the system makes it: Ctrl-C, `kill`, a closed terminal, a batch system whose time is up.

In:  signals.   Out: the first one, for whoever looks; at the second one the end.
Knows nothing of what is to be stopped.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Slurm sends SIGUSR1 where `--signal=USR1@90` asks for it, else SIGTERM: both mean that time is up.
EXIT_CODES = {
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGUSR1: 128 + signal.SIGTERM,
    signal.SIGHUP: 128 + signal.SIGHUP,
}


@dataclass
class Stop:
    """What has been asked for so far."""

    exit_code: int | None = None  # None: nothing


@contextmanager
def listen() -> Iterator[Stop]:
    """Within the block a first signal is noted, and a second one ends this process and its children at once."""
    stop = Stop()

    def note(signum: int, _: FrameType | None) -> None:
        exit_code = EXIT_CODES[signal.Signals(signum)]
        if stop.exit_code is not None:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(exit_code)
        stop.exit_code = exit_code

    before = {signum: signal.signal(signum, note) for signum in EXIT_CODES}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
