"""How fast forward, training step and inference are on this machine: `pytest --benchmark-only`.

Numbers are of this machine and this moment: compare ratios within one run. `extra_info` holds
photos per second (of the median) and peak memory. Runs where only torch, numpy, Pillow and
pytest-benchmark are installed.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tutorial import TutorialUNet
from tutorial import train_step as tutorial_train_step

from catseg.augment import augment, draw_changes
from catseg.device import (
    autocast,
    choose_device,
    choose_precision,
    measure_peak_mib,
    read_clock,
    reset_peak_memory,
)
from catseg.inference import to_input
from catseg.losses import compute_loss
from catseg.metrics import choose_labels
from catseg.unet import UNetConfig, compute_forward_gflop, make_unet

BATCH, ROUNDS, WARMUP_ROUNDS = 8, 10, 3

over_settings = pytest.mark.parametrize(("init_features", "image_size"), [(8, 96), (8, 128), (16, 96), (16, 128)])


@pytest.fixture(scope="module")
def device() -> torch.device:
    return choose_device("auto")


def measure(benchmark, device: torch.device, work: Callable[[], object], gflop_per_photo: float) -> None:
    """Time `work` on one batch, the device waited for, warm-up apart; add what the table cannot say."""

    def work_and_wait() -> None:
        work()
        read_clock(device)

    reset_peak_memory(device)
    benchmark.pedantic(work_and_wait, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)
    benchmark.extra_info |= {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": BATCH,
        "peak_mib": round(measure_peak_mib(device)),
    }
    if benchmark.stats:  # none under --benchmark-disable
        photos_per_second = BATCH / benchmark.stats.stats.median
        benchmark.extra_info["photos_per_second"] = round(photos_per_second, 1)
        benchmark.extra_info["gflop_per_second"] = round(photos_per_second * gflop_per_photo, 1)


def make_batch(image_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 photos and masks as training has them on the device."""
    generator = torch.Generator().manual_seed(0)
    photo_BSS3 = torch.randint(0, 256, (BATCH, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    mask_BSS = (photo_BSS3[..., 0] > 127).to(torch.uint8)
    return photo_BSS3.to(device), mask_BSS.to(device)


@over_settings
def test_forward(benchmark, device, init_features, image_size):
    benchmark.group = f"forward, {init_features} features, {image_size} px"
    dtype = choose_precision("auto", device)
    model = make_unet(UNetConfig(init_features), seed=0).to(device)
    photo_B3SS = to_input(make_batch(image_size, device)[0], device)

    def work() -> None:
        with autocast(device, dtype):
            model(photo_B3SS)

    measure(benchmark, device, work, compute_forward_gflop(init_features, image_size))


@over_settings
def test_train_step(benchmark, device, init_features, image_size):
    benchmark.group = f"train step, {init_features} features, {image_size} px"
    dtype = choose_precision("auto", device)
    model = make_unet(UNetConfig(init_features), seed=0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    photo_BSS3, mask_BSS = make_batch(image_size, device)

    def work() -> None:
        with autocast(device, dtype):
            logits_B1SS = model(to_input(photo_BSS3, device))
        loss = compute_loss("bce_dice", logits_B1SS, mask_BSS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    measure(benchmark, device, work, 3 * compute_forward_gflop(init_features, image_size))


@over_settings
def test_augment(benchmark, device, init_features, image_size):
    """What `augment: light` adds to a training step: the width is of no account, but a line beside the step's."""
    pytest.importorskip("kornia")
    benchmark.group = f"train step, {init_features} features, {image_size} px"
    photo_BSS3, mask_BSS = make_batch(image_size, device)
    changes_B10 = draw_changes(0, 1, np.full((BATCH, 2), image_size)).to(device)
    measure(benchmark, device, lambda: augment(photo_BSS3, mask_BSS, changes_B10, device), 0)


@over_settings
def test_train_step_of_the_tutorial(benchmark, device, init_features, image_size):
    benchmark.group = f"train step, {init_features} features, {image_size} px"
    model = TutorialUNet(init_features).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    photo_BSS3, mask_BSS = make_batch(image_size, device)
    photo_B3SS = to_input(photo_BSS3, device).contiguous()
    mask_B1SS = mask_BSS.unsqueeze(1).float()

    def work() -> None:
        tutorial_train_step(model, optimizer, photo_B3SS, mask_B1SS)

    measure(benchmark, device, work, 3 * compute_forward_gflop(init_features, image_size))


@over_settings
def test_inference(benchmark, device, init_features, image_size):
    benchmark.group = f"inference, {init_features} features, {image_size} px"
    dtype = choose_precision("auto", device)
    model = make_unet(UNetConfig(init_features), seed=0).to(device).eval()
    photo_BSS3, _ = make_batch(image_size, device)

    def work() -> None:
        with torch.inference_mode(), autocast(device, dtype):
            choose_labels(model(to_input(photo_BSS3, device))).cpu()

    measure(benchmark, device, work, compute_forward_gflop(init_features, image_size))
