"""Photos -> masks and overlays by the model beside this file. It takes numpy, Pillow and onnxruntime, nothing else.

In:  photos, or folders of them.   Out: NAME.png, a palette mask, and NAME_overlay.png, both at the photo's own size.
Knows nothing of the project that trained the model.      (K classes, H height, W width in pixels)

    python predict.py PHOTO|DIR ... --out DIR [--model model.int8.onnx]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def read_photo(path: Path) -> Image.Image:
    """As a viewer shows it: turned as its EXIF says, what is transparent on white."""
    with path.open("rb") as file, Image.open(file) as image:
        photo = ImageOps.exif_transpose(image)
    if photo.mode.startswith(("I", "F")):
        raise SystemExit(f"{path}: more than 8 bits a channel; save it with 8")
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return photo.convert("RGB")


def resize_linear(values_KHW: Any, height: int, width: int) -> Any:
    """Bilinear between the centres of pixels, without antialiasing: torch's `interpolate`."""
    for axis, size in ((1, height), (2, width)):
        old = values_KHW.shape[axis]
        at = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0)
        low = at.astype(np.int64)
        share = (at - low).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        high_KHW = values_KHW.take(np.minimum(low + 1, old - 1), axis)
        values_KHW = values_KHW.take(low, axis) * (1 - share) + high_KHW * share
    return values_KHW


def predict(session: Any, photo: Image.Image, image_size: int) -> Any:
    """labels_HW: 0 background, 1..K the classes. The longer side becomes image_size, top left of a black square."""
    scale = image_size / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    photo_1SS3 = np.zeros((1, image_size, image_size, 3), np.uint8)
    photo_1SS3[0, :height, :width] = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    logits_KSS = session.run(["logits_BKHW"], {"photo_BHW3": photo_1SS3})[0][0]
    logits_KHW = resize_linear(logits_KSS[:, :height, :width], photo.height, photo.width)
    return np.where(logits_KHW.max(0) > 0, logits_KHW.argmax(0) + 1, 0).astype(np.uint8)


def make_palette() -> list[int]:
    """PASCAL VOC's colours, the first class green."""
    bits = [[sum((label >> 3 * i + c & 1) << 7 - i for i in range(3)) for c in range(3)] for label in range(256)]
    bits[1], bits[2] = bits[2], bits[1]
    return [channel for color in bits for channel in color]


def main() -> None:
    parser = argparse.ArgumentParser(description="Masks and overlays of photos.")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO|DIR")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--model", default="model.onnx", metavar="FILE", help="of this folder")
    options = parser.parse_args()
    config = json.loads((HERE / "config.json").read_text("utf-8"))
    session = onnxruntime.InferenceSession(HERE / options.model, providers=["CPUExecutionProvider"])
    folders = [sorted(path.iterdir()) if path.is_dir() else [path] for path in options.photos]
    photos = [path for folder in folders for path in folder if path.suffix.lower() in SUFFIXES]
    outputs = [options.out / f"{path.stem}{end}.png" for path in photos for end in ("", "_overlay")]
    taken = {path.resolve() for path in photos}
    for output in outputs:
        if output.resolve() in taken:
            raise SystemExit(f"{output}: would overwrite a photo or come twice; use another --out or fewer photos")
        taken.add(output.resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    for path, mask_path, overlay_path in zip(photos, outputs[::2], outputs[1::2], strict=True):
        photo = read_photo(path)
        mask = Image.fromarray(predict(session, photo, config["image_size"]))
        mask.putpalette(make_palette())
        mask.save(mask_path)
        Image.blend(photo, mask.convert("RGB"), 0.3).save(overlay_path)
        print(f"{path}: {', '.join(config['classes'])} on {np.mean(np.asarray(mask) > 0):.1%} of it -> {mask_path}")


if __name__ == "__main__":
    main()
