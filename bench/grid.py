"""An experiment file -> its trials; strict, and all of it before the first trial starts.

In:  a YAML file, flags that replace its folders or choose among its trials.   Out: an Experiment.
Knows nothing of files of photos, or of how a trial is run.
"""

import difflib
import itertools
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from bench.trial import CHECKPOINT_EVERY_SECONDS, SETTINGS, Experiment, Halving, Trial
from catseg.dataset import SAME_AS_TRAIN, DataConfig
from catseg.errors import InputError
from catseg.sample import SAMPLE
from catseg.settings import TrainConfig, UNetConfig

MAX_BYTES, MAX_TRIALS = 1_000_000, 10_000
TOP_KEYS = ("experiment", "data", "base", "grid", "seeds", "checkpoint_every_seconds", "search")
MODES = ("full", "halving")  # of a search
HINTS = get_type_hints(UNetConfig) | get_type_hints(TrainConfig)
GRID_KEYS = tuple(name for name in SETTINGS if name != "seed")  # seeds have a key of their own
WORDS = {"None": "null", "True": "true", "False": "false"}  # Python's -> YAML's
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def load_experiment(path: Path, folders: Mapping[str, str | None], only: str | None) -> Experiment:
    """Read and check the whole file. `folders` (train, val, test) replace the file's; `only` keeps some trials."""
    content = _check_keys(_read_yaml(path), "the file", TOP_KEYS, path)
    name = content.get("experiment")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{path}: experiment: a name of letters, digits, - and _ is needed, got {name!r}")
    data = _make_data(content, folders, path)
    base = _check_block(content, "base", GRID_KEYS, path)
    axes = _check_block(content, "grid", GRID_KEYS, path)
    for key in base.keys() & axes.keys():
        raise InputError(f"{path}: {key} stands in base and in grid; keep one")
    axes = {key: _check_axis(f"grid.{key}", values, path) for key, values in axes.items()}
    axes["seed"] = _check_axis("seeds", content.get("seeds", [0]), path)
    if (num_trials := _count(axes)) > MAX_TRIALS:
        raise InputError(f"{path}: {num_trials:,} trials are over {MAX_TRIALS:,}; make the grid smaller")
    settings = {key: _check_type(f"base.{key}", key, value, path) for key, value in base.items()}
    axes = {key: [_check_type(_where(key), key, value, path) for value in values] for key, values in axes.items()}
    varying = tuple(key for key, values in axes.items() if len(values) > 1)
    trials = tuple(
        _make_trial(settings | dict(zip(axes, point, strict=True)), varying, len(data.classes), path)
        for point in itertools.product(*axes.values())
    )
    if len(set(trials)) < len(trials):
        raise InputError(f"{path}: grid: two values of an axis are the same number; keep one")
    search = _read_search(content, trials, path)
    if only:
        trials = _select(trials, only)
        if search is not None and (num_left := _count_settings(trials)) <= search.keep:
            raise InputError(f"--only: leaves {num_left} settings, and search.keep is {search.keep}; choose more")
    return Experiment(str(path), name, data, trials, _read_interval(content, path), search)


def _read_interval(content: dict[str, Any], path: Path) -> float:
    """Not a setting: how often a trial is kept changes nothing of what comes of it."""
    seconds = content.get("checkpoint_every_seconds", CHECKPOINT_EVERY_SECONDS)
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise InputError(f"{path}: checkpoint_every_seconds: a number from 0 is needed, got {seconds!r}")
    return float(seconds)


def _read_search(content: dict[str, Any], trials: Sequence[Trial], path: Path) -> Halving | None:
    """The `search:` block; `mode: full` may keep the other keys for another day."""
    block = _check_block(content, "search", ["mode", *(key.name for key in fields(Halving))], path)
    mode = block.pop("mode", "full" if content.get("search") is None else None)
    if mode not in MODES:
        raise InputError(f"{path}: search.mode: unknown {mode!r}; choose {', '.join(MODES)}")
    for key, value in block.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{path}: search.{key}: a whole number from 1 is needed, got {value!r}")
    search = Halving(**block)
    if mode == "full":
        return None
    if len({trial.train.epochs for trial in trials}) > 1:
        raise InputError(f"{path}: grid.epochs: settings of unequal length cannot be halved; keep one, or mode: full")
    epochs, num_settings = trials[0].train.epochs, _count_settings(trials)
    if search.first_epochs >= epochs:
        raise InputError(
            f"{path}: search.first_epochs: {search.first_epochs} is not below the {epochs} epochs of a trial"
        )
    if search.keep >= num_settings:
        raise InputError(
            f"{path}: search.keep: {search.keep} of {num_settings} settings: nothing would be stopped; "
            "lower it, or mode: full"
        )
    return search


class _StrictLoader(yaml.SafeLoader):
    """YAML without what surprises: no anchors, no aliases (they can explode), no merges, no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is a word"
            elif key.tag == "tag:yaml.org,2002:merge":
                problem = "merges (<<) are not read"
            elif key.value in seen:
                problem = f"{key.value} stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such experiment file; check --grid")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: over 1 MB; an experiment file is a page of text")
    try:
        return _StrictLoader(path.read_text("utf-8")).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: {error.problem}; mend the YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not YAML ({str(error).splitlines()[0]}); mend it") from None


def _check_keys(mapping: Any, where: str, known: Iterable[str], path: Path) -> dict[str, Any]:
    """A mapping with known keys only; a wrong key is answered with the nearest right one."""
    if not isinstance(mapping, dict):
        raise InputError(f"{path}: {where}: `key: value` lines are needed, got {mapping!r}")
    known = list(known)
    for key in mapping:
        if key == "seed":
            raise InputError(f"{path}: {where}: seeds have a key of their own, beside grid; write seeds: [0, 1, 2]")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"{path}: {where}: unknown key {key!r}; {hint}")
    return mapping


def _check_block(content: dict[str, Any], name: str, known: Iterable[str], path: Path) -> dict[str, Any]:
    """The block of that name; one that is absent or has no lines is empty."""
    return {} if content.get(name) is None else _check_keys(content[name], name, known, path)


def _where(key: str) -> str:
    return "seeds" if key == "seed" else f"grid.{key}"


def _check_axis(where: str, values: Any, path: Path) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: {where}: a list with at least one value is needed, got {values!r}")
    if len({repr(value) for value in values}) < len(values):
        raise InputError(f"{path}: {where}: a value stands twice in {values}; keep one")
    return values


def _check_type(where: str, key: str, value: Any, path: Path) -> Any:
    """The value, if it is of the setting's own type; whole numbers pass as floats."""
    hint = HINTS[key]
    if get_origin(hint) is UnionType:  # `float | None`: null is off
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        if isinstance(value, bool) and "on" in get_args(hint):  # YAML 1.1 reads the words on and off so
            value = "on" if value else "off"
        if value in get_args(hint):
            return value
        raise InputError(f"{path}: {where}: unknown {value!r}; choose {', '.join(get_args(hint))}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    if type(value) is hint:
        return value
    advice = "true or false is needed" if hint is bool else f"a number of type {hint.__name__} is needed"
    number = _parse_number(value) if isinstance(value, str) else None
    if number is not None and hint is float:
        mantissa, exponent = f"{number:e}".split("e")
        advice = f"YAML reads this as text; write {float(mantissa)}e{int(exponent):+d}"
    elif number is not None and number == int(number):
        advice = f"YAML reads this as text; write {int(number)}"
    raise InputError(f"{path}: {where}: got {value!r}; {advice}")


def _parse_number(text: str) -> float | None:
    """The finite number that a text spells, if it does."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _make_data(content: dict[str, Any], folders: Mapping[str, str | None], path: Path) -> DataConfig:
    """The `data:` block. Its relative folders start at the file; those of flags at the working folder."""
    raw = _check_block(content, "data", [field.name for field in fields(DataConfig)], path)
    for role in ("train", "val", "test"):
        value = raw.get(role)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{path}: data.{role}: a folder, `{SAMPLE}` or null is needed, got {value!r}")
        if value is not None and value != SAMPLE and not (role == "val" and value == SAME_AS_TRAIN):
            raw[role] = str(path.parent / value)
    if "val_fraction" in raw and type(raw["val_fraction"]) is not float:
        raise InputError(f"{path}: data.val_fraction: a share such as 0.25 is needed, got {raw['val_fraction']!r}")
    if "classes" in raw:
        classes = raw["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{path}: data.classes: a list of names is needed, got {classes!r}")
        raw["classes"] = tuple(classes)
    raw |= {role: folder for role, folder in folders.items() if folder is not None}
    try:
        return DataConfig(**raw)
    except ValueError as error:
        raise InputError(f"{path}: data.{error}") from None


def _count(axes: dict[str, list[Any]]) -> int:
    count = 1
    for values in axes.values():
        count *= len(values)
    return count


def _count_settings(trials: Iterable[Trial]) -> int:
    return len({trial.setting for trial in trials})


def _make_trial(settings: dict[str, Any], varying: tuple[str, ...], num_classes: int, path: Path) -> Trial:
    try:
        return Trial(
            UNetConfig(num_classes=num_classes, **_keep(settings, UNetConfig)),
            TrainConfig(**_keep(settings, TrainConfig)),
            varying,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _keep(settings: dict[str, Any], config: type) -> dict[str, Any]:
    names = {field.name for field in fields(config)}
    return {key: value for key, value in settings.items() if key in names}


def _select(trials: tuple[Trial, ...], only: str) -> tuple[Trial, ...]:
    """The trials that match `loss=dice,lr=0.001`; one setting named twice means either value."""
    wanted: dict[str, set[str]] = {}
    for term in only.split(","):
        key, equals, value = term.strip().partition("=")
        if not equals or key not in SETTINGS:
            raise InputError(f"--only: {term!r} is not setting=value; settings are {', '.join(SETTINGS)}")
        known = {_canonical(trial.settings[key]) for trial in trials}
        if _canonical(value) not in known:
            raise InputError(f"--only: no trial has {key}={value}; this grid has {', '.join(sorted(known))}")
        wanted.setdefault(key, set()).add(_canonical(value))
    chosen = [t for t in trials if all(_canonical(t.settings[key]) in values for key, values in wanted.items())]
    if not chosen:
        raise InputError(f"--only: no trial matches {only}; `bench plan` lists them")
    return tuple(chosen)


def _canonical(value: Any) -> str:
    """One spelling: 0.001, 1e-3 and 1.0e-3 are the same, and so are null and None, of which trials' names are made."""
    number = _parse_number(str(value))
    return WORDS.get(str(value), str(value)) if number is None else repr(number)
