"""Where trials run: each in a process of its own on this machine.

In:  a Trial and its photos.   Out: the events its process yields, and what became of the process.
Knows nothing of journals, MLflow or terminals.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from bench.run import execute
from bench.trial import Event, Failed, Finished, Trial
from catseg.dataset import PhotoSet

LOG_LINES = 20  # kept of what a dead worker printed


def run_local(
    trial: Trial, train_set: PhotoSet, val_set: PhotoSet, classes: tuple[str, ...], device_name: str
) -> Iterator[Event]:
    """Run one trial in a fresh process, so that nothing of it outlives it: memory, CUDA errors, a crash.

    Processes are forked from a server that has imported torch once: a start costs some ten
    milliseconds instead of seconds. Closing the iterator ends the process.
    """
    context = multiprocessing.get_context("forkserver")
    # the first optimizer of a process imports torch._dynamo: a second a trial, unless it is there
    context.set_forkserver_preload(["bench.run", "torch._dynamo"])
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="bench-worker-", suffix=".log") as log:
        process = context.Process(
            target=_work, args=(sender, log.name, trial, train_set, val_set, classes, device_name), daemon=True
        )
        process.start()
        sender.close()  # the worker's copy is now the only one: its death ends the stream
        try:
            while True:
                try:
                    event: Event = receiver.recv()
                except EOFError:
                    process.join()
                    yield _explain_death(process.exitcode, Path(log.name))
                    return
                yield event
                if isinstance(event, Finished | Failed):
                    return
        finally:
            process.kill()
            process.join()
            receiver.close()


def _work(
    sender: Connection,
    log_path: str,
    trial: Trial,
    train_set: PhotoSet,
    val_set: PhotoSet,
    classes: tuple[str, ...],
    device_name: str,
) -> None:
    """The worker's whole life: compute, send, print into the log. The driver alone answers to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    for event in execute(trial, train_set, val_set, classes, device_name):
        sender.send(event)


def _explain_death(exitcode: int | None, log_path: Path) -> Failed:
    """A worker that ended without a last word: killed from outside, or an error of ours in its log."""
    lines = log_path.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
    log = "\n".join(lines)
    if exitcode == -signal.SIGKILL:
        return Failed("killed", "the worker was killed from outside; if by the system, for want of memory", log)
    if exitcode is not None and exitcode < 0:
        return Failed("crash", f"the worker died of {signal.Signals(-exitcode).name}", log)
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return Failed("crash", f"the worker ended with exit code {exitcode}: {last}", log)
