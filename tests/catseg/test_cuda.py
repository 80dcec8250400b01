"""What only a GPU can show; skipped without one."""

import numpy as np
import pytest
import torch

from catseg.augment import augment, draw_changes
from catseg.checkpoint import dump_training, load_training
from catseg.device import measure_peak_mib, reset_peak_memory
from catseg.growth import Sized, shrink
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import Epoch, advance, make_training, train_step
from catseg.unet import make_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

GPU = torch.device("cuda:0")


@pytest.mark.parametrize("augment", ["none", "light"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_training_stopped_in_the_middle_of_an_epoch_goes_on_from_the_same_state(make_set, precision, augment):
    """Sums on a GPU may differ in the last place from one run to the next: the state is compared, then it goes on."""
    config = TrainConfig(image_size=32, epochs=2, batch_size=2, precision=precision, augment=augment)
    train_set, val_set = make_set(5), make_set(3)
    training = make_training(make_unet(UNetConfig(4), 0), config, 5, GPU)
    for number, _ in enumerate(advance(training, train_set, val_set), 1):
        training.stopping = number == 8  # an epoch of 3 steps, 2 batches validated and its end; then 2 steps
    assert (training.epoch, len(training.losses)) == (1, 2)
    data = dump_training(training)
    again = make_training(make_unet(UNetConfig(4), 1), config, 5, GPU)
    load_training(data, again)
    assert dump_training(again) == data
    assert {value.device for value in again.model.state_dict().values()} == {GPU}
    (epoch,) = [event for event in advance(again, train_set, val_set) if isinstance(event, Epoch)]
    assert (epoch.number, again.best is not None) == (2, True)


def test_photos_are_augmented_as_on_a_cpu_and_the_host_waits_for_nothing(make_set):
    """But for the last place: where a pixel lies between two others, either label may be the nearest."""
    photos = make_set(6)
    placed = torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS), draw_changes(0, 1, photos.used_N2)
    photo, mask = augment(*placed, torch.device("cpu"))
    on_gpu = [tensor.to(GPU) for tensor in placed]
    augment(*on_gpu, GPU)  # kernels are loaded, memory is had
    torch.cuda.set_sync_debug_mode("error")
    try:
        photo_gpu, mask_gpu = augment(*on_gpu, GPU)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(photo_gpu.cpu(), photo, atol=1e-3)
    assert (mask_gpu.cpu() != mask).float().mean() < 0.001


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9, "clip_norm": 1.0, "deep_supervision": True, "decay_norms": False},
        {"optimizer": "rmsprop", "momentum": 0.9, "schedule": "plateau"},
    ],
    ids=str,
)
def test_the_host_waits_for_no_step(make_set, settings):
    photos = make_set(4)
    config = TrainConfig(image_size=32, batch_size=4, precision="float32", **settings)
    training = make_training(make_unet(UNetConfig(4), 0), config, 4, GPU)
    batch = torch.tensor(photos.photo_NSS3).to(GPU), torch.tensor(photos.mask_NSS).to(GPU)
    for _ in range(2):  # kernels are loaded, averages are there
        train_step(training, *batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(training, *batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_photos_are_made_smaller_as_on_a_cpu(make_set):
    photos = make_set(4, 64)
    full = Sized(torch.tensor(photos.photo_NSS3), torch.tensor(photos.mask_NSS), photos.used_N2)
    there = shrink(Sized(full.photo_NSS3.to(GPU), full.mask_NSS.to(GPU), full.used_N2), 48)
    here = shrink(full, 48)
    assert (there.photo_NSS3.cpu().int() - here.photo_NSS3.int()).abs().max() <= 1
    assert torch.equal(there.mask_NSS.cpu(), here.mask_NSS)


def test_peak_memory_of_a_gpu_named_by_its_number_can_be_asked_for_first():
    reset_peak_memory(GPU)
    kept = torch.ones(2**20, device=GPU)
    assert measure_peak_mib(GPU) >= 4
    assert kept.sum() == 2**20
