"""Small questions about a GPU, answered before the large ones: are the clocks right, does each habit pay.

In:  a CUDA device.   Out: per question the contenders' figures, and a line that says it.
Knows nothing of files.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import optim

from catseg.device import autocast, read_clock
from catseg.inference import to_input
from catseg.optimizer import list_views
from tests.benchmarks.rounds import MEASURED, Make, measure_setting
from tests.benchmarks.setting import Setting, Work, make_batch, make_start, make_tutorial, train_step
from tests.benchmarks.tutorial import compute_dice_loss

CLOCK_TOLERANCE = 0.05
USUAL, SMALL = Setting("train", 32, 256, 32, "bfloat16"), Setting("train", 16, 128, 8, "bfloat16")


def make_layout(setting: Setting, name: str, device: torch.device) -> Work:
    """A step of the tutorial's network, whose layers leave the layout as it is, in bfloat16."""
    layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
    model = make_tutorial(setting).to(device, memory_format=layout)
    photo_BSS3, mask_BSS = make_batch(setting, device)
    photo_B3SS, mask_B1SS = to_input(photo_BSS3, device).contiguous(memory_format=layout), mask_BSS.unsqueeze(1).float()

    def step() -> torch.Tensor:
        model.zero_grad()
        with autocast(device, torch.bfloat16):
            probability_B1SS = model(photo_B3SS)
        loss = compute_dice_loss(probability_B1SS.float(), mask_B1SS)
        loss.backward()
        return loss.detach()

    return step


def make_optimizer(setting: Setting, name: str, device: torch.device) -> Work:
    """Our eager step with AdamW in one kernel, or in a few for all parameters."""
    training, (photo_BSS3, mask_BSS) = make_start(setting, device), make_batch(setting, device)
    parameters = list_views(training.optimizer)
    training.optimizer = optim.AdamW(parameters, 1e-3, fused=name == "fused", foreach=name == "foreach")
    training.schedule = optim.lr_scheduler.ConstantLR(training.optimizer, factor=1.0)
    return lambda: train_step(training, photo_BSS3, mask_BSS)


def make_algorithms(setting: Setting, name: str, device: torch.device) -> Work:
    """Our eager step with cuDNN's search for the fastest algorithm, or its guess."""
    training, (photo_BSS3, mask_BSS) = make_start(setting, device), make_batch(setting, device)

    def step() -> torch.Tensor:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = name == "searched"
        try:
            return train_step(training, photo_BSS3, mask_BSS)
        finally:
            torch.backends.cudnn.benchmark = before

    return step


QUESTIONS: dict[str, tuple[Setting, tuple[str, str], Make]] = {
    "layout": (USUAL, ("channels_last", "contiguous"), make_layout),
    "optimizer": (SMALL, ("fused", "foreach"), make_optimizer),
    "algorithms": (USUAL, ("searched", "guessed"), make_algorithms),
}


def measure_pair(question: str, device: torch.device) -> dict[str, dict[str, Any]]:
    setting, names, make = QUESTIONS[question]
    return measure_setting(setting, names, device, make)


def format_pair(question: str, results: dict[str, dict[str, Any]]) -> str:
    """`optimizer: fused 1.10 ms, foreach 1.32 ms, 1.20 times (train f=16 ...)`: what the first saves."""
    setting, (ours, other), _ = QUESTIONS[question]
    if not all(result["status"] == MEASURED for result in results.values()):
        return f"{question}: " + ", ".join(f"{name} {result['status']}" for name, result in results.items())
    seconds, other_seconds = results[ours]["seconds"], results[other]["seconds"]
    ratio = f"{other_seconds / seconds:.2f} times"
    return f"{question}: {ours} {seconds * 1e3:.3f} ms, {other} {other_seconds * 1e3:.3f} ms, {ratio} ({setting})"


def measure_clock_ratio(device: torch.device) -> float:
    """Seconds by `read_clock` over seconds by the GPU's events, for the same matrix products; the median of ten."""
    return statistics.median(_time_both(device))


def _time_both(device: torch.device) -> Iterator[float]:
    matrix = torch.randn(4096, 4096, device=device) / 64
    for number in range(11):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = read_clock(device)
        begin.record()
        for _ in range(20):
            torch.mm(matrix, matrix)
        end.record()
        seconds = read_clock(device) - start
        if number:  # the first loads cuBLAS
            yield seconds / (begin.elapsed_time(end) / 1000)


def format_clock_ratio(ratio: float) -> str:
    verdict = "agree" if abs(ratio - 1) <= CLOCK_TOLERANCE else "DISAGREE"
    return (
        f"clocks: the host's, synchronised, and the GPU's events {verdict}: {ratio:.4f} (within {CLOCK_TOLERANCE:.0%})"
    )
