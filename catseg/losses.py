"""What training makes small.

In:  logits_BKHW, mask_BHW (0 background, 1..K classes, 255 void).   Out: a scalar, mean over the classes.
Knows nothing of models or training.      (B batch, K classes, H height, W width in pixels)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from catseg.photo import VOID

# pixels; keeps an empty class at loss 0 when it is predicted empty (Milletari et al., arXiv 1606.04797)
SMOOTHING = 1.0


def sum_terms(logits_BKHW: torch.Tensor, mask_BHW: torch.Tensor) -> torch.Tensor:
    """The four sums per class, terms_4K, of which every loss is made: intersection, total, cross-entropy, pixels.

    Sums over batches add up, so a loss of a whole dataset does not depend on the batch size.
    In float32 outside autocast: in float16 a sum over 512 x 512 pixels is already infinite. Void
    pixels are taken out before they are summed: they add nothing, in value or gradient.
    """
    with torch.autocast(logits_BKHW.device.type, enabled=False):
        logits_BKHW = logits_BKHW.float()
        num_classes = logits_BKHW.shape[1]
        valid_B1HW = (mask_BHW != VOID).unsqueeze(1).float()
        ids_K11 = torch.arange(1, num_classes + 1, device=mask_BHW.device, dtype=mask_BHW.dtype).view(-1, 1, 1)
        truth_BKHW = (mask_BHW.unsqueeze(1) == ids_K11).float()
        probability_BKHW = torch.sigmoid(logits_BKHW) * valid_B1HW
        cross_entropy_BKHW = F.binary_cross_entropy_with_logits(
            logits_BKHW, truth_BKHW, weight=valid_B1HW, reduction="none"
        )
        every_pixel = (0, 2, 3)
        return torch.stack(
            (
                (probability_BKHW * truth_BKHW).sum(every_pixel),
                (probability_BKHW + truth_BKHW).sum(every_pixel),
                cross_entropy_BKHW.sum(every_pixel),
                valid_B1HW.sum().expand(num_classes),
            )
        )


def dice(terms_4K: torch.Tensor) -> torch.Tensor:
    """Soft Dice loss per class, 0 (perfect) to 1, pooled over the batch as in the tutorial.

    Small cats weigh little in it: a per-photo Dice would be another loss, under another name.
    """
    intersection_K, total_K, _, _ = terms_4K
    loss: torch.Tensor = (1 - (2 * intersection_K + SMOOTHING) / (total_K + SMOOTHING)).mean()
    return loss


def bce_dice(terms_4K: torch.Tensor, dice_weight: float | None = None) -> torch.Tensor:
    """Dice plus binary cross-entropy with logits, the mean over pixels that are not void.

    With a weight, 0 to 1, it is Dice's share and the rest cross-entropy's: 0.5 is half their sum.
    """
    _, _, cross_entropy_K, pixels_K = terms_4K
    cross_entropy: torch.Tensor = (cross_entropy_K / pixels_K.clamp(min=1)).mean()
    if dice_weight is None:
        return dice(terms_4K) + cross_entropy
    return dice_weight * dice(terms_4K) + (1 - dice_weight) * cross_entropy


LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"dice": dice, "bce_dice": bce_dice}


def apply_loss(name: str, terms_4K: torch.Tensor, dice_weight: float | None = None) -> torch.Tensor:
    """The loss called `name` of what `sum_terms` gave; the weight is of bce_dice alone."""
    return bce_dice(terms_4K, dice_weight) if name == "bce_dice" else LOSSES[name](terms_4K)


def compute_loss(
    name: str, logits_BKHW: torch.Tensor, mask_BHW: torch.Tensor, dice_weight: float | None = None
) -> torch.Tensor:
    """The loss called `name` of one batch; finite for empty masks, 0 with zero gradient for all-void ones."""
    return apply_loss(name, sum_terms(logits_BKHW, mask_BHW), dice_weight)
