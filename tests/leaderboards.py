"""Results made by hand, and the leaderboards they give."""

import dataclasses

import numpy as np

from bench.compare import make_leaderboard
from bench.trial import Trial, TrialResult
from catseg.settings import TrainConfig, UNetConfig

HERE = {"cpu": "Example CPU", "gpu": "none", "threads": "2", "torch": "2.13.0", "machine_fingerprint": "here"}
THERE = HERE | {"cpu": "Other CPU", "machine_fingerprint": "there"}
NUM_PHOTOS = 40


def finish(miou=0.5, seed=0, seconds=10.0, environment=HERE, **settings):
    trial = Trial(UNetConfig(settings.pop("init_features", 8)), TrainConfig(seed=seed, **settings), ())
    metrics = {"val/miou": miou, "val/miou_per_photo": miou - 0.1, "cost/train_seconds": seconds}
    metrics |= {"cost/photos_per_second": 1000 / seconds, "cost/peak_mib": 456.7}
    key = f"{trial.settings}"
    return TrialResult(key, trial.name, trial.settings, "finished", metrics, 2, None, "", environment)


def fail(seed=0, **settings):
    result = finish(seed=seed, **settings)
    return dataclasses.replace(result, status="failed", metrics={}, failure="nonfinite", reason="train/loss is nan")


def make_counts(results, spread=0.0):
    """Photos of 1000 pixels whose IoU is the result's, and more or less by `spread`, in the same photos for all."""
    by_photo_N = np.linspace(-spread, spread, NUM_PHOTOS)
    counts = {}
    for result in results:
        if result.status == "finished":
            hit_N = np.round(1000 * np.clip(result.metrics["val/miou"] + by_photo_N, 0, 1)).astype(np.int64)
            counts[result.key] = np.stack([hit_N, 1000 - hit_N, np.zeros_like(hit_N)], -1)[:, None]
    return counts


def make_board(results, spread=0.1):
    return make_leaderboard(results, make_counts(results, spread))
