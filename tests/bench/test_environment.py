"""The machine's fingerprint and torch's version, read without waiting for torch, are what torch itself would say."""

import hashlib
import os
import platform

import pytest
import torch

from bench import environment
from bench.environment import CODE_HASH, describe_environment, find_device_type, read_torch_version
from catseg.device import choose_device, name_gpu


def test_the_version_is_the_one_that_torch_says_of_itself():
    assert read_torch_version() == torch.__version__


def test_the_fingerprint_of_a_machine_is_the_hash_of_what_it_always_was():
    device = choose_device("auto")
    told = describe_environment(name_gpu(device), torch.get_num_threads())
    machine = {
        "cpu": told["cpu"],
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    fingerprint = hashlib.sha256(repr(sorted(machine.items())).encode()).hexdigest()[:12]
    assert told["machine_fingerprint"] == fingerprint
    assert told.items() >= (machine | {"code": CODE_HASH}).items()


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_kind_of_device_is_the_one_that_torch_would_choose(name):
    assert find_device_type(name) == choose_device(name).type


@pytest.mark.parametrize("library", ["cuda", "hip"])
def test_a_torch_that_is_built_for_gpus_is_asked_whether_there_is_one(monkeypatch, library):
    monkeypatch.setattr(environment, "_read_torch_build", lambda: {library: "13.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert (find_device_type("auto"), find_device_type("cpu")) == ("cuda", "cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name, refusal):
    assert name in refusal(find_device_type, name)
