"""How fast training and inference are on a GPU: `python -m tests.benchmarks.gpu OUT.json`, from the project's folder.

In:  a file to write, a number of minutes.   Out: that file, whole after every setting; a table.
Knows nothing of how a setting is computed or timed. Runs where only torch, numpy and Pillow are installed; the same
command again goes on where it was. How to read it: docs/gpu.md.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.environment import describe_environment
from catseg.device import name_gpu
from catseg.errors import InputError
from tests.benchmarks.ceiling import Ceiling, measure_ceiling, search_algorithms
from tests.benchmarks.pairs import QUESTIONS, format_clock_ratio, format_pair, measure_clock_ratio, measure_pair
from tests.benchmarks.report import (
    Document,
    add_setting,
    format_document,
    format_entry,
    list_missing,
    load_document,
    save_document,
    set_machine,
)
from tests.benchmarks.rounds import describe_failure, measure_setting, release_all
from tests.benchmarks.setting import CONTENDERS, PRECISIONS, Setting, list_contenders, list_settings, set_tf32

NO_GPU = "no CUDA device here; run it on a machine with an NVIDIA GPU and a torch built for CUDA"

Plan = dict[Setting, list[str]]  # the contenders of each setting, the most telling setting first


class DeviceLostError(RuntimeError):
    """The GPU answers nothing any more in this process; a new process may go on."""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done or out of time, 1 the GPU was lost, 2 a mistake in what was given, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.json", help="figures; what is in it already is not timed again")
    parser.add_argument("--minutes", type=float, default=9, help="no new setting is started after them (9)")
    parser.add_argument("--contenders", metavar="NAMES", help="eager,graphed,tutorial: only these (all)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    deadline = time.monotonic() + 60 * options.minutes
    try:
        plan = make_plan(options.contenders, device)
        document = load_document(options.out)
        set_machine(document, describe_machine(device), options.out)
        save_document(document, options.out)  # a path that cannot be written shows now
        code = measure_until_stopped(document, options.out, device, plan, deadline)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print("", *format_document(document), "", *format_checks(document), sep="\n")
    return code


def make_plan(names: str | None, device: torch.device) -> Plan:
    """All settings with the contenders named, separated by commas, or all; InputError for a name that is none."""
    chosen = frozenset(names.split(",")) if names else frozenset(CONTENDERS)
    if unknown := sorted(chosen - set(CONTENDERS)):
        raise InputError(f"--contenders: {unknown[0]!r} is none of {', '.join(CONTENDERS)}; name some of these")
    plan = {
        setting: [name for name in list_contenders(setting, device) if name in chosen] for setting in list_settings()
    }
    return {setting: contenders for setting, contenders in plan.items() if contenders}


def measure_until_stopped(document: Document, path: Path, device: torch.device, plan: Plan, deadline: float) -> int:
    """The exit code; whatever ends it, the document holds what is done."""
    try:
        measure_all(document, path, device, plan, deadline)
    except DeviceLostError as error:
        print(f"the GPU stopped answering ({error}); the same command goes on with the next setting", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is done stays, the same command goes on", file=sys.stderr)
        return 130
    return 0


def describe_machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on, by name."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        answer = []
    return describe_environment(name_gpu(device), torch.get_num_threads()) | {
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": answer[0] if answer else "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def measure_all(document: Document, path: Path, device: torch.device, plan: Plan, deadline: float) -> None:
    """Fill the document until all of the plan is there or the time is over, and save it after every step."""
    with search_algorithms():
        for precision in PRECISIONS:
            if precision not in document["ceilings"]:
                document["ceilings"][precision] = asdict(measure_precision_ceiling(precision, device))
                save_document(document, path)
        if device.type == "cuda":
            measure_checks(document, path, device)
        missing = list_missing(document, list(plan))
        for number, setting in enumerate(missing, len(plan) - len(missing) + 1):
            if time.monotonic() >= deadline:
                print(f"out of time: {number - 1} of {len(plan)} settings are done; the same command goes on")
                return
            entry = measure_one(document, path, device, setting, plan[setting])
            ceiling = Ceiling(**document["ceilings"][setting.precision])
            print(f"\n{number}/{len(plan)}", *format_entry(entry, ceiling), sep="\n", flush=True)


def measure_one(document: Document, path: Path, device: torch.device, setting: Setting, names: list[str]) -> Document:
    """One setting measured and saved; DeviceLostError, with its reason saved, if nothing can follow it here."""
    lost = None
    try:
        contenders = measure_setting(setting, names, device)
    except Exception as error:  # a contender's own is kept by measure_setting: this came from clearing up after it
        contenders, lost = {name: describe_failure(error) for name in names}, error
    entry = add_setting(document, setting, contenders)
    save_document(document, path)
    if lost is not None:
        raise DeviceLostError(f"{setting}: {str(lost).splitlines()[0]}") from lost
    return entry


def measure_precision_ceiling(precision: str, device: torch.device) -> Ceiling:
    with set_tf32(precision != "float32"):
        ceiling = measure_ceiling(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    release_all(device)
    return ceiling


def measure_checks(document: Document, path: Path, device: torch.device) -> None:
    """Answer the questions that are open and save each answer."""
    checks = document["checks"]
    if "clock" not in checks:
        checks["clock"] = measure_clock_ratio(device)
    for question in QUESTIONS:
        if question not in checks:
            checks[question] = measure_pair(question, device)
        save_document(document, path)
    print(*format_checks(document), sep="\n", flush=True)


def format_checks(document: Document) -> list[str]:
    checks = document["checks"]
    clock = [format_clock_ratio(checks["clock"])] if "clock" in checks else []
    return clock + [format_pair(question, checks[question]) for question in QUESTIONS if question in checks]


if __name__ == "__main__":
    sys.exit(main())
