"""Photo files -> label maps, and the files people look at.

In:  a U-Net with its card, photos.   Out: labels_HW at the photo's own size; a palette mask and an overlay.
Knows nothing of training.      (H height, W width in pixels)
"""

from collections.abc import Iterable, Iterator
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


def write_predictions(
    model: UNet, card: ModelCard, photo_paths: Iterable[Path], folder: Path, device: torch.device
) -> Iterator[tuple[Path, Path, Path, float]]:
    """Predict files one by one; write `<stem>.png` (palette mask) and `<stem>_overlay.png` of each into `folder`.

    Yields photo, mask, overlay, and the share of pixels in which any class was predicted. Photos
    that cannot be read do not stop the others: InputError lists them at the end.
    """
    photo_paths = list(photo_paths)
    _check_outputs(photo_paths, folder)
    problems: list[str] = []
    for photo_path in photo_paths:
        try:
            photo_HW3 = read_photo(photo_path)
        except InputError as error:
            problems += error.problems
            continue
        labels_HW = predict(model, card, photo_HW3, device)
        mask_path, overlay_path = name_outputs(photo_path, folder)
        save_bytes(encode_png(labels_HW, palette=True), mask_path)
        save_bytes(encode_png(paint_overlay(photo_HW3, labels_HW)), overlay_path)
        yield photo_path, mask_path, overlay_path, float((labels_HW > 0).mean())
    if problems:
        raise InputError(problems)


def name_outputs(photo_path: Path, folder: Path) -> tuple[Path, Path]:
    """Where the mask and the overlay of a photo go."""
    return folder / f"{photo_path.stem}.png", folder / f"{photo_path.stem}_overlay.png"


def _check_outputs(photo_paths: list[Path], folder: Path) -> None:
    """Nothing may be written over a photo or over another photo's prediction."""
    photos = {path.resolve() for path in photo_paths}
    owners: dict[Path, Path] = {}
    for photo_path in photo_paths:
        for output in name_outputs(photo_path, folder):
            if output.resolve() in photos:
                raise InputError(f"{photo_path}: {output} would overwrite a photo; name another folder with --out")
            if output in owners:
                raise InputError(
                    f"{photo_path}: {output} is also that of {owners[output]}; predict them into two folders"
                )
            owners[output] = photo_path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name another folder with --out") from None
