"""What a network says of photos: at their own sizes, in any batches, void left out, nothing changed by asking."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catseg.dataset import PhotoSet, read_pairs
from catseg.folder import Pair
from catseg.inference import (
    Predictor,
    compute_logits,
    evaluate,
    evaluate_batches,
    make_predictor,
    place,
    pool,
    predict_fitted,
    restore_labels,
    to_input,
)
from catseg.losses import LOSSES, compute_loss
from catseg.metrics import count_pixels
from catseg.photo import VOID, fit_mask, fit_photo
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import train
from catseg.unet import make_unet

CPU = torch.device("cpu")
LOSS = "bce_dice"


def test_input_is_between_zero_and_one_and_channels_come_first():
    photo_BSS3 = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    photo_BSS3[1, 2, 3] = torch.tensor([255, 51, 0])
    photo_B3SS = to_input(photo_BSS3, CPU)
    assert photo_B3SS.shape == (2, 3, 4, 4) and photo_B3SS.dtype == torch.float32
    np.testing.assert_allclose(photo_B3SS[1, :, 2, 3], [1, 0.2, 0])
    assert photo_B3SS.sum() == pytest.approx(1.2)
    assert photo_B3SS.is_contiguous(memory_format=torch.channels_last)


def test_photos_are_placed_as_bytes(make_set):
    photos = make_set(3)
    placed = place(photos, CPU)
    assert {placed.photo_NSS3.dtype, placed.mask_NSS.dtype, placed.native_masks[0].dtype} == {torch.uint8}
    np.testing.assert_array_equal(placed.photo_NSS3, photos.photo_NSS3)
    np.testing.assert_array_equal(placed.mask_NSS, photos.mask_NSS)
    for mask, expected in zip(placed.native_masks, photos.native_masks, strict=True):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_validation_does_not_depend_on_the_batch_size(make_set, precision):
    photos, model = make_set(7), make_unet(UNetConfig(4), seed=0)
    list(train(model, photos, photos, TrainConfig(lr=0.01, image_size=32, epochs=4, batch_size=4), CPU))
    results = [evaluate(model, photos, LOSS, batch_size, precision, CPU) for batch_size in (1, 2, 3, 7, 50)]
    assert results[0][1].sum() > 0
    for loss, counts in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-3 if precision == "auto" else 1e-5)
        np.testing.assert_array_equal(counts, results[0][1])


def make_brightness_model() -> torch.nn.Module:
    """Calls bright pixels cats and dark ones background: what it predicts is known."""
    model = torch.nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        model.weight.fill_(10.0)
        model.bias.fill_(-15.0)
    return model


def make_bright_set(sizes: list[tuple[int, int]], image_size: int) -> PhotoSet:
    """Photos of any sizes, white where their masks have a cat: the lower right quarter."""
    pairs = []
    for height, width in sizes:
        mask = np.zeros((height, width), np.uint8)
        mask[height // 2 :, width // 2 :] = 1
        photo = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        pairs.append(Pair(f"{height} x {width}", lambda photo=photo, mask=mask: (photo, mask)))
    return read_pairs(pairs, [image_size])[image_size]


def test_validation_counts_at_the_size_of_each_photo():
    sizes = [(64, 64), (64, 48), (33, 64), (64, 1)]
    photos = make_bright_set(sizes, 64)  # fitted without scaling: every pixel must agree
    _, counts = evaluate(make_brightness_model(), photos, LOSS, 4, "float32", CPU)
    expected = [[[np.count_nonzero(mask), 0, 0]] for mask in photos.native_masks]
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


@given(st.integers(20, 150), st.integers(20, 150), st.sampled_from([32, 64, 96]))
def test_logits_go_back_to_where_the_photo_was(height, width, image_size):
    """Scaled to any square and back, the cat lies where it lay, up to the width of the scaled-down pixels."""
    photos = make_bright_set([(height, width)], image_size)
    _, counts = evaluate(make_brightness_model(), photos, LOSS, 4, "float32", CPU)
    hits, false_alarms, misses = counts[0, 0]
    pixel = max(1.0, max(height, width) / image_size)  # of the scaled photo, in pixels of the photo
    assert false_alarms + misses <= pixel * (height + width) / 2 + 4
    assert hits > false_alarms + misses


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([32, 64]), st.integers(1, 3))
def test_restored_labels_have_the_photos_size_and_no_new_class(height, width, image_size, num_classes):
    logits = torch.randn(num_classes, image_size, image_size, generator=torch.Generator().manual_seed(height))
    labels = restore_labels(logits, height, width)
    assert labels.shape == (height, width) and labels.dtype == torch.uint8
    assert labels.max() <= num_classes


@given(st.integers(1, 32), st.integers(1, 32))
def test_what_lies_beyond_the_photo_is_not_scaled_into_it(height, width):
    """Logits beyond the photo are high, on it they are low: nothing of them may be seen."""
    fitted = torch.tensor(fit_mask(np.zeros((height, width), np.uint8), 32))
    logits = torch.where(fitted == VOID, 100.0, -1.0).unsqueeze(0)
    assert restore_labels(logits, height, width).max() == 0


def test_validation_ignores_void_pixels():
    photo, mask = np.full((32, 32, 3), 255, np.uint8), np.ones((32, 32), np.uint8)
    mask[:8] = VOID
    photos = read_pairs([Pair("a", lambda: (photo, mask))], [32])[32]
    _, counts = evaluate(make_brightness_model(), photos, LOSS, 4, "float32", CPU)
    assert counts.tolist() == [[[24 * 32, 0, 0]]]


def test_validation_loss_is_that_of_all_photos_together(make_set):
    photos, model = make_set(5), make_unet(UNetConfig(2), seed=0).eval()
    loss, counts = evaluate(model, photos, LOSS, 2, "float32", CPU)
    with torch.inference_mode():
        logits = model(to_input(torch.tensor(photos.photo_NSS3), CPU))
        together = compute_loss(LOSS, logits, torch.tensor(photos.mask_NSS))
    assert loss == pytest.approx(together.item(), rel=1e-5)
    labels = [restore_labels(logits_KSS, 48, 64) for logits_KSS in logits]
    expected = [
        count_pixels(label, torch.tensor(mask), 1).tolist()
        for label, mask in zip(labels, photos.native_masks, strict=True)
    ]
    assert counts.tolist() == expected


def test_validation_changes_no_weight_and_no_statistic(make_set):
    model = make_unet(UNetConfig(2), seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, make_set(), LOSS, 4, "float32", CPU)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_one_fitted_photo_is_predicted_at_the_size_asked_for():
    photo = np.zeros((40, 64, 3), np.uint8)
    photo[:, 32:] = 255
    labels = predict_fitted(make_predictor(make_brightness_model(), "float32", CPU), fit_photo(photo, 64), (40, 64))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, photo[..., 0] // 255)


def test_batches_are_scored_one_by_one_and_pooled_as_one(make_set):
    """Five photos by two: three scores, and whatever comes between them changes neither loss nor counts."""
    photos, model = make_set(5), make_unet(UNetConfig(2), seed=0)
    scores = []
    for score in evaluate_batches(make_predictor(model, "float32", CPU), place(photos, CPU), 2):
        assert not torch.is_inference_mode_enabled()
        scores.append(score)
    assert [len(score.counts_BK3) for score in scores] == [2, 2, 1]
    loss, counts = pool(LOSS, scores)
    together, same_counts = evaluate(model, photos, LOSS, 5, "float32", CPU)
    assert loss == pytest.approx(together, rel=1e-5)
    np.testing.assert_array_equal(counts, same_counts)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_pooled_loss_is_the_one_asked_for(make_set, loss):
    photos, model = make_set(3), make_unet(UNetConfig(2), seed=0)
    scores = list(evaluate_batches(make_predictor(model, "float32", CPU), place(photos, CPU), 3))
    assert pool(loss, scores)[0] == LOSSES[loss](scores[0].terms_4K).item()


@pytest.mark.parametrize("num_classes", [1, 3])
def test_logits_of_a_photo_are_those_it_has_alone_and_those_of_the_network(make_set, monkeypatch, num_classes):
    """Seven photos at once, in parts of two as a large photo would be, and one by one: the same up to rounding."""
    photos, model = make_set(7), make_unet(UNetConfig(4, num_classes), seed=0).eval()
    predictor, photo_NSS3 = make_predictor(model, "float32", CPU), torch.tensor(photos.photo_NSS3)
    with torch.inference_mode():
        expected_NKSS = model(to_input(photo_NSS3, CPU))
    for most in (100, 2, 1):
        monkeypatch.setattr("catseg.inference.PART_PIXELS", most * 32 * 32)
        torch.testing.assert_close(compute_logits(predictor, photo_NSS3), expected_NKSS, rtol=1e-5, atol=1e-5)
    logits_1KSS = compute_logits(predictor, photo_NSS3[4:5])
    torch.testing.assert_close(logits_1KSS[0], expected_NKSS[4], rtol=1e-5, atol=1e-5)


def test_a_cpu_is_given_no_more_photos_at_once_than_its_cache_holds(monkeypatch):
    sizes = []
    monkeypatch.setattr("catseg.inference.PART_PIXELS", 2 * 32 * 32)
    model = make_brightness_model()
    model.forward = lambda photo_B3HW: sizes.append(len(photo_B3HW)) or photo_B3HW[:, :1]
    for side, expected in ((32, [2, 2, 1]), (64, [1, 1, 1, 1, 1]), (16, [5])):
        sizes.clear()
        compute_logits(Predictor(model, torch.float32, CPU), torch.zeros(5, side, side, 3, dtype=torch.uint8))
        assert sizes == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_predictor_computes_in_its_precision_and_answers_in_float32(make_set, precision):
    photos, model = make_set(2), make_unet(UNetConfig(4), seed=0)
    predictor = make_predictor(model, precision, CPU)
    assert {weight.dtype for weight in predictor.network.parameters()} == {predictor.dtype}
    assert str(predictor.dtype) == f"torch.{precision}"
    logits_BKSS = compute_logits(predictor, torch.tensor(photos.photo_NSS3))
    assert logits_BKSS.dtype == torch.float32 and logits_BKSS.isfinite().all()


def test_what_a_network_learns_later_its_predictor_does_not_know(make_set):
    photos, model = make_set(2), make_unet(UNetConfig(2), seed=0)
    predictor = make_predictor(model, "float32", CPU)
    before = compute_logits(predictor, torch.tensor(photos.photo_NSS3))
    list(train(model, photos, photos, TrainConfig(lr=0.01, image_size=32, epochs=1, batch_size=1), CPU))
    assert torch.equal(compute_logits(predictor, torch.tensor(photos.photo_NSS3)), before)
    assert not torch.equal(
        compute_logits(make_predictor(model, "float32", CPU), torch.tensor(photos.photo_NSS3)), before
    )


def test_masks_that_may_not_be_written_to_are_placed_without_a_warning(make_set, recwarn):
    photos = make_set(2)
    for mask in photos.native_masks:
        mask.flags.writeable = False
    placed = place(photos, CPU)
    assert not recwarn.list
    np.testing.assert_array_equal(placed.native_masks[1], photos.native_masks[1])


def test_flipped_logits_are_the_mean_of_both_ways_to_look(make_set):
    """Mirrored photos have the same, mirrored; without it the network's own."""
    model, photos = make_unet(UNetConfig(2), 0).eval(), make_set(3)
    predictor = make_predictor(model, "float32", CPU)
    photo_NSS3 = torch.tensor(photos.photo_NSS3)
    logits = compute_logits(predictor, photo_NSS3, flip=True)
    with torch.no_grad():
        plain, mirrored = model(to_input(photo_NSS3, CPU)), model(to_input(photo_NSS3, CPU).flip(3)).flip(3)
    torch.testing.assert_close(logits, (plain + mirrored) / 2, rtol=1e-3, atol=1e-4)
    again = compute_logits(predictor, photo_NSS3.flip(2), flip=True).flip(3)
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(compute_logits(predictor, photo_NSS3), logits)
