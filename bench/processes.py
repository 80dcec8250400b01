"""Processes of our own: how they are started, and that they leave signals to the driver.

In:  a function, its arguments.   Out: a running process.
Knows nothing of what runs in it.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from bench.stops import EXIT_CODES


def start_process(name: str, work: Callable[..., None], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """Run work(link, *arguments) in a process, and the other end of its link.

    Forked from a server that has imported torch once: a start costs some ten milliseconds instead of
    seconds. The first optimizer of a process imports torch._dynamo, a second more.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.run", "torch._dynamo"])
    ours, theirs = context.Pipe()
    environment = dict(os.environ)  # the server's own is that of when it was started
    process = context.Process(target=_begin, args=(environment, work, theirs, *arguments), daemon=True, name=name)
    process.start()
    theirs.close()  # the process's copy is now the only one: its death ends the stream
    return process, ours


def _begin(environment: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for signum in EXIT_CODES:  # a terminal and a batch system signal every process of a job: the driver alone answers
        signal.signal(signum, signal.SIG_IGN)
    work(*arguments)
