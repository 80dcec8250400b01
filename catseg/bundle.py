"""A model's folder for others: what lies in it, what its config may say, and whether all of it is so.

In:  a folder that may be broken or hostile.   Out: a Bundle whose every file is what its sums say; networks.
Knows nothing of how good a model is or where it was trained.

    model.safetensors model.onnx [model.int8.onnx]   the network, for torch and for other runtimes
    config.json          what the network is and how photos are fed to it
    predict.py           masks and overlays without us (catseg/standalone.py)
    certificate.json     each file scored anew; latency.json: how long each takes; per_photo.csv: what each hit
    golden/              drawn photos, the expected masks and probabilities
    MODEL_CARD.md SHA256SUMS
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from catseg.checkpoint import ModelCard, load_model
from catseg.errors import InputError
from catseg.inference import Predictor, make_predictor
from catseg.runtimes import RUNTIMES, open_file
from catseg.settings import TrainConfig, UNetConfig, compute_num_parameters
from catseg.unet import UNet

FORMAT = "catseg-bundle-1"
SUMS, CONFIG, INT8 = "SHA256SUMS", "config.json", "model.int8.onnx"
MODELS = ("model.safetensors", "model.onnx")
TEXTS = (CONFIG, "certificate.json", "latency.json", "per_photo.csv", "predict.py", "MODEL_CARD.md")
GOLDEN = "golden"
MAX_TEXT_BYTES, MAX_GOLDEN_BYTES, MAX_GOLDEN_FILES = 64 * 2**20, 2**20, 64
MAX_HEADER_BYTES = 2**20  # beyond the weights' own
REPAIR = "export it again, or fetch it anew"

# What stands in every config, for those who read it without us. The resizing is not in the ONNX file: resampling as
# Pillow does it is no operator.
CONSTANTS = {
    "format": FORMAT,
    "architecture": "unet",
    "resize": {
        "fit": "longer side to image_size, Pillow BILINEAR, top left of a black square of image_size",
        "restore": "logits cut to the fitted size, bilinear between pixel centres to the photo's own size",
    },
    "normalisation": "divide by 255",
    "threshold": 0.5,  # of the probability, a logit of 0; of several classes the likeliest
}


@dataclass(frozen=True)
class Config:
    """What config.json says beside CONSTANTS."""

    init_features: int
    classes: tuple[str, ...]
    image_size: int  # px
    epoch: int
    batch_size: int  # with which val/miou was counted
    precision: str  # the same
    versions: dict[str, str]  # of the libraries that wrote the files

    @property
    def card(self) -> ModelCard:
        return ModelCard(UNetConfig(self.init_features, len(self.classes)), self.classes, self.image_size, self.epoch)


@dataclass(frozen=True)
class Bundle:
    """A folder whose files are those its sums name."""

    folder: Path
    config: Config
    files: tuple[str, ...]

    @property
    def has_int8(self) -> bool:
        return INT8 in self.files


def dump_config(config: Config) -> bytes:
    return (json.dumps(CONSTANTS | asdict(config), indent=1, ensure_ascii=False) + "\n").encode()


def parse_config(data: bytes, where: Path) -> Config:
    """The way back, and strict: every key is known, there and of its type; InputError says which is not."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: not JSON; {REPAIR}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: no JSON object; {REPAIR}")
    names = [field.name for field in fields(Config)]
    for key in raw.keys() ^ {*CONSTANTS, *names}:
        raise InputError(f"{where}: {key}: {'unknown' if key in raw else 'missing'}; {REPAIR}")
    for key, value in CONSTANTS.items():
        if raw[key] != value:
            raise InputError(f"{where}: {key}: {value!r} is all this version knows, got {raw[key]!r}; {REPAIR}")
    try:
        for name in ("init_features", "image_size", "epoch", "batch_size"):
            if type(raw[name]) is not int:
                raise ValueError(f"{name}: a whole number is needed, got {raw[name]!r}")
        if not isinstance(raw["classes"], list):
            raise ValueError(f"classes: a list of names is needed, got {raw['classes']!r}")
        if raw["precision"] not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"precision: got {raw['precision']!r}")
        versions = raw["versions"]
        if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
            raise ValueError("versions: names and versions are needed")
        config = Config(**{name: raw[name] for name in names} | {"classes": tuple(raw["classes"])})
        assert config.card  # its own checks
        TrainConfig(batch_size=config.batch_size)
    except ValueError as error:
        raise InputError(f"{where}: {error}; {REPAIR}") from None
    return config


def format_sums(files: Mapping[str, bytes]) -> bytes:
    """As `sha256sum` writes and `sha256sum -c SHA256SUMS` reads them."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())]
    return "".join(lines).encode()


def open_bundle(folder: Path) -> Bundle:
    """Look at all but the networks: names, kinds and sizes of the files, config, sums. InputError: what is amiss."""
    try:
        return _open(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check the path") from None


def _open(folder: Path) -> Bundle:
    files = _list_files(folder)
    if SUMS not in files:
        raise InputError(f"{folder}: not a bundle, for it has no {SUMS}; `bench export` writes one")
    for name in files:
        if not re.fullmatch(r"golden/[a-z0-9_-]+\.png", name) and name not in (SUMS, INT8, *MODELS, *TEXTS):
            raise InputError(f"{folder / name}: does not belong in a bundle; {REPAIR}")
    for name in (*MODELS, *TEXTS):
        if name not in files:
            raise InputError(f"{folder / name}: is missing; {REPAIR}")
    if sum(name.startswith(GOLDEN) for name in files) > MAX_GOLDEN_FILES:
        raise InputError(f"{folder / GOLDEN}: more than {MAX_GOLDEN_FILES} files; {REPAIR}")
    limits = {name: MAX_GOLDEN_BYTES if name.startswith(GOLDEN) else MAX_TEXT_BYTES for name in files}
    _check_sizes(folder, files, {name: limits[name] for name in files if name not in (INT8, *MODELS)})
    config = parse_config((folder / CONFIG).read_bytes(), folder / CONFIG)
    weight_bytes = (
        4 * compute_num_parameters(config.card.unet) * 1.01 + MAX_HEADER_BYTES
    )  # and statistics of batch norms
    _check_sizes(folder, files, {name: int(weight_bytes) for name in files if name in (INT8, *MODELS)})
    _check_sums(folder, set(files) - {SUMS})
    return Bundle(folder, config, tuple(sorted(files)))


def _list_files(folder: Path) -> dict[str, int]:
    """Names and sizes of all that lies in it, which is plain files, and a folder of them."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    files = {}
    for path in sorted([*folder.iterdir(), *(folder / GOLDEN).glob("*")]):
        name, status = path.relative_to(folder).as_posix(), path.lstat()
        if stat.S_ISREG(status.st_mode):
            files[name] = status.st_size
        elif name != GOLDEN or not stat.S_ISDIR(status.st_mode):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "no plain file"
            raise InputError(f"{path}: is {kind}, which does not belong in a bundle; {REPAIR}")
    return files


def _check_sizes(folder: Path, files: Mapping[str, int], limits: Mapping[str, int]) -> None:
    for name, limit in limits.items():
        if files[name] > limit:
            raise InputError(f"{folder / name}: {files[name]:,} bytes where {limit:,} are the most; {REPAIR}")


def _check_sums(folder: Path, names: set[str]) -> None:
    where = folder / SUMS
    lines = where.read_bytes().decode("utf-8", "replace").splitlines()
    pairs = [re.fullmatch(r"([0-9a-f]{64})  (\S+)", line) for line in lines]
    sums = {pair[2]: pair[1] for pair in pairs if pair}
    if len(sums) < len(lines):
        raise InputError(f"{where}: a line is no sum; {REPAIR}")
    for name in sorted(sums.keys() ^ names):
        raise InputError(f"{where}: {name} is {'not there' if name in sums else 'not in it'}; {REPAIR}")
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sums[name]:
                raise InputError(f"{folder / name}: not what its sum says; {REPAIR}")


def load_network(bundle: Bundle) -> UNet:
    """The U-Net of model.safetensors, which must be the one that the config describes."""
    path = bundle.folder / "model.safetensors"
    model, card = load_model(path)
    if card != bundle.config.card:
        raise InputError(f"{path}: another network than {CONFIG} describes ({card}); {REPAIR}")
    return model


def load_predictor(bundle: Bundle, runtime: str, num_threads: int, device: torch.device) -> Predictor:
    """The bundle's file for one of RUNTIMES, ready for inference: torch's on `device`, the others' on the CPU."""
    name = RUNTIMES[runtime].file
    if RUNTIMES[runtime].library == "torch":
        return make_predictor(load_network(bundle), RUNTIMES[runtime].precision, device)
    if name not in bundle.files:
        raise InputError(f"{bundle.folder}: has no {name}; use another --runtime")
    return open_file((bundle.folder / name).read_bytes(), str(bundle.folder / name), runtime, num_threads)
