"""The choice of device and precision, the clock, and the memory that was used."""

import gc
import itertools
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from catseg.device import (
    PRECISIONS,
    autocast,
    choose_device,
    choose_precision,
    measure_peak_mib,
    read_clock,
    release_memory,
    reset_peak_memory,
)

CPU = torch.device("cpu")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda"


def test_cpu_is_had_by_name():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["", "tpu", "gpu", "cuda:x", "cuda:-1", "meta"])
def test_unknown_device_is_refused_with_the_known_ones(refusal, name):
    line = refusal(choose_device, name)
    assert line.startswith("--device: ") and repr(name) in line and "use auto, cpu, cuda" in line


@pytest.mark.parametrize(("name", "num_gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:7", 2)])
def test_gpu_that_is_not_there_is_refused(monkeypatch, refusal, name, num_gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    line = refusal(choose_device, name)
    assert name in line and f"{num_gpus} GPUs" in line


@pytest.mark.parametrize(("name", "dtype"), PRECISIONS.items())
def test_named_precision_is_taken_at_its_word(name, dtype):
    assert choose_precision(name, CPU) is dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_cpu_computes_in_bfloat16_only_where_it_multiplies_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) is dtype


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_old_gpus_compute_in_float16_and_newer_ones_in_bfloat16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) is dtype


@pytest.mark.parametrize("dtype", PRECISIONS.values())
def test_autocast_multiplies_in_the_precision_asked_for(dtype):
    with autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


def test_clock_never_runs_backwards():
    times = [read_clock(CPU) for _ in range(100)]
    assert all(earlier <= later for earlier, later in itertools.pairwise(times))
    assert times[-1] > times[0]


@pytest.fixture
def resettable_memory():
    """Some sandboxes forbid it: the peak is then that of the whole process, and says nothing of one test."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its peak memory")


@pytest.mark.usefixtures("resettable_memory")
def test_peak_memory_holds_what_was_allocated_in_mib():
    reset_peak_memory(CPU)
    before = measure_peak_mib(CPU)
    np.ones(300 * 2**20, np.uint8).sum()
    assert 250 < measure_peak_mib(CPU) - before < 400


@pytest.mark.usefixtures("resettable_memory")
def test_peak_memory_is_forgotten_at_the_reset():
    np.ones(300 * 2**20, np.uint8).sum()
    before = measure_peak_mib(CPU)
    reset_peak_memory(CPU)
    assert before - measure_peak_mib(CPU) > 250


def test_what_only_refers_to_itself_is_released():
    kept = [torch.zeros(1)]
    kept.append(kept)
    gone = weakref.ref(kept[0])
    gc.disable()
    try:
        del kept
        assert gone() is not None
        release_memory(CPU)
    finally:
        gc.enable()
    assert gone() is None
