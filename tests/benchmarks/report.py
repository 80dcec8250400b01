"""The results of a GPU: one JSON file that grows by a setting at a time, and the table made of it.

In:  a path; settings with their contenders' figures.   Out: the file, whole after every setting; lines of text.
Knows nothing of how it is measured.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catseg.errors import InputError
from catseg.files import save_bytes
from catseg.settings import compute_forward_gflop
from tests.benchmarks.ceiling import Ceiling
from tests.benchmarks.roofline import compute_roofline_seconds
from tests.benchmarks.rounds import FAILED, MEASURED
from tests.benchmarks.setting import Setting

FORMAT = "catseg-gpu-1"
KEYS = {"machine", "ceilings", "checks", "settings"}
IDENTITY = ("gpu", "torch", "cuda", "cudnn", "driver", "code")  # figures of unlike ones are not put into one file
MAX_DIFFERENCE = 0.02  # between values (a loss, a share) of contenders that compute the same

Document = dict[str, Any]


def load_document(path: Path) -> Document:
    """What an earlier run has left, or a document without results; InputError if the file is another's."""
    if not path.exists():
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it, or name another file")
        return {"format": FORMAT, "machine": {}, "ceilings": {}, "checks": {}, "settings": []}
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        if missing := KEYS - document.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name another file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: holds something else ({type(error).__name__}: {error}); name a new file") from None
    return document


def save_document(document: Document, path: Path) -> None:
    try:
        save_bytes((json.dumps(document, indent=1) + "\n").encode(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room, or name another file") from None


def set_machine(document: Document, machine: dict[str, str], path: Path) -> None:
    """Note where the figures are from; InputError if there are some of another machine, or other code."""
    for name in IDENTITY:
        before, now = document["machine"].get(name), machine.get(name)
        if document["machine"] and before != now:
            raise InputError(f"{path}: has figures of another {name} ({before}, now {now}); name a new file")
    document["machine"] = document["machine"] or machine


def list_missing(document: Document, settings: list[Setting]) -> list[Setting]:
    """Settings without figures, then those in which a contender failed other than by memory."""
    failed = {
        Setting(**entry["setting"]): any(result["status"] == FAILED for result in entry["contenders"].values())
        for entry in document["settings"]
    }
    return [setting for setting in settings if setting not in failed] + [s for s in settings if failed.get(s)]


def add_setting(document: Document, setting: Setting, contenders: dict[str, dict[str, Any]]) -> Document:
    """The entry with what follows from the figures: FLOPs, the least time; an older one of this setting goes."""
    ceiling = Ceiling(**document["ceilings"][setting.precision])
    training = setting.task == "train"
    gflop = setting.batch_size * compute_forward_gflop(setting.init_features, setting.image_size)
    entry = {
        "setting": asdict(setting),
        "gflop": 3 * gflop if training else gflop,
        "roofline_seconds": compute_roofline_seconds(
            setting.init_features,
            setting.image_size,
            setting.batch_size,
            ceiling,
            bytes_per_number=2 if setting.precision == "bfloat16" else 4,
            training=training,
        ),
        "contenders": contenders,
    }
    others = [other for other in document["settings"] if other["setting"] != entry["setting"]]
    document["settings"] = [*others, entry]
    return entry


def format_document(document: Document) -> list[str]:
    """The machine, its ceilings, and each setting's contenders, the fastest first; at most 120 columns."""
    machine = document["machine"]
    lines = [
        f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, "
        f"torch {machine['torch']}, {machine['date']}"
    ]
    for precision, values in document["ceilings"].items():
        ceiling = Ceiling(**values)
        lines.append(
            f"ceiling, {precision}: matrix product {ceiling.matmul_gflop_per_second / 1e3:.1f} TFLOP/s, "
            f"convolution {ceiling.convolution_gflop_per_second / 1e3:.1f} TFLOP/s, "
            f"copy {ceiling.copy_gb_per_second:.0f} GB/s"
        )
    for entry in document["settings"]:
        lines += ["", *format_entry(entry, Ceiling(**document["ceilings"][entry["setting"]["precision"]]))]
    return lines


def format_entry(entry: Document, ceiling: Ceiling) -> list[str]:
    """A heading and a row per contender. `ceiling` and `roofline` are shares of the best that can be."""
    setting, results = Setting(**entry["setting"]), entry["contenders"]
    least = entry["roofline_seconds"]
    lines = [
        f"{setting}: {entry['gflop']:.1f} GFLOP, at least {least * 1e3:.3f} ms",
        f"  {'':18} {'ms':>9} {'by events':>9} {'photos/s':>9} {'peak MiB':>9} {'TFLOP/s':>8} {'ceiling':>8} "
        f"{'roofline':>8} {'x tutorial':>10}",
    ]
    measured = {name: result for name, result in results.items() if result["status"] == MEASURED}
    tutorial = min((r["seconds"] for name, r in measured.items() if name.startswith("tutorial")), default=None)
    for name, result in sorted(measured.items(), key=lambda pair: pair[1]["seconds"]):
        seconds = result["seconds"]
        rate = entry["gflop"] / seconds
        events = sorted(result["event_seconds"])
        event_text = f"{events[len(events) // 2] * 1e3:.3f}" if events else "-"
        times = f"{tutorial / seconds:.2f}" if tutorial else "-"
        lines.append(
            f"  {name:18} {seconds * 1e3:9.3f} {event_text:>9} {setting.batch_size / seconds:9.1f} "
            f"{result['peak_mib']:9.0f} {rate / 1e3:8.2f} {rate / ceiling.matmul_gflop_per_second:8.1%} "
            f"{least / seconds:8.1%} {times:>10}{format_remark(name, result, measured)}"
        )
    for name, result in results.items():
        if name not in measured:
            lines.append(f"  {name:18} {result['status']}: {result['reason']}"[:120])
    return lines


def format_remark(name: str, result: dict[str, Any], measured: dict[str, dict[str, Any]]) -> str:
    """Timed apart from the others, or a loss that is not the eager step's: then it is another computation."""
    remarks = [" alone"] if result["alone"] else []
    if not name.startswith("tutorial") and "eager" in measured:
        expected = measured["eager"]["value"]
        if not abs(result["value"] - expected) <= MAX_DIFFERENCE * max(1.0, abs(expected)):
            remarks.append(" DIFFERS")
    return "".join(remarks)
