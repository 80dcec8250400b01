"""Photo files -> label maps, and the files people look at.

In:  a U-Net with its card, photos.   Out: labels_HW at the photo's own size; palette masks, overlays, Labelme files.
Knows nothing of training.      (K classes, H height, W width, S side, in pixels)

A photo goes from file to files in one thread, several photos at a time. On a CPU that beats batches
and threads within the network: one photo's features stay in a core's cache, no core waits for
another, and most of the time goes into writing PNG files anyway (experiments/LOG.md). It also bounds the memory
by the number of threads, and makes no prediction depend on the photos beside it. Photos are fitted
whole, not cut into tiles: whole ones are what the network was trained on.
"""

import filecmp
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from catseg.checkpoint import ModelCard
from catseg.errors import InputError
from catseg.files import save_bytes
from catseg.folder import list_files
from catseg.inference import Predictor, compute_logits, make_predictor, predict_fitted
from catseg.labelme import format_labels
from catseg.metrics import choose_labels
from catseg.photo import PALETTE, PHOTO_SUFFIXES, UInt8, encode_png, fit_photo, fit_size, paint_overlay, read_photo

LABELME_FOLDER = "labelme"  # apart from the masks: Labelme would offer those for labelling, too
SMOOTHING = 1e-3  # share of a photo's pixels: a few doubtful pixels on an empty photo are no doubt
MAX_THREADS = 8  # each holds a photo, its overlay and its logits: 15 bytes a pixel, so 0.3 GB of a 20-megapixel one

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """What was written for one photo."""

    photo_path: Path
    mask_path: Path
    overlay_path: Path
    annotation_path: Path | None
    share: float  # of pixels in which any class was predicted, 0..1


def predict(predictor: Predictor, card: ModelCard, photo_HW3: UInt8) -> UInt8:
    """labels_HW uint8 of one photo: 0 background, 1..K the card's classes."""
    return predict_fitted(predictor, fit_photo(photo_HW3, card.image_size), photo_HW3.shape[:2])


def estimate_iou(predictor: Predictor, card: ModelCard, photo_HW3: UInt8) -> float:
    """The IoU that the model expects of its own prediction, 0..1, mean over the classes: how sure it is.

    Were each pixel's probability true and independent, IoU would be near the sum of probabilities
    inside the prediction over those of the union. On photos of street cats it ranks the photos by
    their true IoU far better than mean entropy does (Spearman 0.66 against 0.20; experiments/LOG.md).
    """
    photo_SS3 = fit_photo(photo_HW3, card.image_size)
    logits_KSS = compute_logits(predictor, torch.tensor(photo_SS3).unsqueeze(0))[0]
    height, width = fit_size(photo_HW3.shape[0], photo_HW3.shape[1], card.image_size)
    logits_KHW = logits_KSS[:, :height, :width]
    probability_KHW = logits_KHW.sigmoid()
    classes = torch.arange(1, len(logits_KHW) + 1, device=logits_KHW.device)[:, None, None]
    chosen_KHW = choose_labels(logits_KHW[None])[0] == classes
    smoothing = SMOOTHING * height * width
    hits_K = (probability_KHW * chosen_KHW).sum((1, 2)) + smoothing
    union_K = torch.where(chosen_KHW, 1.0, probability_KHW).sum((1, 2)) + smoothing
    return float((hits_K / union_K).mean())


def estimate_files(
    model: nn.Module | Predictor, card: ModelCard, photo_paths: Sequence[Path], device: torch.device
) -> Generator[float | InputError, None, None]:
    """`estimate_iou` of each file, in their order; what is wrong with it where it cannot be read."""
    yield from _map_photos(partial(_estimate_file, make_predictor(model, "auto", device), card), photo_paths)


def list_photos(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as the photos in them, sorted."""
    photos: list[Path] = []
    for path in paths:
        if not path.is_dir():
            photos.append(path)
            continue
        inside = list_files(path, PHOTO_SUFFIXES)
        if not inside:
            raise InputError(f"{path}: no photos ({', '.join(PHOTO_SUFFIXES)}); check the path")
        photos += inside
    return photos


def write_predictions(
    model: nn.Module | Predictor,
    card: ModelCard,
    photo_paths: list[Path],
    folder: Path,
    device: torch.device,
    labelme: bool = False,
) -> Generator[Prediction, None, None]:
    """Predict files; write `<stem>.png` (palette mask) and `<stem>_overlay.png` of each into `folder`.

    They come in the order given, while the next ones are being worked on. With `labelme`, a copy of
    each photo and its outlines go into `folder`/labelme, to be corrected there. Photos that cannot be
    read do not stop the others: InputError lists them at the end.
    """
    _prepare(photo_paths, folder, card.classes if labelme else None)
    problems: list[str] = []
    predict_one = partial(_predict_file, make_predictor(model, "auto", device), card, folder, labelme)
    for done in _map_photos(predict_one, photo_paths):
        if isinstance(done, InputError):
            problems += done.problems
        else:
            yield done
    if problems:
        raise InputError(problems)


def _map_photos(work: Callable[[Path], T], photo_paths: Sequence[Path]) -> Generator[T, None, None]:
    """`work` done on all photos, on each core another one; results in the order of the photos.

    Whoever stops listening, or is interrupted, waits for the photos that are begun: no file stays half written.
    """
    num_cores = torch.get_num_threads()
    num_threads = max(1, min(num_cores, MAX_THREADS, len(photo_paths)))
    # torch counts its threads for each of ours: one computes its photo alone, to the same bit on any number of cores
    pool = ThreadPoolExecutor(num_threads, "photo", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, photo_paths)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_cores)  # for threads that others start later


def _estimate_file(predictor: Predictor, card: ModelCard, photo_path: Path) -> float | InputError:
    try:
        photo_HW3 = read_photo(photo_path)
    except InputError as error:
        return error
    return estimate_iou(predictor, card, photo_HW3)


def _predict_file(
    predictor: Predictor, card: ModelCard, folder: Path, labelme: bool, photo_path: Path
) -> Prediction | InputError:
    """One photo from file to files. InputError is raised where no other photo would fare better."""
    try:
        photo_HW3 = read_photo(photo_path)
    except InputError as error:
        return error
    labels_HW = predict(predictor, card, photo_HW3)
    mask_path, overlay_path = name_outputs(photo_path, folder)
    try:
        save_bytes(encode_png(labels_HW, PALETTE), mask_path)
        save_bytes(encode_png(paint_overlay(photo_HW3, labels_HW), strategy=zlib.Z_RLE), overlay_path)
        annotation_path = _write_annotation(photo_path, labels_HW, card.classes, folder) if labelme else None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written ({reason}); make room, or change --out") from None
    return Prediction(photo_path, mask_path, overlay_path, annotation_path, float((labels_HW > 0).mean()))


def name_outputs(photo_path: Path, folder: Path) -> tuple[Path, Path]:
    """Where the mask and the overlay of a photo go."""
    return folder / f"{photo_path.stem}.png", folder / f"{photo_path.stem}_overlay.png"


def name_annotation(photo_path: Path, folder: Path) -> Path:
    """Where the Labelme file of a photo goes; its copy of the photo beside it."""
    return folder / LABELME_FOLDER / f"{photo_path.stem}.json"


def name_labels(folder: Path) -> Path:
    """Where the labels.txt goes that `bench data label` wants."""
    return folder / LABELME_FOLDER / "labels.txt"


def _write_annotation(photo_path: Path, labels_HW: UInt8, classes: tuple[str, ...], folder: Path) -> Path:
    from catseg.outline import make_annotation  # its libraries are not needed where networks are trained

    annotation_path = name_annotation(photo_path, folder)
    save_bytes(photo_path.read_bytes(), annotation_path.with_name(photo_path.name))
    save_bytes(make_annotation(labels_HW, photo_path.name, classes).encode(), annotation_path)
    return annotation_path


def _prepare(photo_paths: list[Path], folder: Path, classes: tuple[str, ...] | None) -> None:
    """Make the folders; with `classes`, Labelme's, too.

    Nothing may be written over a photo, another photo's prediction, or outlines that were perhaps corrected.
    """
    photos = {path.resolve() for path in photo_paths}
    owners: dict[Path, Path] = {}
    for photo_path in photo_paths:
        outputs: tuple[Path, ...] = name_outputs(photo_path, folder)
        if classes is not None:
            annotation_path = name_annotation(photo_path, folder)
            copy = annotation_path.with_name(photo_path.name)
            if annotation_path.exists():
                raise InputError(f"{annotation_path}: is there already, perhaps corrected; move it or change --out")
            if copy.exists() and photo_path.is_file() and not filecmp.cmp(copy, photo_path, shallow=False):
                raise InputError(f"{copy}: is there already, another than {photo_path}; move it or change --out")
            outputs = (*outputs, annotation_path, copy)
        for output in outputs:
            if output.resolve() in photos:
                raise InputError(f"{photo_path}: {output} would overwrite a photo; name another folder with --out")
            if output in owners:
                raise InputError(
                    f"{photo_path}: {output} is also that of {owners[output]}; predict them into two folders"
                )
            owners[output] = photo_path
    try:
        (folder if classes is None else folder / LABELME_FOLDER).mkdir(parents=True, exist_ok=True)
        if classes is not None and not name_labels(folder).is_file():
            save_bytes(format_labels(classes).encode(), name_labels(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name another folder with --out") from None
