"""Drawn photos and what a model makes of them: whether a copy of it, elsewhere, does the same.

In:  a Predictor.   Out: files, as they lie in a bundle; how far another's predictions are from them.
Knows nothing of users' photos: what is shipped is drawn.      (K classes, H height, W width, S side in pixels)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from catseg.checkpoint import ModelCard
from catseg.errors import InputError
from catseg.inference import Predictor, compute_logits, restore_labels
from catseg.photo import PALETTE, UInt8, encode_png, fit_photo, fit_size, read_mask, read_photo
from catseg.sample import draw_photo, name_photo

SHAPES = ((192, 192), (192, 101), (37, 64), (1, 1))  # height, width: the drawn photos are cut to them


@dataclass(frozen=True)
class Replay:
    """How far predictions are from those that were shipped."""

    disagreement_ppm: float  # of all masks' pixels
    probability_difference: float  # the mean; 0.002 comes from their being kept in 8 bits


def make_golden(predictor: Predictor, card: ModelCard) -> dict[str, bytes]:
    """For each photo NAME.png, NAME_mask.png, NAME_probability.png: grey, as fitted, classes one below another."""
    files = {}
    for number, (height, width) in enumerate(SHAPES):
        photo_HW3 = np.ascontiguousarray(draw_photo(number)[0][:height, :width])
        labels_HW, probability_KHW = _predict(predictor, card, photo_HW3)
        name = name_photo(number)
        files[f"{name}.png"] = encode_png(photo_HW3)
        files[f"{name}_mask.png"] = encode_png(labels_HW, PALETTE)
        files[f"{name}_probability.png"] = encode_png(_stack(probability_KHW))
    return files


def replay_golden(folder: Path, predictor: Predictor, card: ModelCard) -> Replay:
    """Predict the shipped photos again."""
    num_pixels = num_different = 0
    differences = []
    for number in range(len(SHAPES)):
        path = folder / f"{name_photo(number)}.png"
        labels_HW, probability_KHW = _predict(predictor, card, read_photo(path))
        mask_HW = read_mask(path.with_name(f"{path.stem}_mask.png"))
        expected = read_mask(path.with_name(f"{path.stem}_probability.png"))
        found = _stack(probability_KHW)
        if mask_HW.shape != labels_HW.shape or expected.shape != found.shape:
            raise InputError(f"{path}: its mask or probabilities are of another size; export the bundle again")
        num_pixels += mask_HW.size
        num_different += int(np.count_nonzero(mask_HW != labels_HW))
        differences.append(np.abs(expected.astype(np.float64) - found).ravel() / 255)
    return Replay(1e6 * num_different / num_pixels, float(np.concatenate(differences).mean()))


def _predict(predictor: Predictor, card: ModelCard, photo_HW3: UInt8) -> tuple[UInt8, torch.Tensor]:
    """labels_HW, and probability_KHW of the fitted photo."""
    logits_KSS = compute_logits(predictor, torch.tensor(fit_photo(photo_HW3, card.image_size))[None])[0]
    labels_HW: UInt8 = restore_labels(logits_KSS, *photo_HW3.shape[:2]).cpu().numpy()
    height, width = fit_size(photo_HW3.shape[0], photo_HW3.shape[1], card.image_size)
    return labels_HW, logits_KSS[:, :height, :width].sigmoid().cpu()


def _stack(probability_KHW: torch.Tensor) -> UInt8:
    pixels: UInt8 = (probability_KHW.flatten(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels
