"""A cluster put into our words: what its hosts hold, what it is called by, what became of a worker that it lost.

In:  what hosts hold by Ray's names, an address, Ray's errors.   Out: numbers of trials, failures, the user's mistakes.
Knows nothing of Ray itself, which need not be installed, nor of trials.
"""

import socket
from collections.abc import Iterable, Mapping

from bench.environment import CODE_HASH, find_device_type, read_torch_version
from bench.trial import Failed, FailureKind, Started
from catseg.errors import InputError

REACH_SECONDS = 5.0  # for a host to accept a connection
LOG_LINES = 20  # kept of a traceback


def count_places(hosts: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many trials these hosts hold; a part of a GPU is never put together from two."""
    num_places = 0
    for host in hosts:
        num_gpus = host.get("GPU", 0.0)
        by_cpus = int(host.get("CPU", 0.0) // cpus)
        by_gpus = by_cpus if not gpus else int(num_gpus) * int(1 / gpus + 1e-6) if gpus < 1 else int(num_gpus // gpus)
        num_places += min(by_cpus, by_gpus)
    return num_places


def check_shape(hosts: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> None:
    """InputError: no host will ever hold such a trial."""
    rooms = list(hosts)
    if count_places(rooms, cpus, gpus):
        return
    most = {name: max((room.get(name, 0.0) for room in rooms), default=0.0) for name in ("GPU", "CPU")}
    for flag, name, asked in (("--gpus-per-trial", "GPU", gpus), ("--cpus-per-trial", "CPU", cpus)):
        if asked > most[name]:
            raise InputError(
                f"{flag}: asked {asked:g}, the largest host has {most[name]:g}; ask for less, or add a larger host"
            )
    raise InputError(
        f"--gpus-per-trial: no host has {gpus:g} GPUs and {cpus} CPUs; ask for less of either, or add such a host"
    )


# What Ray calls it: the kind of failure, and the line that is told.
LOSSES: dict[str, tuple[FailureKind, str]] = {
    "NodeDiedError": ("killed", "the worker's host was lost: its power, its network, or its Ray"),
    "WorkerCrashedError": ("killed", "the worker was killed from outside; if by the system, for want of memory"),
    "OutOfMemoryError": (
        "oom",
        "the host ran out of memory, and Ray ended the worker; with more --cpus-per-trial there are fewer on a host",
    ),
    **dict.fromkeys(
        ("ObjectStoreFullError", "OutOfDiskError"),
        (
            "crash",
            "Ray's object store is full, and so is the disk that it spills to; make room in Ray's temporary folder, "
            "or start its hosts with more --object-store-memory",
        ),
    ),
    **dict.fromkeys(
        ("ObjectLostError", "OwnerDiedError", "ObjectFetchTimedOutError", "ObjectReconstructionFailedError"),
        ("killed", "what the worker sent was lost with its host"),
    ),
}


def explain_loss(error: Exception) -> Failed:
    """What became of a worker. An error of our own code has its traceback as log."""
    cause = getattr(error, "cause", None) or error
    log = "\n".join(str(error).splitlines()[-LOG_LINES:])
    loss = LOSSES.get(type(cause).__name__)
    if loss is not None:
        return Failed(*loss, log)
    last = next((line for line in reversed(str(cause).splitlines()) if line.strip()), "it does not say why")
    return Failed("crash", f"the worker ended with {type(cause).__name__}: {last.strip()}", log)


def explain_other(host: str, started: Started, torch_version: str, device_type: str) -> Failed | None:
    """What a trial that started on `host` would owe to it: who joins late was not asked what it is. None: nothing."""
    there = started.environment.get("code"), started.environment.get("torch"), started.device.partition(":")[0]
    agreed = CODE_HASH, torch_version, device_type
    differing = [
        f"{name} {found}, not {wanted}"
        for name, found, wanted in zip(("code", "torch", "device"), there, agreed, strict=True)
        if found != wanted
    ]
    if not differing:
        return None
    return Failed(
        "crash",
        f"{host or 'a host that joined later'} is unlike the hosts at the start ({'; '.join(differing)}); install the "
        "same there or take it out of the cluster, then --retry crash",
    )


def check_address(address: str) -> None:
    """InputError: nobody listens there. Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise InputError(f"--address: must be HOST:PORT or `auto`, got {address}; `ray start --head` prints it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address: {address} does not answer ({error}); is `ray start --head` running there?"
        ) from None


def choose_worker_device(device_name: str, gpus: float) -> str:
    """What a worker is told: Ray gives it its GPUs, and without one it must not take any."""
    if device_name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device: Ray chooses the GPU, got {device_name}; use --device cuda, cpu or auto")
    if not gpus and device_name == "cuda":
        raise InputError("--device: cuda asked for, and no GPUs per trial; use --gpus-per-trial 1, or --device cpu")
    return device_name if gpus else "cpu"


def describe_host(device_name: str) -> tuple[str, str, str]:
    """Of the host that this runs on: catseg's code, torch's version, `cpu` or `cuda`. Without a GPU in a second."""
    return CODE_HASH, read_torch_version(), find_device_type(device_name)
