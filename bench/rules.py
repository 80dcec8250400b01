"""What the flags of `bench run` say of how it goes about it.

In:  words from the command line.   Out: Rules, or InputError.
Knows nothing of experiments, engines or hosts.
"""

from collections.abc import Collection
from dataclasses import dataclass

from bench.trial import FAILURE_KINDS
from catseg.errors import InputError

LEAST_GPUS = 0.0001  # Ray counts no smaller part


@dataclass(frozen=True)
class Cluster:
    """The Ray that trials run on, and what each takes of it."""

    address: str | None = None  # None: one of our own on this machine
    gpus_per_trial: float | None = None  # None: one, where there are GPUs
    cpus_per_trial: int = 1


@dataclass(frozen=True)
class Rules:
    """What the flags of `bench run` say of how it goes about it."""

    retry: Collection[str] = ()  # kinds of failure to try again
    rerun: bool = False  # do anew what other code finished
    fail_fast: bool = False  # stop at the first failure
    jobs: int | None = 1  # trials at a time; None: as many as are fastest
    device: str = "auto"
    regret: bool = False  # after a halving, train what it stopped, too
    cluster: Cluster | None = None  # None: trials run on this machine


def parse_kinds(text: str) -> list[str]:
    """`oom,killed` -> its kinds of failure."""
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in FAILURE_KINDS:
            raise InputError(f"--retry: unknown kind {kind!r}; choose {', '.join(FAILURE_KINDS)}")
    return kinds


def parse_jobs(text: str) -> int | None:
    """`2` -> 2; `auto` -> None."""
    if text == "auto":
        return None
    try:
        jobs = int(text)
    except ValueError:
        jobs = 0
    if jobs < 1:
        raise InputError(f"--jobs: must be `auto` or a whole number above 0, got {text!r}; use --jobs 2 or --jobs auto")
    return jobs


def make_cluster(
    is_ray: bool, jobs: str | None, address: str | None, gpus: float | None, cpus: int | None
) -> Cluster | None:
    """What the flags say of Ray; None: nothing. InputError: flags that do not go together, or impossible numbers."""
    given = {"--address": address, "--gpus-per-trial": gpus, "--cpus-per-trial": cpus}
    if not is_ray:
        for flag, value in given.items():
            if value is not None:
                raise InputError(f"{flag}: is for Ray, got {value}; add --engine ray")
        return None
    if jobs is not None:
        raise InputError(
            "--jobs: Ray runs as many trials at a time as its hosts hold; leave it out, or leave out --engine"
        )
    if gpus is not None and gpus != 0 and not LEAST_GPUS <= gpus <= 1:  # nan, too
        raise InputError(
            f"--gpus-per-trial: must be 0, or from {LEAST_GPUS} to 1, for a trial uses one GPU at the most, "
            f"got {gpus:g}; use 0.5 or 1"
        )
    return Cluster(address, gpus, cpus or 1)
