"""U-Nets of other libraries, where they are installed: `pip install -e '.[peers]'`.

In:  init_features.   Out: a fresh network photo_B3HW -> logits_B1HW, or why there is none.
Knows nothing of how they are timed.

Their widths are made like ours and all else is left as they come. segmentation-models-pytorch wants
torchvision, of which not every torch has a build; whatever goes wrong when a library is imported,
it is not installed as far as a comparison goes, and the table says so.
"""

import warnings
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

WIDTHS = (1, 2, 4, 8, 16)
MONAI, SMP = "MONAI BasicUNet", "smp Unet resnet18"
MODULES = {MONAI: "monai.networks.nets", SMP: "segmentation_models_pytorch"}


@cache
def load_peer(name: str) -> Any | str:
    """The library's module, or one line of why it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their own dependencies
            return import_module(MODULES[name])
    except BaseException as error:  # a broken torchvision raises RuntimeError, others their own
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{name} not installed ({reason})"


def make_peer(name: str, init_features: int) -> nn.Module:
    """A fresh network of that library, which `load_peer` must have found."""
    library = load_peer(name)
    widths = [init_features * factor for factor in WIDTHS]
    if name == MONAI:
        return library.BasicUNet(
            spatial_dims=2, in_channels=3, out_channels=1, features=(*widths, init_features)
        )  # the last: channels after the topmost upsampling
    return library.Unet("resnet18", encoder_weights=None, decoder_channels=widths[::-1], in_channels=3, classes=1)
