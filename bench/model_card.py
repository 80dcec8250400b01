"""MODEL_CARD.md: what whoever gets a model must know, in words.

In:  a config, a certificate.   Out: Markdown.
Knows nothing of files or of how anything was measured.
"""

from typing import Any

from catseg.bundle import CONSTANTS, Config

TEXT = """# A U-Net that finds {classes}

`{trial}`, the best epoch ({epoch}); {parameters:,} parameters, photos of {image_size} px.
Trained on {train_photos:,} photos and chosen by `val/miou` on {val_photos:,} others (data {fingerprint}){leak}.

## What it scores

`val/miou` **{miou:.4f}** (as reported by the run; pixels pooled over all validation photos, mean over the classes).
The photos that chose it are not test photos: expect less on others. Each file, scored anew on the same photos:

| runtime | file | precision | val/miou | loses | greatest difference of a probability | masks differ, ppm |
|---|---|---|---:|---:|---:|---:|
{rows}

Differences are from torch in float32. A float32 file may lose {float32}, an int8 file {int8}: else it is not
shipped.{left_out} Milliseconds are in latency.json, with the machine they were taken on: all of a bundle that differs
from export to export.

## How to use it

```
pip install numpy pillow onnxruntime && python predict.py PHOTO --out DIR
bench verify BUNDLE && bench predict BUNDLE PHOTO --out DIR
sha256sum -c SHA256SUMS
```

`model.onnx` takes `photo_BHW3` (uint8, RGB, any size) and gives `probability_BKHW` and `logits_BKHW`, as high and wide.
What it was trained on and these scores hold for are photos that are fitted first:

- {fit};
- {normalisation} (inside the file);
- {restore}.

A pixel is of the likeliest class if that has a probability above {threshold}, else background.

## Limits

- It knows photos like those it was trained on, whole ones. Nothing was measured on others.
- Probabilities are not calibrated.
- golden/ holds drawn photos and what this model makes of them: to see whether a copy does the same.
- The training photos' licences bind whoever passes the model on; nothing here knows them.
"""


def format_card(config: Config, certificate: dict[str, Any]) -> bytes:
    """The card."""
    trial, data = certificate["trial"], certificate["data"]
    rows = []
    for name, score in certificate["runtimes"].items():
        miou, loss = f"{score['miou']:.4f}", f"{round(score['loses'], 4) + 0.0:.4f}"  # no -0.0000
        differences = f"{score['max_probability_difference']:.1e} | {score['mask_disagreement_ppm']:.1f}"
        rows.append(f"| {name} | {score['file']} | {score['precision']} | {miou} | {loss} | {differences} |")
    left_out = "".join(f" Left out: {line}." for line in certificate["left_out"])
    text = TEXT.format(
        classes=", ".join(config.classes),
        trial=trial["name"],
        epoch=config.epoch,
        parameters=trial["parameters"],
        image_size=config.image_size,
        train_photos=data["train_photos"],
        val_photos=data["val_photos"],
        fingerprint=data["fingerprint"],
        leak=", which are the same photos" if data["val_is_train"] else "",
        miou=trial["val/miou"],
        rows="\n".join(rows),
        float32=certificate["limits"]["float32"],
        int8=certificate["limits"]["int8"],
        left_out=left_out,
        normalisation=CONSTANTS["normalisation"],
        threshold=CONSTANTS["threshold"],
        **CONSTANTS["resize"],  # type: ignore[arg-type]
    )
    return text.encode("utf-8", "surrogateescape")
