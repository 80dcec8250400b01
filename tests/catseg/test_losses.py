"""The losses against numpy, by hand, in half precision, on empty and on void masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from catseg.losses import LOSSES, compute_loss, sum_terms
from catseg.photo import VOID

every_loss = pytest.mark.parametrize("loss", sorted(LOSSES))


def test_there_are_two_losses():
    assert set(LOSSES) == {"dice", "bce_dice"}


def compute_reference(loss: str, logits: np.ndarray, mask: np.ndarray) -> float:
    """The definitions, class by class and in float64, on the pixels that are left when void ones are thrown away."""
    keep = mask != VOID
    dices, entropies = [], []
    for index in range(logits.shape[1]):
        z, truth = logits[:, index][keep].astype(np.float64), (mask[keep] == index + 1).astype(np.float64)
        p = 1 / (1 + np.exp(-z))
        dices.append(1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
        entropy = np.logaddexp(0, -z) * truth + np.logaddexp(0, z) * (1 - truth)
        entropies.append(entropy.mean() if keep.any() else 0.0)
    return float(np.mean(dices) + (np.mean(entropies) if loss == "bce_dice" else 0))


@st.composite
def batches(draw, min_classes: int = 1, max_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """logits_BKHW and a mask_BHW with background, every class and void."""
    num, num_classes = draw(st.integers(1, 3)), draw(st.integers(min_classes, max_classes))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    logits = draw(arrays(np.float32, (num, num_classes, height, width), elements=st.floats(-20, 20, width=32)))
    labels = st.sampled_from([*range(num_classes + 1), VOID])
    return logits, draw(arrays(np.uint8, (num, height, width), elements=labels))


@every_loss
@given(batch=batches())
def test_loss_equals_its_definition_in_numpy(loss, batch):
    logits, mask = batch
    value = compute_loss(loss, torch.tensor(logits), torch.tensor(mask))
    assert value.dtype == torch.float32 and value.shape == ()
    assert value.item() == pytest.approx(compute_reference(loss, logits, mask), rel=1e-4, abs=1e-5)


def test_dice_of_a_hand_counted_prediction():
    mask, logits = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 1, 4, 4), -100.0)
    mask[0, :2, :2] = 1  # 4 pixels of cat
    logits[0, 0, :2, :] = 100  # 8 predicted, the 4 among them
    assert compute_loss("dice", logits, mask).item() == pytest.approx(1 - (2 * 4 + 1) / (8 + 4 + 1))


def test_undecided_network_pays_ln_2_of_cross_entropy():
    mask, logits = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4)
    mask[0, 0] = 1
    dice = 1 - (2 * 2 + 1) / (8 + 4 + 1)
    assert compute_loss("dice", logits, mask).item() == pytest.approx(dice)
    assert compute_loss("bce_dice", logits, mask).item() == pytest.approx(dice + math.log(2))


@every_loss
def test_perfect_prediction_costs_nothing_and_its_opposite_the_most(loss):
    mask = torch.zeros(2, 4, 4, dtype=torch.uint8)
    mask[:, :2] = 1
    logits = (mask.float() * 2 - 1).unsqueeze(1) * 50
    assert compute_loss(loss, logits, mask).item() == pytest.approx(0, abs=1e-6)
    assert compute_loss(loss, -logits, mask).item() > 0.9


@every_loss
def test_loss_is_the_mean_over_the_classes(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 6, generator=generator)
    mask = torch.randint(0, 4, (2, 6, 6), generator=generator).to(torch.uint8)
    alone = [compute_loss(loss, logits[:, [k]], (mask == k + 1).to(torch.uint8)).item() for k in range(3)]
    assert compute_loss(loss, logits, mask).item() == pytest.approx(np.mean(alone), rel=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_megapixel_of_cat_in_half_precision_has_a_finite_loss_and_gradient(loss, dtype):
    logits = torch.ones(1, 1, 1024, 1024, dtype=dtype, requires_grad=True)
    mask = torch.ones(1, 1024, 1024, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach into the sums
        value = compute_loss(loss, logits, mask)
    value.backward()
    p, num = 1 / (1 + math.exp(-1)), 1024**2
    dice = 1 - (2 * p * num + 1) / (p * num + num + 1)
    expected = dice + (math.log1p(math.exp(-1)) if loss == "bce_dice" else 0)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(logits.grad).all()


@every_loss
def test_mask_without_a_cat_has_a_finite_loss_and_a_gradient_towards_background(loss):
    logits = torch.zeros(2, 1, 8, 8, requires_grad=True)
    value = compute_loss(loss, logits, torch.zeros(2, 8, 8, dtype=torch.uint8))
    value.backward()
    assert math.isfinite(value.item())
    assert torch.all(logits.grad > 0)


def test_mask_without_a_cat_predicted_empty_costs_nothing():
    logits = torch.full((1, 1, 8, 8), -100.0)
    assert compute_loss("bce_dice", logits, torch.zeros(1, 8, 8, dtype=torch.uint8)).item() == 0


@every_loss
@pytest.mark.parametrize("num_classes", [1, 3])
def test_mask_that_is_all_void_has_loss_zero_and_gradient_zero(loss, num_classes):
    logits = torch.randn(2, num_classes, 8, 8, requires_grad=True)
    value = compute_loss(loss, logits, torch.full((2, 8, 8), VOID, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert torch.all(logits.grad == 0)


@every_loss
@given(batch=batches(), other=st.floats(-1e4, 1e4, width=32))
def test_void_pixels_change_neither_value_nor_gradient(loss, batch, other):
    logits, mask = batch
    void = torch.tensor(mask == VOID).unsqueeze(1).expand(*logits.shape)
    first = torch.tensor(logits, requires_grad=True)
    second = torch.where(void, torch.tensor(other), torch.tensor(logits)).requires_grad_()
    values = [compute_loss(loss, tensor, torch.tensor(mask)) for tensor in (first, second)]
    sum(values).backward()
    assert values[0].item() == values[1].item()
    assert torch.equal(first.grad, second.grad)
    assert torch.all(first.grad[void] == 0)


@given(batch=batches())
def test_sums_of_batches_add_up(batch):
    logits, mask = (torch.tensor(part) for part in batch)
    together = sum_terms(logits, mask)
    one_by_one = sum(sum_terms(logits[[index]], mask[[index]]) for index in range(len(mask)))
    assert together.shape == (4, logits.shape[1])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)


def test_sums_are_those_counted_by_hand():
    logits = torch.tensor([[100.0, 100.0], [-100.0, 100.0]]).view(1, 1, 2, 2)
    mask = torch.tensor([[1, 0], [1, VOID]], dtype=torch.uint8).view(1, 2, 2)
    # one hit; two predicted and two true; the false alarm and the miss cost 100 each; three pixels count
    np.testing.assert_allclose(sum_terms(logits, mask)[:, 0], [1, 4, 200, 3])


def test_dice_is_pooled_over_the_batch():
    """A small cat that is missed weighs little beside a large one that is hit."""
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    mask[0], mask[1, 0, 0] = 1, 1
    logits = torch.full((2, 1, 8, 8), -100.0)
    logits[0] = 100
    assert compute_loss("dice", logits, mask).item() == pytest.approx(1 / 130, rel=1e-4)  # 1 - 129 / 130


@every_loss
@given(batch=batches())
def test_a_step_against_the_gradient_does_not_raise_the_loss(loss, batch):
    logits, mask = torch.tensor(batch[0], dtype=torch.float32, requires_grad=True), torch.tensor(batch[1])
    before = compute_loss(loss, logits, mask)
    before.backward()
    after = compute_loss(loss, (logits - 0.1 * logits.grad).detach(), mask)
    assert after.item() <= before.item() + 1e-6


@given(batch=batches(), weight=st.floats(0, 1))
def test_a_weight_is_dices_share_and_the_rest_is_cross_entropys(batch, weight):
    logits, mask = batch
    dice = compute_reference("dice", logits, mask)
    entropy = compute_reference("bce_dice", logits, mask) - dice
    value = compute_loss("bce_dice", torch.tensor(logits), torch.tensor(mask), weight).item()
    assert value == pytest.approx(weight * dice + (1 - weight) * entropy, rel=1e-4, abs=1e-5)
    assert compute_loss("dice", torch.tensor(logits), torch.tensor(mask), weight).item() == pytest.approx(
        dice, abs=1e-5
    )
