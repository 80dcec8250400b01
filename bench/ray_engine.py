"""Where trials run: the hosts that Ray holds together, each trial in a fresh process on one of them.

In:  Tasks and the photos they need.   Out: the events that the workers yield, and what became of a worker.
Knows nothing of journals, MLflow or terminals, nor of which trial is worth trying again.

Nothing needs a shared disk: photos travel to a host once, checkpoints with their task, and events come back as a
stream. Ray tries nothing again by itself: what a lost worker had done stands in the journal, which only the driver has.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch

from bench.cluster import (
    check_address,
    check_shape,
    choose_worker_device,
    count_places,
    describe_host,
    explain_loss,
    explain_other,
)
from bench.engine import SILENCE_SECONDS, SILENT_STEPS, PhotoSets
from bench.environment import CODE_HASH
from bench.processes import MALLOC
from bench.run import StopRequest, Task, execute
from bench.trial import Failed, Finished, Queued, Started, StepDone, Stopped, Trial, WorkerEvent
from catseg.checkpoint import read_epoch
from catseg.dataset import PhotoSet
from catseg.errors import InputError

SIGN_OF_LIFE_SECONDS = 5.0  # eight hundred workers make 160 of them a second
LOOK_SECONDS = 1.0  # between two looks of a worker at whether it is to stop
HOSTS_SECONDS = 5.0  # between two looks of the driver at which hosts there are
QUEUED_SECONDS = 30.0  # in which a fresh process is up; who has waited longer waits for a place
ANSWER_SECONDS = 120.0  # for every host to import torch, from a slow network disk, too

# Set before ray is imported; whatever the user has set stands.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
# A Ray of our own answers this machine alone, to who has its token. (Where the first is a default, hence its name.)
LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


class RayEngine:
    """As many trials at a time as the cluster's hosts hold, however many join or are lost."""

    def __init__(
        self,
        sets: PhotoSets,
        device_name: str,
        address: str | None = None,
        gpus_per_trial: float | None = None,
        cpus_per_trial: int = 1,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """Connect to the Ray at `address`, or start one on this machine, and ask every host what it is.

        `gpus_per_trial` None: one, where there are GPUs. InputError: no such Ray, or no host that is large enough, or
        one that has not got this code.
        """
        self._ray = ray = _import_ray(is_local=address is None)
        self._sets, self._silence_seconds = sets, silence_seconds
        self._photos: dict[int, Any] = {}  # references, by image size
        self._attempts: list[_Attempt] = []
        _connect(ray, address)
        with ExitStack() as undo:
            undo.callback(ray.shutdown)  # whatever stops us before we are ready
            hosts = _list_hosts(ray)
            if gpus_per_trial is None:
                has_gpus = any(host.get("GPU") for host in hosts.values())
                gpus_per_trial = 1.0 if has_gpus and device_name != "cpu" else 0.0
            self._gpus, self._cpus = gpus_per_trial, cpus_per_trial
            check_shape(hosts.values(), cpus_per_trial, gpus_per_trial)
            self._device_name = choose_worker_device(device_name, gpus_per_trial)
            fitting = [host for host, room in hosts.items() if count_places([room], cpus_per_trial, gpus_per_trial)]
            self._device_type, self._torch_version = _ask_hosts(ray, fitting, self._device_name)
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            self._stopper = ray.remote(num_cpus=0)(_Stopper).options(scheduling_strategy=here).remote()
            self._work = make_worker(ray)
            undo.pop_all()
        self._num_places, self._counted = 0, -HOSTS_SECONDS

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`: of the workers; this machine need not have what they have."""
        return self._device_type

    @property
    def torch_version(self) -> str:
        """Theirs."""
        return self._torch_version

    @property
    def num_places(self) -> int:
        """How many trials the hosts hold that are there now."""
        if time.monotonic() - self._counted > HOSTS_SECONDS:
            self._num_places = count_places(_list_hosts(self._ray).values(), self._cpus, self._gpus)
            self._counted = time.monotonic()
        return self._num_places

    def describe(self) -> str:
        """One line: how many trials at a time, on what."""
        hosts = [host for host in _list_hosts(self._ray).values() if count_places([host], self._cpus, self._gpus)]
        each = f"each with {self._cpus} of its CPUs and {self._gpus:g} of its GPUs; {self._device_type}"
        return f"trials at a time {self.num_places}, hosts {len(hosts)} ({each})"

    @property
    def num_free(self) -> int:
        """How many more tasks can be started."""
        return max(0, self.num_places - len(self._attempts))

    def start(self, task: Task) -> None:
        """Give a task to Ray, which finds a host for it; where none is free it waits."""
        size = task.trial.train.image_size
        if size not in self._photos:
            self._photos[size] = self._ray.put(self._sets[size])
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
        stream = self._work.options(name=task.trial.name, **options).remote(
            task, self._photos[size], self._device_name, self._cpus, self._stopper
        )
        epoch = read_epoch(task.checkpoint) if task.checkpoint is not None else 0
        self._attempts.append(_Attempt(task.trial, stream, epoch))

    def wait(self, seconds: float) -> Iterator[tuple[Trial, WorkerEvent]]:
        """What happened, once something has, or after so many seconds. Finished, Failed and Stopped end a trial."""
        attempts, start = list(self._attempts), time.monotonic()
        ready = self._find_ready([attempt.stream for attempt in attempts], seconds)
        waited = min(time.monotonic() - start, 2 * seconds)  # longer: this process was stopped, and heard nothing
        for attempt in attempts:
            attempt.silent_seconds += waited
            event: WorkerEvent | None = None
            if id(attempt.stream) in ready:
                event = self._receive(attempt)
            elif not attempt.has_begun:
                event = self._explain_wait(attempt)
            elif attempt.silent_seconds > max(self._silence_seconds, SILENT_STEPS * attempt.longest_silence):
                self._ray.cancel(attempt.stream, force=True)
                event = Failed("timeout", f"no sign of life for {attempt.silent_seconds:.0f} s")
            if isinstance(event, Finished | Failed | Stopped):
                self._attempts.remove(attempt)
            if event is not None and not isinstance(event, StepDone):
                yield attempt.trial, event

    def stop(self) -> None:
        """Ask every worker to end after its step, with a checkpoint; what waits for a place is taken back."""
        self._stopper.ask.remote()
        for attempt in self._attempts:
            if not attempt.has_begun:
                self._ray.cancel(attempt.stream, force=True)
                attempt.was_taken_back = True

    def close(self) -> None:
        """End all workers of this session at once. Tasks may be started again."""
        for attempt in self._attempts:
            with suppress(self._ray.exceptions.RayError):  # it is lost
                self._ray.cancel(attempt.stream, force=True)
        self._attempts = []

    def leave(self) -> None:
        """Leave the cluster, for good; end a Ray that was started for this session."""
        self._attempts, self._photos = [], {}
        self._ray.shutdown()

    def _find_ready(self, streams: list[Any], seconds: float) -> set[int]:
        """The ids of the streams that have something to say, once one of them has."""
        if not streams or not self._ray.wait(streams, num_returns=1, timeout=seconds)[0]:
            return set()
        return {id(stream) for stream in self._ray.wait(streams, num_returns=len(streams), timeout=0)[0]}

    def _receive(self, attempt: "_Attempt") -> WorkerEvent:
        """The next event, or what the worker died of."""
        try:
            event: WorkerEvent | _Arrived = self._ray.get(next(attempt.stream))
        except StopIteration:
            return Failed("crash", "the worker ended without a last word")
        except self._ray.exceptions.RayError as error:
            return Stopped(attempt.epoch) if attempt.was_taken_back else explain_loss(error)
        if attempt.has_begun and not isinstance(event, Started):  # it was at work, and not on its way there
            attempt.longest_silence = max(attempt.longest_silence, attempt.silent_seconds)
        attempt.silent_seconds, attempt.has_begun = 0.0, True
        if isinstance(event, _Arrived):
            attempt.host = event.host
            return StepDone()
        other = isinstance(event, Started) and explain_other(
            attempt.host, event, self._torch_version, self._device_type
        )
        if other:
            self._ray.cancel(attempt.stream, force=True)
        return other or event

    def _explain_wait(self, attempt: "_Attempt") -> Queued | None:
        """Said once of a task that is still not at work."""
        if attempt.was_explained or attempt.silent_seconds < QUEUED_SECONDS:
            return None
        attempt.was_explained = True
        asked = f"{self._cpus} CPUs and {self._gpus:g} GPUs"
        if self.num_places:
            return Queued(f"every place in the cluster is taken ({asked} asked); it starts when one is free")
        return Queued(f"no host is left that holds {asked}; it starts when one joins the cluster")


@dataclass(frozen=True)
class _Arrived:
    """A worker's first word: it is up, on this host. A sign of life to all but its engine."""

    host: str


@dataclass(eq=False)
class _Attempt:
    """A task that Ray has, and what was heard of it."""

    trial: Trial
    stream: Any  # of references to events
    epoch: int = 0  # that it goes on after
    host: str = ""  # that it is at work on, once it says so
    has_begun: bool = False  # something was heard
    silent_seconds: float = 0.0  # as long as somebody listened
    longest_silence: float = 0.0
    was_explained: bool = False  # why it waits
    was_taken_back: bool = False


class _Stopper:
    """An actor beside the driver that workers ask whether they are to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def was_asked(self) -> bool:
        return self._asked


# --- the worker ----------------------------------------------------------------------------------------------------


def make_worker(ray: Any) -> Any:
    """What Ray runs: a process for one task, whose events it passes on while they come."""
    return ray.remote(max_calls=1, max_retries=0, num_returns="streaming")(_work)


def _work(
    task: Task, photos: tuple[PhotoSet, PhotoSet], device_name: str, threads: int, stopper: Any
) -> "Iterator[WorkerEvent | _Arrived]":
    """A worker's whole life."""
    yield _Arrived(socket.gethostname())  # from here on its silence counts: a GPU's driver may hang, too
    torch.set_num_threads(threads)
    stop, sent = StopRequest(), 0.0
    looks = look_for_stop(stopper)
    for event in execute(task, *photos, device_name, stop):
        if not isinstance(event, StepDone) or time.monotonic() - sent > SIGN_OF_LIFE_SECONDS:
            yield event
            sent = time.monotonic()
        stop.asked = stop.asked or next(looks)


def look_for_stop(stopper: Any) -> Iterator[bool]:
    """Whether to stop, as often as anyone likes; nobody waits for the answer, nor for one that is lost."""
    import ray

    answer, looked, asked = stopper.was_asked.remote(), time.monotonic(), False
    while True:
        if time.monotonic() - looked > LOOK_SECONDS and ray.wait([answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                asked = asked or ray.get(answer)
            answer, looked = stopper.was_asked.remote(), time.monotonic()
        yield asked


# --- the cluster ---------------------------------------------------------------------------------------------------


def _import_ray(is_local: bool) -> Any:
    for name, value in (ENVIRONMENT | (LOCAL_ENVIRONMENT if is_local else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise InputError(
            "--engine ray: Ray is not installed; pip install -c constraints.txt -e '.[ray]', or leave --engine out"
        ) from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """To the Ray at an address, or to one of our own. InputError: it is not there, or does not want us."""
    if address is not None and address != "auto":
        check_address(address)
    environment = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # who asks for no GPU may see whether there is one
    if "GLIBC_TUNABLES" not in os.environ:
        environment["GLIBC_TUNABLES"] = MALLOC
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": environment},
        )
    except Exception as error:  # whatever an older Ray, another Python or a wrong token makes it raise
        ray.shutdown()
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"--address: no Ray can be used at {address or 'this machine'} ({first}); it must run on this host, too, "
            "with the same versions of Ray and Python and, if it wants one, the token: docs/scale.md"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray puts its own there
    ray._private.worker._worker_logs_enabled = False  # forty lines for each host that is lost; there is no other switch


def _list_hosts(ray: Any) -> dict[str, dict[str, float]]:
    """What each host that is there holds, by Ray's name for it."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _ask_hosts(ray: Any, hosts: list[str], device_name: str) -> tuple[str, str]:
    """The device and the torch of all hosts. InputError: they differ, or one has not got this code."""
    describe = ray.remote(num_cpus=0, max_retries=0)(describe_host)
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in ray.nodes()}
    asked = {
        host: describe.options(scheduling_strategy=affinity(host, soft=False)).remote(device_name) for host in hosts
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    found, problems = {}, []
    for host, reference in asked.items():
        try:
            found[host] = ray.get(reference, timeout=0)
        except Exception as error:  # whatever an import, a driver or a network makes it raise
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            problems.append(f"{names[host]}: cannot run trials ({last}); install there what is installed here")
        else:
            if found[host][0] != CODE_HASH:
                problems.append(f"{names[host]}: has other code of catseg than this host; install the same on both")
    if problems:
        raise InputError(problems)
    kinds = {(torch_version, device): names[host] for host, (_, torch_version, device) in found.items()}
    if len(kinds) > 1:
        named = "; ".join(f"{host}: torch {version}, {device}" for (version, device), host in kinds.items())
        raise InputError(
            f"--address: hosts differ, and results with them ({named}); install the same, or give --device"
        )
    ((version, device),) = kinds
    return device, version
