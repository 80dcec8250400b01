"""A photo file -> its label map, and the files people look at.

In:  a U-Net with its card, a photo.   Out: labels_HW at the photo's own size; a palette mask and an overlay.
Knows nothing of training.      (H height, W width in pixels)
"""

from pathlib import Path

import torch

from catseg.checkpoint import ModelCard
from catseg.errors import InputError
from catseg.photo import UInt8, encode_png, fit_photo, paint_overlay, read_photo, save_bytes
from catseg.train import predict_fitted
from catseg.unet import UNet


def predict(model: UNet, card: ModelCard, photo_HW3: UInt8, device: torch.device) -> UInt8:
    """labels_HW uint8 of one photo: 0 background, 1..K the card's classes."""
    photo_SS3 = fit_photo(photo_HW3, card.image_size)
    return predict_fitted(model.to(device), photo_SS3, photo_HW3.shape[:2], "auto", device)


def write_prediction(
    model: UNet, card: ModelCard, photo_path: Path, folder: Path, device: torch.device
) -> tuple[Path, Path, float]:
    """Predict one file; write `<stem>.png` (palette mask) and `<stem>_overlay.png`.

    The third value is the share of the pixels in which any class was predicted.
    """
    mask_path, overlay_path = folder / f"{photo_path.stem}.png", folder / f"{photo_path.stem}_overlay.png"
    if photo_path.resolve() in (mask_path.resolve(), overlay_path.resolve()):
        raise InputError(f"{photo_path}: the prediction would overwrite the photo; name another folder with --out")
    photo_HW3 = read_photo(photo_path)
    labels_HW = predict(model, card, photo_HW3, device)
    folder.mkdir(parents=True, exist_ok=True)
    save_bytes(encode_png(labels_HW, palette=True), mask_path)
    save_bytes(encode_png(paint_overlay(photo_HW3, labels_HW)), overlay_path)
    return mask_path, overlay_path, float((labels_HW > 0).mean())
