"""The script that times a GPU: what it writes, that it goes on, what it does when memory is short.

On the CPU with a tiny network; what needs a GPU is tried where there is one.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks import gpu, rounds, setting
from tests.benchmarks.ceiling import Ceiling
from tests.benchmarks.report import (
    add_setting,
    format_document,
    format_entry,
    list_missing,
    load_document,
    save_document,
    set_machine,
)
from tests.benchmarks.rounds import is_out_of_memory, measure_setting
from tests.benchmarks.setting import CONTENDERS, Setting, allows_tf32, list_contenders, list_settings, make_work

CPU = torch.device("cpu")
TINY = Setting("train", 2, 32, 2, "float32")
LATENCY = Setting("inference", 2, 32, 1, "bfloat16")
PEAKS = {"matmul_gflop_per_second": 800e3, "convolution_gflop_per_second": 700e3, "copy_gb_per_second": 4300.0}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(rounds, "BLOCK_SECONDS", 0.001)
    monkeypatch.setattr(rounds, "MAX_ROUNDS", 3)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "OUT.json"


def start_document(out: Path) -> dict:
    """With this machine and made-up ceilings, so that no test waits for them."""
    document = load_document(out)
    set_machine(document, gpu.describe_machine(CPU), out)
    document["ceilings"] = {precision: dict(PEAKS) for precision in ("bfloat16", "tf32", "float32")}
    return document


def plan(*settings: Setting) -> dict[Setting, list[str]]:
    return {one: list(list_contenders(one, CPU)) for one in settings}


def fake(seconds: float, **others) -> dict:
    return (
        {"status": "measured", "seconds": seconds, "event_seconds": [], "value": 0.5, "peak_mib": 1.0}
        | {"alone": False}
        | others
    )


def test_every_contender_of_a_setting_is_in_the_file_with_raw_values(out):
    gpu.measure_all(start_document(out), out, CPU, plan(TINY, LATENCY), time.monotonic() + 600)
    document = json.loads(out.read_text())
    assert [Setting(**entry["setting"]) for entry in document["settings"]] == [TINY, LATENCY]
    assert {"gpu", "torch", "cuda", "cudnn", "driver", "date", "code"} <= document["machine"].keys()
    for entry, names in zip(document["settings"], plan(TINY, LATENCY).values(), strict=True):
        assert list(entry["contenders"]) == names
        assert entry["roofline_seconds"] > 0
        for result in entry["contenders"].values():
            assert result["status"] == "measured"
            assert len(result["host_seconds"]) == 3
            assert result["seconds"] == sorted(result["host_seconds"])[1] > 0
            assert result["event_seconds"] == []  # no GPU, no events
    assert document["settings"][0]["gflop"] == pytest.approx(6 * document["settings"][1]["gflop"])


def test_what_is_in_the_file_is_not_timed_again(out, monkeypatch):
    document = start_document(out)
    add_setting(document, TINY, {"eager": fake(1.0)})
    save_document(document, out)
    timed = []
    monkeypatch.setattr(gpu, "measure_setting", lambda one, names, device: timed.append(one) or {"eager": fake(2.0)})
    gpu.measure_all(load_document(out), out, CPU, plan(TINY, LATENCY), time.monotonic() + 600)
    assert timed == [LATENCY]
    assert [entry["contenders"]["eager"]["seconds"] for entry in load_document(out)["settings"]] == [1.0, 2.0]


def test_no_setting_is_started_after_the_time_is_over(out, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "measure_setting", lambda *_: pytest.fail("was started"))
    gpu.measure_all(start_document(out), out, CPU, plan(TINY), time.monotonic() - 1)
    assert "0 of 1 settings are done" in capsys.readouterr().out


def test_what_failed_is_tried_again_after_all_others(out):
    document = start_document(out)
    add_setting(document, TINY, {"eager": {"status": "failed", "reason": "", "alone": False}})
    add_setting(document, LATENCY, {"eager": {"status": "out of memory", "reason": "", "alone": False}})
    new = replace(TINY, batch_size=4)
    assert list_missing(document, [TINY, LATENCY, new]) == [new, TINY]


def make_oom(calls_before: dict[str, int], alive: list[str], room_for: int):
    """A `make_work` of a device with room for so many contenders, or whose calls fail after some."""

    def make(one: Setting, name: str, device: torch.device):
        if len(alive) >= room_for:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more")
        alive.append(name)
        token = SimpleNamespace()
        left = [calls_before.get(name, 10**9)]

        def work() -> torch.Tensor:
            assert token
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return torch.ones(())

        return work

    return make


def test_a_contender_without_memory_beside_the_others_is_timed_alone(monkeypatch):
    alive: list[str] = []
    monkeypatch.setattr(rounds, "release_all", lambda device: alive.clear())
    results = measure_setting(TINY, ["eager", "graphed"], CPU, make_oom({}, alive, room_for=1))
    assert [(result["status"], result["alone"]) for result in results.values()] == [
        ("measured", False),
        ("measured", True),
    ]


def test_a_contender_without_memory_even_alone_is_recorded_as_such_and_the_others_go_on(out):
    make = make_oom({"graphed": 2}, [], room_for=9)
    results = measure_setting(TINY, ["graphed", "eager"], CPU, make)
    assert results["eager"]["status"] == "measured"
    assert results["graphed"]["status"] == "out of memory"
    assert results["graphed"]["reason"].startswith("OutOfMemoryError: CUDA out of memory")
    document = start_document(out)
    entry = add_setting(document, TINY, results)
    assert "out of memory" in format_entry(entry, Ceiling(**PEAKS))[-1]


def test_memory_that_ends_in_the_middle_of_the_rounds_stops_one_contender_only():
    results = measure_setting(TINY, ["graphed", "eager"], CPU, make_oom({"graphed": 4}, [], room_for=9))
    assert {name: result["status"] for name, result in results.items()} == {
        "graphed": "out of memory",
        "eager": "measured",
    }


def test_any_other_failure_of_a_contender_is_kept_with_its_reason():
    def make(one: Setting, name: str, device: torch.device):
        if name == "compiled":
            raise RuntimeError("no compiler\nhere")
        return lambda: torch.ones(())

    results = measure_setting(TINY, ["compiled", "eager"], CPU, make)
    assert (results["compiled"]["status"], results["compiled"]["reason"]) == ("failed", "RuntimeError: no compiler")
    assert results["eager"]["status"] == "measured"


def test_memory_is_recognised_within_an_error_of_a_compiler_or_of_a_library():
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    except RuntimeError as error:
        assert is_out_of_memory(error)
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("an illegal memory access was encountered"))


def test_after_ctrl_c_what_is_done_stays(out, monkeypatch, capsys):
    def measure(one: Setting, names, device):
        if one == LATENCY:
            raise KeyboardInterrupt
        return {name: fake(1.0) for name in names}

    monkeypatch.setattr(gpu, "measure_setting", measure)
    document = start_document(out)
    assert gpu.measure_until_stopped(document, out, CPU, plan(TINY, LATENCY), time.monotonic() + 600) == 130
    assert "what is done stays" in capsys.readouterr().err
    assert [Setting(**entry["setting"]) for entry in load_document(out)["settings"]] == [TINY]


def test_a_gpu_that_is_lost_ends_the_run_and_the_next_one_begins_behind_that_setting(out, monkeypatch, capsys):
    def measure(one: Setting, names, device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nhelp")

    monkeypatch.setattr(gpu, "measure_setting", measure)
    document = start_document(out)
    assert gpu.measure_until_stopped(document, out, CPU, plan(TINY, LATENCY), time.monotonic() + 600) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list_missing(load_document(out), [TINY, LATENCY]) == [LATENCY, TINY]


def test_figures_of_another_machine_are_not_put_into_the_same_file(out, refusal):
    document = start_document(out)
    other = document["machine"] | {"gpu": "NVIDIA H200"}
    assert "figures of another gpu (none, now NVIDIA H200)" in refusal(set_machine, document, other, out)
    set_machine(document, document["machine"] | {"date": "tomorrow"}, out)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds something else"),
        ("[]", "holds something else"),
        ('{"format": "x"}', "its format is 'x'"),
        ('{"format": "catseg-gpu-1", "machine": {}}', "without ceilings, checks, settings"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(out, refusal, content, words):
    out.write_text(content)
    assert words in refusal(load_document, out)
    assert out.read_text() == content


def test_a_path_that_cannot_be_written_is_one_line(tmp_path, refusal):
    assert "no folder" in refusal(load_document, tmp_path / "absent/OUT.json")
    assert "cannot be read" in refusal(load_document, tmp_path)
    assert "cannot be written" in refusal(save_document, {}, tmp_path)


def test_the_most_telling_settings_come_first_and_none_twice():
    settings = list_settings()
    assert settings[0] == Setting("train", 32, 256, 32, "bfloat16")
    assert len(settings) == len(set(settings)) == 2 * 3 * 3 * 3 * 3
    assert set(settings[1:6]) == {
        replace(settings[0], precision="tf32"),
        replace(settings[0], batch_size=8),
        replace(settings[0], image_size=128),
        replace(settings[0], init_features=16),
        replace(settings[0], task="inference"),
    }


def test_contenders_can_be_chosen_by_name(refusal):
    chosen = gpu.make_plan("eager,tutorial_float32", torch.device("cuda"))
    assert {tuple(names) for names in chosen.values()} == {("eager",), ("eager", "tutorial_float32")}
    assert all(one.precision == "float32" for one in gpu.make_plan("tutorial_float32", CPU))
    assert "'eagre' is none of" in refusal(gpu.make_plan, "eagre", CPU)


def test_all_contenders_run_on_cuda_and_the_strict_tutorial_where_we_are_strict():
    assert list_contenders(TINY, torch.device("cuda")) == CONTENDERS
    assert "tutorial_float32" not in list_contenders(LATENCY, torch.device("cuda"))


def test_tf32_is_forbidden_where_float32_is_asked_for_and_given_to_the_tutorial():
    assert [allows_tf32(TINY, name) for name in ("eager", "tutorial", "tutorial_float32")] == [False, True, False]
    assert allows_tf32(replace(TINY, precision="tf32"), "compiled")


def test_tf32_is_set_for_products_and_convolutions_and_restored():
    def read():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = read()
    for allowed in (True, False):
        with setting.set_tf32(allowed):
            assert read() == (allowed, allowed)
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == allowed
    assert read() == before


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_step_that_is_captured_is_the_eager_one(monkeypatch, precision):
    """The recording itself wants a GPU: here its stand-in calls the step again and fills the same result."""

    def capture(work, device):
        for _ in range(3):
            kept = work()

        def replay() -> None:
            result = work()
            with torch.inference_mode(kept.is_inference()):
                kept.copy_(result)

        return SimpleNamespace(replay=replay), kept

    monkeypatch.setattr(setting, "capture", capture)
    one = replace(TINY, precision=precision)
    eager, graphed = (make_work(one, name, CPU) for name in ("eager", "graphed"))
    losses = [float(eager()) for _ in range(8)]
    assert [float(graphed()) for _ in range(5)] == pytest.approx(losses[3:], rel=1e-4)
    assert losses[7] < losses[0]
    labelling = replace(one, task="inference")
    assert make_work(labelling, "graphed", CPU)().equal(make_work(labelling, "eager", CPU)())


def test_the_learning_rate_that_a_graph_reads_follows_the_schedule():
    training = setting.make_start(TINY, CPU)
    setting.make_capturable(training.optimizer, CPU)
    (lr,) = [group["lr"] for group in training.optimizer.param_groups]
    before = lr.clone()
    training.optimizer.step()
    for _ in range(1000):
        training.schedule.step()
    assert training.optimizer.param_groups[0]["lr"] is lr
    assert lr > before


def test_the_table_is_narrow_ordered_and_compares_with_the_tutorials_best(out):
    document = start_document(out)
    usual = Setting("train", 32, 256, 32, "bfloat16")
    contenders = {
        "eager": fake(0.010, event_seconds=[0.0099], peak_mib=123456.7),
        "compiled_graphed": fake(0.005, value=0.7),
        "graphed": fake(0.008, alone=True),
        "tutorial": fake(0.040, value=0.9),
        "tutorial_compiled": fake(0.020),
    }
    entry = add_setting(document, usual, contenders | {"compiled": rounds.describe_failure(ValueError("x" * 500))})
    lines = format_document(document)
    assert max(map(len, lines)) <= 120
    rows = [line.split() for line in format_entry(entry, Ceiling(**PEAKS))[2:]]
    assert [row[0] for row in rows[:3]] == ["compiled_graphed", "graphed", "eager"]
    assert [row[8] for row in rows[:5]] == ["4.00", "2.50", "2.00", "1.00", "0.50"]
    assert (rows[0][-1], rows[1][-1], rows[2][-1]) == ("DIFFERS", "alone", "2.00")
    assert rows[2][1:5] == ["10.000", "9.900", "3200.0", "123457"]
    assert float(rows[2][6].rstrip("%")) == pytest.approx(100 * entry["gflop"] / 0.010 / 800e3, abs=0.1)
    assert float(rows[2][7].rstrip("%")) == pytest.approx(100 * entry["roofline_seconds"] / 0.010, abs=0.1)
    assert rows[5][:2] == ["compiled", "failed:"]


WITHOUT_OTHERS = """
import runpy, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ImportError(f"{name} is not installed")

absent = sys.argv.pop().split(",")
sys.meta_path.insert(0, Wall())
runpy.run_module("tests.benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU here")
def test_without_a_gpu_it_says_so_in_one_line_where_only_torch_numpy_and_pillow_are_installed(out):
    absent = "safetensors,scipy,imagehash,contourpy,shapely,pooch,requests,mlflow,yaml,rich,typer,pytest,hypothesis"
    command = [sys.executable, "-c", WITHOUT_OTHERS, str(out), absent]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (2, "", gpu.NO_GPU + "\n")
    assert not out.exists()


@needs_gpu
@pytest.mark.filterwarnings("default")  # a compiler's remarks are no failure of ours
@pytest.mark.parametrize("one", [replace(TINY, init_features=8, precision="tf32"), replace(LATENCY, batch_size=4)])
def test_on_a_gpu_all_ways_compute_the_same(one):
    device = torch.device("cuda", 0)
    results = measure_setting(one, list_contenders(one, device), device)
    assert {name: result["status"] for name, result in results.items()} == dict.fromkeys(results, "measured")
    for name in ("graphed", "compiled", "compiled_graphed"):
        assert results[name]["value"] == pytest.approx(results["eager"]["value"], rel=0.02)
        assert len(results[name]["event_seconds"]) == len(results[name]["host_seconds"])


@needs_gpu
def test_on_a_gpu_a_setting_too_large_for_it_is_recorded_and_memory_is_free_again():
    device = torch.device("cuda", 0)
    before = torch.cuda.memory_allocated(device)
    results = measure_setting(Setting("train", 64, 2048, 64, "float32"), ["eager"], device)  # 68 GB a tensor
    assert results["eager"]["status"] == "out of memory"
    assert torch.cuda.memory_allocated(device) - before < 2**28  # libraries keep a workspace
    assert measure_setting(TINY, ["eager"], device)["eager"]["status"] == "measured"


@needs_gpu
def test_on_a_gpu_the_synchronised_clock_agrees_with_its_events():
    assert gpu.measure_clock_ratio(torch.device("cuda", 0)) == pytest.approx(1, abs=0.05)
