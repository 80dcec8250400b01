"""How fast each file of a model is, in its own runtime, beside the network run as a first script runs it.

In:  networks, fitted photos.   Out: speeds, the words of latency.json.
Knows nothing of folders, masks or scores.      (N photos, S side in pixels)
"""

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from catseg.inference import Predictor, compute_logits
from catseg.photo import UInt8
from catseg.unet import UNet

PLAIN = "plain"  # the name of what the others are measured beside
BATCH_SIZE = 8  # of what is called throughput
ROUNDS = 9  # after one to warm up


@dataclass(frozen=True)
class Speed:
    """From fitted photos in RAM to logits; medians over the rounds, and the latency's least and greatest."""

    latency_ms: float  # of one photo
    least_ms: float
    greatest_ms: float
    photos_per_second: float  # in batches of BATCH_SIZE


class _Plain(nn.Module):
    def __init__(self, model: UNet) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]

    def forward(self, photo_B3SS: torch.Tensor) -> torch.Tensor:
        logits_BKSS: torch.Tensor = self.model(photo_B3SS.contiguous())
        return logits_BKSS


def make_plain(model: UNet) -> Predictor:
    """The network as a tutorial predicts with it: float32, batch norms as layers, contiguous memory."""
    return Predictor(_Plain(model), torch.float32, torch.device("cpu"))


def measure_speeds(predictors: Mapping[str, Predictor], photo_NSS3: UInt8) -> dict[str, Speed]:
    """All of them in turn, each first equally often: what else the machine does strikes all alike."""
    photo_BSS3 = torch.tensor(photo_NSS3[np.arange(BATCH_SIZE) % len(photo_NSS3)])
    names = list(predictors)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(ROUNDS + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            pair = (_time(predictors[name], photo_BSS3[:1]), _time(predictors[name], photo_BSS3))
            if number:
                seconds[name].append(pair)
    return {name: _summarise(pairs) for name, pairs in seconds.items()}


def _time(predictor: Predictor, photo_BSS3: torch.Tensor) -> float:
    start = time.perf_counter()
    compute_logits(predictor, photo_BSS3)
    return time.perf_counter() - start


def _summarise(pairs: list[tuple[float, float]]) -> Speed:
    alone_ms = [1000 * alone for alone, _ in pairs]
    batch_seconds = statistics.median(batch for _, batch in pairs)
    return Speed(statistics.median(alone_ms), min(alone_ms), max(alone_ms), BATCH_SIZE / batch_seconds)


def is_noisy(speeds: Mapping[str, Speed]) -> bool:
    """Whether something else had the machine: a round that took twice the median."""
    return any(
        speed.greatest_ms > 2 * speed.latency_ms or speed.latency_ms > 2 * speed.least_ms for speed in speeds.values()
    )


def format_speeds(speeds: Mapping[str, Speed], environment: dict[str, str]) -> dict[str, Any]:
    """What latency.json says."""
    plain = speeds[PLAIN]
    return {
        "what": f"from fitted photos in RAM to logits, all in turn, medians of {ROUNDS} rounds; photos a second in "
        f"batches of {BATCH_SIZE}; {PLAIN}: float32, batch norms as layers, contiguous, as a first script predicts",
        "environment": environment,
        "machine_was_busy": is_noisy(speeds),
        "speeds": {
            name: {
                "milliseconds": round(speed.latency_ms, 3),
                "least_milliseconds": round(speed.least_ms, 3),
                "greatest_milliseconds": round(speed.greatest_ms, 3),
                "photos_per_second": round(speed.photos_per_second, 2),
                "times_as_fast_as_plain": round(plain.latency_ms / speed.latency_ms, 2),
            }
            for name, speed in speeds.items()
        },
    }
