"""MLflow kept up to date beside the training, by a process that may be slow, stuck or dead without anyone waiting.

In:  the journal, and which folders of it have changed.   Out: what bench/tracking.py sends; how far it got.
Knows nothing of what is in a run.

Only one process at a time mirrors an experiment: a lock in its folder sees to that.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from bench.claim import hold
from bench.journal import REPORT, list_folders, list_superseded
from bench.processes import start_process
from bench.standing import read_standing
from bench.tracking import Tracker

LOCK = "mirror.lock"
NICENESS = 19  # the idle moments of two busy cores are enough for it; at 10 it made a first trial a tenth longer
END_SECONDS = 10.0  # for a killed process to be gone
STANDING_SECONDS, STANDING_SHARE = 5.0, 0.1  # between two leaderboards at least, and of the time at most
MAX_LIVE = 1000  # trials: of more, there is a leaderboard at the end only
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 2.0, 60.0  # between two tries to reach a store that did not answer


@dataclass(frozen=True)
class Status:
    """How far the mirror is."""

    num_left: int  # folders to bring up to date
    is_waiting: bool  # for news, or before it tries again
    problem: str = ""  # why it could not go on, when it last tried
    experiment_id: str = ""  # MLflow's; "" until it is known


class Mirror:
    """The driver's end. No call waits for MLflow but `drain`, and that not for ever."""

    def __init__(self, experiment_folder: Path) -> None:
        self._process, self._connection = start_process("mirror", _serve, experiment_folder)
        self._changed: set[Path] = set()
        self._is_last = False  # what changed is the last that will, and it was not told yet
        self._is_gone = False
        self._heard = time.monotonic()
        self.status = Status(num_left=1, is_waiting=False)  # it begins with what earlier sessions left

    @property
    def num_left(self) -> int:
        """How many folders MLflow may not know in full."""
        return self.status.num_left + len(self._changed)

    def notify(self, folder: Path) -> None:
        """Something has changed in a trial's folder."""
        self._changed.add(folder)
        self.pump()

    def pump(self) -> None:
        """Hear what it says, and tell it what changed if it listens."""
        try:
            while self._connection.poll():
                self.status = self._connection.recv()
                self._heard = time.monotonic()
            if (self._changed or self._is_last) and self.status.is_waiting:
                num_left = self.status.num_left + len(self._changed)
                self._connection.send((self._changed, self._is_last))
                self.status = Status(num_left, False, "", self.status.experiment_id)
                self._changed, self._is_last = set(), False
        except (EOFError, OSError):
            self._is_gone = True
            problem = "the process that sends to it died"
            self.status = Status(self.status.num_left, True, problem, self.status.experiment_id)

    def drain(self, patience_seconds: float) -> Iterator[int]:
        """Wait until MLflow has everything, it cannot be reached, or nothing was heard for so long.

        Nothing will change after this: runs learn their ranks. Yields how many folders are left,
        several times a second.
        """
        self._heard = time.monotonic()
        self._is_last = True
        self.pump()  # where it sits out a pause, it tries once more now
        while not self._is_gone:
            self._connection.poll(0.1)
            self.pump()
            is_done = self.status.problem or not self.status.num_left
            if self.status.is_waiting and is_done and not (self._changed or self._is_last):
                return
            if time.monotonic() - self._heard > patience_seconds:
                problem = self.status.problem or f"no answer for {patience_seconds:.0f} s"
                self.status = Status(self.status.num_left, True, problem, self.status.experiment_id)
                return
            yield self.status.num_left

    def close(self) -> None:
        """End it at once; what it did not send is sent by the next session or by `bench sync`."""
        self._process.kill()
        self._process.join(END_SECONDS)
        self._connection.close()


def sync_all(experiment_folder: Path) -> Iterator[tuple[int, int, bool]]:
    """Mirror every folder of an experiment, alone: (number, of how many, whether anything was missing)."""
    with hold(experiment_folder / LOCK) as file:
        _sign(file, uuid.uuid4().bytes)
        folders = list_all_folders(experiment_folder)
        tracker = Tracker(experiment_folder)
        tracker.look_through()
        for number, folder in enumerate(folders, 1):
            yield number, len(folders), tracker.mirror(folder)
        tracker.close_orphans(folders)
        for _ in tracker.show_standing(read_standing(experiment_folder), with_ranks=True):
            pass
        _send_report(tracker, experiment_folder)


def list_all_folders(experiment_folder: Path) -> list[Path]:
    """Every execution of an experiment, what was done anew since included."""
    return [*list_superseded(experiment_folder), *list_folders(experiment_folder).values()]


class _DriverGone(Exception):
    """There is nobody left to tell."""


def _serve(link: Connection, experiment_folder: Path) -> None:
    """The mirror's whole life. Outliving its driver, it says last what became of the runs that were open."""
    os.nice(NICENESS)
    try:
        _follow(link, experiment_folder)
    except _DriverGone:
        with suppress(Exception):  # nobody is there to hear of it
            for _ in sync_all(experiment_folder):
                pass


def _follow(link: Connection, experiment_folder: Path) -> None:
    """Bring up to date what changed; on trouble wait, and try again."""
    left = dict.fromkeys(list_all_folders(experiment_folder))  # in order, each once
    tracker: Tracker | None = None
    pause, problem, experiment_id, signature = 0.0, "", "", uuid.uuid4().bytes
    is_last, standing = False, _StandingSender(experiment_folder)
    while True:
        try:
            with hold(experiment_folder / LOCK) as file:
                if tracker is None:
                    _tell(link, Status(len(left), False))
                    tracker = Tracker(experiment_folder)
                    experiment_id = tracker.experiment_id
                    _tell(link, Status(len(left), False, "", experiment_id))
                    tracker.close_orphans(list_all_folders(experiment_folder))
                    tracker.look_through()
                elif not _was_signed(file, signature):
                    tracker.forget()
                _sign(file, signature)
                _send_left(link, tracker, left)
                standing.send(link, tracker, is_last)
                is_last = False
            pause, problem = 0.0, ""
        except _DriverGone:
            raise
        except Exception as error:  # whatever a store, a server or a disk may raise
            tracker = None  # what was granted of the last request only MLflow knows
            pause = min(MAX_PAUSE_SECONDS, max(MIN_PAUSE_SECONDS, 2 * pause))
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        _tell(link, Status(len(left), True, problem, experiment_id))
        if link.poll(pause if problem else standing.seconds_left):
            try:
                changed, ends = link.recv()
            except (EOFError, OSError):
                raise _DriverGone from None
            is_last |= ends
            left |= dict.fromkeys(sorted(changed))


class _StandingSender:
    """The leaderboard, sent when results came in: seldom while the trials run, and whole at the end."""

    def __init__(self, experiment_folder: Path) -> None:
        self._folder = experiment_folder
        self._num_known = 0  # results that were sent before
        self._is_stale = False
        self._due = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until it is to be sent; None: before it is, something else will happen."""
        if not self._is_stale or len(list_folders(self._folder)) > MAX_LIVE:
            return None
        return max(0.0, self._due - time.monotonic())

    def send(self, link: Connection, tracker: Tracker, is_last: bool) -> None:
        """Send what is due. At the end every run learns its rank, too."""
        self._is_stale |= tracker.num_ended != self._num_known
        self._num_known = tracker.num_ended
        if not is_last and self.seconds_left != 0:
            return
        start = time.monotonic()
        for _ in tracker.show_standing(read_standing(self._folder), with_ranks=is_last):
            _tell(link, Status(0, False, "", tracker.experiment_id))
        if is_last:
            _send_report(tracker, self._folder)
        now = time.monotonic()
        self._due = now + max(STANDING_SECONDS, (now - start) * (1 / STANDING_SHARE - 1))
        self._is_stale = False


def _send_report(tracker: Tracker, experiment_folder: Path) -> None:
    page = experiment_folder / REPORT
    if page.is_file():
        tracker.log_report(page)


def _send_left(link: Connection, tracker: Tracker, left: dict[Path, None]) -> None:
    """Mirror folder after folder, and take each from the list."""
    for folder in list(left):
        del left[folder]
        left[folder] = None  # last: if it cannot be sent, others come before it the next time
        tracker.mirror(folder)
        del left[folder]
        _tell(link, Status(len(left), False, "", tracker.experiment_id))


def _was_signed(lock: IO[bytes], signature: bytes) -> bool:
    lock.seek(0)
    return lock.read() == signature


def _sign(lock: IO[bytes], signature: bytes) -> None:
    """Leave word that what others know of the runs is out of date."""
    lock.truncate(0)
    lock.write(signature)
    lock.flush()


def _tell(link: Connection, status: Status) -> None:
    try:
        link.send(status)
    except OSError:
        raise _DriverGone from None
