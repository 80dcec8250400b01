"""Processes of our own: how they are started, and that they leave signals to the driver.

In:  a function, its arguments.   Out: a running process.
Knows nothing of what runs in it.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from bench.stops import EXIT_CODES

PAUSES_SECONDS = (0.1, 0.5)  # between tries to start one

# Left alone, glibc gives large freed tensors back to the system at every step and faults them in anew. Kept, they
# make training steps faster, by 5 % with 32 features at 128 px and 29 % at 256 px, for up to a quarter more memory.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=4000000000"


def start_process(name: str, work: Callable[..., None], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """Run work(link, *arguments) in a process, and the other end of its link.

    Forked from a server that has imported torch once: a start costs some ten milliseconds instead of
    seconds. The first optimizer of a process imports torch._dynamo, a second more.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.run", "torch._dynamo"])
    environment = dict(os.environ)  # the server's own is that of when it was started
    for pause_seconds in (*PAUSES_SECONDS, None):
        ours, theirs = context.Pipe()
        process = context.Process(target=_begin, args=(environment, work, theirs, *arguments), daemon=True, name=name)
        try:
            with _signals_held_back(), _malloc_tuned():
                process.start()
        except (OSError, EOFError):
            ours.close()
            if pause_seconds is None:
                raise
            time.sleep(pause_seconds)  # the server is dying, and not yet seen to be dead: then another one is started
        else:
            return process, ours
        finally:
            theirs.close()  # the process's copy is now the only one: its death ends the stream
    raise AssertionError("the last try returns or raises")


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A terminal and a batch system signal every process of a job, but the driver alone answers.

    What is blocked here stays blocked in the server that forks, if this starts it, and in all that it forks.
    """
    resource_tracker.ensure_running()  # would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _malloc_tuned() -> Iterator[None]:
    """glibc reads this when a program is loaded: here by the server that forks, if this starts it. Others ignore it.

    The user's own tunables stand, and nothing else that is started inherits ours.
    """
    if "GLIBC_TUNABLES" in os.environ:
        yield
        return
    os.environ["GLIBC_TUNABLES"] = MALLOC
    try:
        yield
    finally:
        del os.environ["GLIBC_TUNABLES"]


def _begin(environment: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)
