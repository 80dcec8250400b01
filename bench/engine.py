"""Where trials run: worker processes on this machine, each with one trial at a time.

In:  Tasks and the photos they need.   Out: the events that the workers yield, and what became of a worker.
Knows nothing of journals, MLflow or terminals, nor of which trial is worth trying again.
"""

import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from bench.environment import read_torch_version
from bench.processes import start_process
from bench.run import StopRequest, Task, execute
from bench.stops import WORKER
from bench.trial import Failed, Finished, StepDone, Stopped, Trial, WorkerEvent
from catseg.dataset import PhotoSet
from catseg.device import choose_device

UNKNOWN = 255  # the exit code of a process whose server was killed, too
END_SECONDS = 10.0  # for a killed process to be gone; one that hangs in a driver of the system is left behind
LOG_LINES = 20  # kept of what a dead worker printed
SIGN_OF_LIFE_SECONDS = 0.25  # at most so often: a step may take a millisecond
SILENCE_SECONDS = 600.0  # of a worker that has hung; a step of the largest networks takes minutes on a CPU
SILENT_STEPS = 20  # or so many times its longest step

PhotoSets = Mapping[int, tuple[PhotoSet, PhotoSet]]  # image size -> training, validation


class LocalEngine:
    """So many workers, started when there is work for them, replaced when a trial fails in them.

    On a GPU they are kept from trial to trial: a fresh one takes seconds there. On a CPU it takes a
    tenth of a second, and what a worker keeps of earlier trials (up to a fifth of its memory) would count
    in the next one's peak.
    """

    def __init__(
        self, sets: PhotoSets, device_name: str, jobs: int = 1, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self._sets, self._device_name, self._jobs, self._silence_seconds = sets, device_name, jobs, silence_seconds
        self._workers: dict[int, _Worker] = {}  # by place, 0 to jobs - 1

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return choose_device(self._device_name).type

    @property
    def torch_version(self) -> str:
        """That of the workers: this machine's."""
        return read_torch_version()

    @property
    def num_free(self) -> int:
        """How many more tasks can be started."""
        return self._jobs - sum(worker.trial is not None for worker in self._workers.values())

    def start(self, task: Task) -> None:
        """Give a task to a free worker. A worker that died in the meantime is replaced."""
        place = next(p for p in range(self._jobs) if p not in self._workers or self._workers[p].trial is None)
        photos = self._sets[task.trial.train.image_size]
        if place in self._workers:
            try:
                self._workers[place].start(task, photos)
            except OSError:
                self._end_worker(place)
            else:
                return
        worker = self._start_worker(place)
        try:
            worker.start(task, photos)
        except OSError:
            worker.trial = task.trial  # dead before it could read: `wait` says so

    def wait(self, seconds: float) -> Iterator[tuple[Trial, WorkerEvent]]:
        """What happened, once something has, or after so many seconds. Finished, Failed and Stopped end a trial."""
        busy = {worker.connection: place for place, worker in self._workers.items() if worker.trial is not None}
        start = time.monotonic()
        ready = wait(list(busy), seconds) if busy else []
        waited = min(time.monotonic() - start, 2 * seconds)  # longer: this process was stopped, and they with it
        for link, place in busy.items():
            worker = self._workers[place]
            assert worker.trial is not None
            trial, event = worker.trial, None
            worker.silent_seconds += waited
            if link in ready:
                event = worker.receive()
            elif worker.silent_seconds > max(self._silence_seconds, SILENT_STEPS * worker.longest_silence):
                event = Failed("timeout", f"no sign of life for {worker.silent_seconds:.0f} s", worker.read_log())
            if isinstance(event, Failed) or (isinstance(event, Finished) and self.device_type == "cpu"):
                self._end_worker(place)
            elif isinstance(event, Finished | Stopped):
                worker.trial = None
            if event is not None and not isinstance(event, StepDone):
                yield trial, event

    def stop(self) -> None:
        """Ask every busy worker to end after its step, with a checkpoint."""
        for worker in self._workers.values():
            if worker.trial is not None:
                with suppress(OSError):  # it is dead: `wait` says so
                    worker.connection.send(StopRequest(asked=True))

    def close(self) -> None:
        """End all workers at once."""
        for place in list(self._workers):
            self._end_worker(place)

    def _start_worker(self, place: int) -> "_Worker":
        self._workers[place] = _Worker(_choose_place(self._device_name, place), share_threads(self._jobs))
        return self._workers[place]

    def _end_worker(self, place: int) -> None:
        self._workers.pop(place).end()


class _Worker:
    """A process and the way to talk with it."""

    def __init__(self, device_name: str, threads: int | None) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="bench-worker-", suffix=".log")  # noqa: SIM115 - until `end`
        self._process, self.connection = start_process(WORKER, _work, self._log.name, device_name, threads)
        self.trial: Trial | None = None
        self.silent_seconds = self.longest_silence = 0.0  # as long as somebody listened
        self._image_size: int | None = None  # of the photos that it has

    def start(self, task: Task, photos: tuple[PhotoSet, PhotoSet]) -> None:
        if self._image_size != task.trial.train.image_size:
            self.connection.send(photos)
            self._image_size = task.trial.train.image_size
        self.connection.send(task)
        self.trial, self.silent_seconds, self.longest_silence = task.trial, 0.0, 0.0

    def receive(self) -> WorkerEvent:
        """The next event, or what the worker died of."""
        try:
            event: WorkerEvent = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(END_SECONDS)
            return _explain_death(self._process.exitcode, self.read_log())
        self.longest_silence = max(self.longest_silence, self.silent_seconds)
        self.silent_seconds = 0.0
        return event

    def read_log(self) -> str:
        """The last lines of what it printed."""
        return "\n".join(Path(self._log.name).read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:])

    def end(self) -> None:
        self.connection.close()  # alone the end of it, should the server that forked it be dead
        self._process.kill()
        self._process.join(END_SECONDS)
        self._log.close()


def share_threads(jobs: int) -> int | None:
    """The threads of each of so many workers; None: as many as torch chooses."""
    return max(1, torch.get_num_threads() // jobs) if jobs > 1 else None


def count_gpus(device_name: str) -> int:
    """How many are given out to workers: those that are there, unless one or none was named."""
    return torch.cuda.device_count() if device_name in ("auto", "cuda") else 0


def _choose_place(device_name: str, place: int) -> str:
    """One GPU after another where there are several and none was named."""
    num_gpus = count_gpus(device_name)
    return f"cuda:{place % num_gpus}" if num_gpus > 1 else device_name


def _work(link: Connection, log_path: str, device_name: str, threads: int | None) -> None:
    """A worker's whole life: compute, send, print into the log; end when the driver is gone."""
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    if threads is not None:
        torch.set_num_threads(threads)
    gc.freeze()  # what was imported stays: looking through it for rubbish takes a tenth of a second a trial
    photos: tuple[PhotoSet, PhotoSet] | None = None
    with suppress(EOFError, ConnectionError):
        while True:
            message = link.recv()
            if isinstance(message, Task):
                assert photos is not None
                _run_task(link, message, photos, device_name)
            elif not isinstance(message, StopRequest):  # one that came when the trial was over
                photos = message


def _run_task(link: Connection, task: Task, photos: tuple[PhotoSet, PhotoSet], device_name: str) -> None:
    stop = StopRequest()
    sent = 0.0
    for event in execute(task, *photos, device_name, stop):
        if not isinstance(event, StepDone) or time.monotonic() - sent > SIGN_OF_LIFE_SECONDS:
            link.send(event)
            sent = time.monotonic()
        if isinstance(event, Finished | Failed | Stopped):
            return  # what comes now may be the next task
        if not stop.asked and link.poll():
            stop.asked = link.recv().asked


def _explain_death(exitcode: int | None, log: str) -> Failed:
    """A worker that ended without a last word: killed from outside, or an error of ours in its log."""
    if exitcode in (-signal.SIGKILL, UNKNOWN, None):
        return Failed("killed", "the worker was killed from outside; if by the system, for want of memory", log)
    if exitcode < 0:
        return Failed("crash", f"the worker died of {signal.Signals(-exitcode).name}", log)
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
    return Failed("crash", f"the worker ended with exit code {exitcode}: {last}", log)
