"""Processes of our own keep the memory that a training step frees, and nothing else that is started does."""

import os
import platform
import resource
import sys
from contextlib import closing, suppress
from multiprocessing.forkserver import _forkserver
from pathlib import Path

import pytest
import torch

from bench.processes import MALLOC, _malloc_tuned, start_process

glibc_only = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ,
    reason="glibc's malloc with settings of its own",
)


def count_faults(num_steps=20):
    """Pages that the system had to hand out while 64 MB were taken, written and freed again and again."""
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_steps):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def send_faults(link):
    link.send((count_faults(), os.environ.get("GLIBC_TUNABLES")))


def wait_for_the_end(link):
    with suppress(EOFError):
        link.recv()


@glibc_only
def test_a_process_keeps_the_memory_of_freed_tensors_where_one_without_its_settings_faults_it_in_anew():
    process, link = start_process("worker", send_faults)
    with closing(link):
        kept, tunables = link.recv()
    process.join()
    assert tunables is None, "programs that a worker starts would inherit them"
    assert kept < count_faults() / 20


@glibc_only
def test_the_server_that_forks_has_the_settings_and_the_driver_has_not():
    process, link = start_process("worker", wait_for_the_end)
    link.close()
    process.join()
    loaded = Path(f"/proc/{_forkserver._forkserver_pid}/environ").read_bytes()
    assert f"GLIBC_TUNABLES={MALLOC}".encode() in loaded.replace(b"\0", b":")  # glibc cuts it up where it stands
    assert "GLIBC_TUNABLES" not in os.environ


def test_settings_of_the_users_own_stand(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    with _malloc_tuned():
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
