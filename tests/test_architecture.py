"""The map is the code's: who may import whom, what no file may do, how large a room may grow.

A test that fails here asks a question (does this import, call or second noun belong there?), and
the answer goes into the tables below or, more often, into another room.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each room may import beside the standard library. A new room needs a row.
ALLOWED = {
    "catseg": set(),
    "catseg.errors": set(),
    "catseg.files": {"catseg.errors"},
    "catseg.photo": {"numpy", "PIL", "catseg.errors"},
    "catseg.labelme": {"numpy", "PIL", "catseg.errors", "catseg.photo"},
    "catseg.sample": {"numpy", "PIL", "catseg.photo"},
    "catseg.folder": {"numpy", "catseg.errors", "catseg.labelme", "catseg.photo", "catseg.sample"},
    "catseg.duplicates": {"numpy", "PIL", "imagehash", "catseg.photo"},
    "catseg.dataset": {"numpy", "PIL", "catseg.duplicates", "catseg.errors", "catseg.folder", "catseg.labelme"}
    | {"catseg.photo", "catseg.sample"},
    "catseg.outline": {"contourpy", "numpy", "PIL", "scipy", "shapely", "catseg.labelme", "catseg.photo"},
    "catseg.survey": {"numpy", "catseg.duplicates", "catseg.errors", "catseg.folder", "catseg.labelme"}
    | {"catseg.outline", "catseg.photo"},
    "catseg.voc": {"numpy", "PIL", "catseg.errors", "catseg.files", "catseg.folder", "catseg.labelme", "catseg.photo"},
    "catseg.archive": {"catseg.errors"},
    "catseg.server": {"pooch", "requests", "urllib3", "catseg.errors"},
    "catseg.pets": {"numpy", "catseg.archive", "catseg.errors", "catseg.files", "catseg.folder", "catseg.photo"}
    | {"catseg.server", "catseg.voc"},
    "catseg.settings": set(),
    "catseg.upsample": {"torch"},
    "catseg.unet": {"torch", "catseg.settings", "catseg.upsample"},
    "catseg.optimizer": {"torch", "catseg.settings"},
    "catseg.device": {"torch", "catseg.errors"},
    "catseg.losses": {"torch", "catseg.photo"},
    "catseg.metrics": {"numpy", "torch", "catseg.photo"},
    "catseg.folding": {"torch"},
    "catseg.inference": {"numpy", "torch", "catseg.dataset", "catseg.device", "catseg.folding", "catseg.losses"}
    | {"catseg.metrics", "catseg.photo"},
    "catseg.augment": {"kornia", "numpy", "torch", "catseg.inference"},
    "catseg.average": {"torch", "catseg.unet"},
    "catseg.growth": {"numpy", "torch"},
    "catseg.schedule": {"torch", "catseg.settings"},
    "catseg.supervision": {"torch", "catseg.losses", "catseg.unet"},
    "catseg.train": {"numpy", "torch", "catseg.augment", "catseg.average", "catseg.dataset", "catseg.device"}
    | {"catseg.growth", "catseg.inference", "catseg.losses", "catseg.metrics", "catseg.optimizer", "catseg.schedule"}
    | {"catseg.settings", "catseg.supervision", "catseg.unet"},
    "catseg.checkpoint": {"torch", "safetensors", "catseg.errors", "catseg.optimizer", "catseg.settings"}
    | {"catseg.train", "catseg.unet"},
    "catseg.predict": {"torch", "catseg.checkpoint", "catseg.errors", "catseg.files", "catseg.folder", "catseg.labelme"}
    | {"catseg.inference", "catseg.metrics", "catseg.outline", "catseg.photo"},
    "catseg.runtimes": {
        "numpy",
        "torch",
        "catseg.device",
        "onnxruntime",
        "openvino",
        "catseg.errors",
        "catseg.inference",
        "catseg.photo",
    },
    "catseg.onnx_file": {
        "numpy",
        "onnx",
        "torch",
        "catseg.folding",
        "catseg.runtimes",
        "catseg.settings",
        "catseg.unet",
    },
    "catseg.onnx_check": {"onnx", "catseg.errors", "catseg.onnx_file", "catseg.runtimes"},
    "catseg.quantisation": {"onnx", "onnxruntime", "catseg.photo", "catseg.runtimes"},
    "catseg.standalone": {"numpy", "onnxruntime", "PIL"},  # leaves the house: nothing of ours
    "catseg.golden": {"numpy", "torch", "catseg.checkpoint", "catseg.errors", "catseg.inference", "catseg.photo"}
    | {"catseg.sample"},
    "catseg.bundle": {
        "torch",
        "catseg.checkpoint",
        "catseg.errors",
        "catseg.inference",
        "catseg.runtimes",
        "catseg.settings",
    }
    | {"catseg.unet"},
    "bench": set(),
    "bench.trial": {"catseg.dataset", "catseg.settings"},
    "bench.grid": {"yaml", "bench.trial", "catseg.dataset", "catseg.errors", "catseg.sample", "catseg.settings"},
    "bench.environment": {"catseg", "catseg.device"},
    "bench.run": {"numpy", "torch", "bench.environment", "bench.trial", "catseg.checkpoint", "catseg.dataset"}
    | {"catseg.device", "catseg.errors", "catseg.inference", "catseg.metrics", "catseg.photo", "catseg.settings"}
    | {"catseg.train", "catseg.unet"},
    "bench.stops": set(),
    "bench.processes": {"bench.stops"},
    "bench.engine": {
        "torch",
        "bench.environment",
        "bench.processes",
        "bench.run",
        "bench.table",
        "bench.stops",
        "bench.trial",
        "catseg.dataset",
        "catseg.device",
    },
    "bench.cluster": {"bench.environment", "bench.trial", "catseg.errors"},
    "bench.ray_engine": {"ray", "torch", "bench.cluster", "bench.engine", "bench.environment", "bench.processes"}
    | {"bench.run", "bench.trial", "catseg.checkpoint", "catseg.dataset", "catseg.errors"},
    "bench.counts": {"numpy"},
    "bench.journal": {"numpy", "bench.counts", "bench.trial"},
    "bench.claim": {"bench.counts", "bench.journal", "bench.trial", "catseg.errors", "catseg.files"},
    "bench.view": set(),
    "bench.store": {"bench.claim", "bench.journal", "bench.view", "catseg.errors"},
    "bench.contents": {"bench.description", "bench.journal", "bench.trial"},
    "bench.description": {"bench.compare", "bench.table", "bench.trial"},
    "bench.search": {"bench.compare", "bench.terminal", "bench.trial"},
    "bench.standing": {"bench.compare", "bench.journal", "bench.trial"},
    "bench.tracking": {"mlflow", "PIL", "bench.contents", "bench.description", "bench.journal"}
    | {"bench.standing", "bench.store", "bench.trial", "bench.view", "catseg.errors"},
    "bench.mirror": {"bench.claim", "bench.journal", "bench.processes", "bench.standing", "bench.tracking"},
    "bench.statistics": {"numpy", "scipy"},
    "bench.compare": {"numpy", "bench.environment", "bench.statistics", "bench.trial"},
    "bench.scoring": {"numpy", "bench.claim", "bench.compare", "bench.counts", "bench.journal", "bench.run"}
    | {"bench.statistics", "bench.trial", "catseg.dataset", "catseg.photo"},
    "bench.definitions": {"numpy", "rich"},
    "bench.curves": {"numpy", "bench.compare", "bench.journal"},
    "bench.gallery": {"numpy", "PIL", "bench.compare", "bench.curves", "bench.journal", "catseg.checkpoint"}
    | {"catseg.dataset", "catseg.device", "catseg.errors", "catseg.folder", "catseg.inference", "catseg.photo"},
    "bench.page": {"bench.compare", "bench.statistics", "bench.trial"},
    "bench.report": {
        "plotly",
        "bench.trial",
        "bench.compare",
        "bench.curves",
        "bench.gallery",
        "bench.journal",
        "bench.page",
    }
    | {"catseg.errors", "catseg.files", "catseg.photo"},
    "bench.plan": {"bench.environment", "bench.journal", "bench.run", "bench.trial", "catseg.dataset"}
    | {"catseg.settings"},
    "bench.jobs": {"numpy", "torch", "bench.engine", "bench.environment", "bench.plan", "bench.processes", "bench.run"}
    | {"bench.stops", "bench.trial", "catseg.dataset", "catseg.device", "catseg.settings"},
    "bench.driver": {"torch", "bench.claim", "bench.environment", "bench.journal", "bench.mirror"}
    | {"bench.plan", "bench.run", "bench.stops", "bench.trial", "catseg.dataset"},
    "bench.terminal": {"rich", "bench.plan", "bench.trial", "catseg.dataset"},
    "bench.table": {"rich", "bench.compare", "bench.environment", "bench.statistics", "bench.terminal"}
    | {"bench.trial"},
    "bench.rules": {"bench.trial", "catseg.errors"},
    "bench.session": {"rich", "bench.claim", "bench.compare", "bench.driver", "bench.engine", "bench.grid"}
    | {"bench.jobs", "bench.journal", "bench.mirror", "bench.plan", "bench.ray_engine", "bench.report", "bench.rules"}
    | {"bench.scoring", "bench.search", "bench.standing"}
    | {"bench.stops", "bench.store", "bench.table", "bench.terminal", "bench.trial", "catseg.dataset"}
    | {"catseg.device", "catseg.errors", "catseg.files"},
    "bench.comparison": {"rich", "bench.compare", "bench.definitions", "bench.journal", "bench.report", "bench.scoring"}
    | {"bench.table", "bench.standing", "bench.terminal", "catseg.errors", "catseg.files"},
    "bench.overview": {"rich", "bench.environment", "bench.grid", "bench.journal", "bench.mirror", "bench.plan"}
    | {"bench.search", "bench.store", "bench.terminal", "bench.trial", "catseg.dataset", "catseg.errors"},
    "bench.data": {"rich", "catseg.duplicates", "catseg.errors", "catseg.files", "catseg.folder", "catseg.labelme"}
    | {"catseg.outline", "catseg.photo", "catseg.sample", "catseg.survey", "catseg.voc"},
    "bench.download": {"rich", "bench.data", "catseg.errors", "catseg.folder", "catseg.pets"} | {"catseg.server"},
    "bench.label": {"catseg.errors", "catseg.folder", "catseg.labelme", "catseg.photo"},
    "bench.speed": {"catseg.errors"},
    "bench.prediction": {"rich", "torch", "bench.registry", "catseg.bundle", "catseg.checkpoint", "catseg.device"}
    | {"catseg.errors", "catseg.inference", "catseg.predict", "catseg.runtimes", "catseg.unet"},
    "bench.certificate": {"numpy", "torch", "catseg.dataset", "catseg.inference", "catseg.metrics", "catseg.runtimes"},
    "bench.model_card": {"catseg.bundle"},
    "bench.latency": {"numpy", "torch", "catseg.inference", "catseg.photo", "catseg.unet"},
    "bench.registry": {"mlflow", "numpy", "onnx", "bench.store", "bench.tracking", "catseg.errors"},
    "bench.export": {"numpy", "rich", "torch", "bench.certificate", "bench.comparison", "bench.environment"}
    | {"bench.journal", "bench.latency", "bench.model_card", "bench.registry", "bench.scoring", "bench.standing"}
    | {"bench.trial", "catseg", "catseg.bundle", "catseg.checkpoint", "catseg.dataset", "catseg.errors"}
    | {"catseg.files", "catseg.golden", "catseg.inference", "catseg.metrics", "catseg.onnx_file"}
    | {"catseg.quantisation", "catseg.runtimes", "catseg.unet"},
    "bench.verification": {"rich", "torch", "catseg.bundle", "catseg.dataset", "catseg.device", "catseg.errors"}
    | {"catseg.golden", "catseg.inference", "catseg.metrics", "catseg.onnx_check", "catseg.runtimes"},
    "bench.manners": {"typer", "catseg.errors"},
    "bench.data_commands": {"typer", "bench.data", "bench.download", "bench.label", "bench.manners"},
    "bench.cli": {"typer", "bench.comparison", "bench.data_commands", "bench.export", "bench.manners", "bench.overview"}
    | {
        "bench.prediction",
        "bench.rules",
        "bench.session",
        "bench.speed",
        "bench.store",
        "bench.verification",
        "catseg.errors",
    },
}

# Libraries that live in one room, so that another can take their place.
ONLY_IN = {
    "mlflow": {"bench.registry", "bench.tracking"},
    "typer": {"bench.cli", "bench.data_commands", "bench.manners"},
    "yaml": {"bench.grid"},
    "ray": {"bench.ray_engine"},
    "safetensors": {"catseg.checkpoint"},
    "imagehash": {"catseg.duplicates"},
    "kornia": {"catseg.augment"},
    "contourpy": {"catseg.outline"},
    "shapely": {"catseg.outline"},
    "pooch": {"catseg.server"},
    "requests": {"catseg.server"},
    "plotly": {"bench.report"},
}

# What is started in a moment: none of these rooms imports torch or mlflow at its start, directly or through ours.
# A function that cannot answer without imports them itself.
NO_WAITING = [
    "bench.cli",
    "bench.comparison",
    "bench.data",
    "bench.download",
    "bench.label",
    "bench.overview",
    "catseg.settings",
]

FORBIDDEN_IMPORTS = {"labelme", "pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "torch.load", "torch.save", "os.system", "os.popen", "numpy.load"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "core", "misc"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Rooms of catseg that a machine which only trains does without, and their libraries.
BESIDE_TRAINING = {"catseg.outline", "catseg.survey", "catseg.server", "catseg.pets"} | {
    "catseg.onnx_file", "catseg.onnx_check", "catseg.quantisation", "catseg.standalone"
}  # fmt: skip

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("catseg", "bench")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text("utf-8")) for module, path in FILES.items()}

each_module = pytest.mark.parametrize("module", FILES)


def list_imports(module: str, at_start: bool = False) -> set[str]:
    """Our rooms by their full names, others by their first. Imports within functions count, unless `at_start`."""
    found: set[str] = set()
    for node in TREES[module].body if at_start else ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            ours = [part for part in (name, name.rpartition(".")[0]) if part in FILES]
            found.add(ours[0] if ours else name.partition(".")[0])
    return found - set(sys.stdlib_module_names) | found & FORBIDDEN_IMPORTS


def name_call(call: ast.Call, aliases: dict[str, str]) -> str:
    """`torch.load` for torch.load(...), np.load(...) as numpy.load(...)."""
    name = ast.unparse(call.func)
    first, dot, rest = name.partition(".")
    return f"{aliases.get(first, first)}{dot}{rest}"


@each_module
def test_a_room_imports_only_what_its_row_allows(module):
    assert module in ALLOWED, f"{module} is a new room: write down what it may import"
    excess = list_imports(module) - ALLOWED[module]
    assert not excess, f"{module} imports {', '.join(sorted(excess))}"


def test_the_table_of_imports_has_no_row_too_many():
    assert set(ALLOWED) == set(FILES)


@pytest.mark.parametrize(("library", "rooms"), ONLY_IN.items())
def test_a_library_with_one_room_stays_in_it(library, rooms):
    assert [module for module in FILES if library in list_imports(module) and module not in rooms] == []


def test_catseg_never_imports_bench():
    offenders = [m for m in FILES if m.startswith("catseg") and any(i.startswith("bench") for i in list_imports(m))]
    assert offenders == []


def test_imports_have_no_cycle():
    imports = {module: list_imports(module) & set(FILES) for module in FILES}
    while imports:
        leaves = {module for module, needs in imports.items() if not needs & imports.keys()}
        assert leaves, f"a cycle among {', '.join(sorted(imports))}"
        imports = {module: needs for module, needs in imports.items() if module not in leaves}


def test_nobody_imports_what_runs_the_code_of_a_file():
    assert [module for module in FILES if list_imports(module) & FORBIDDEN_IMPORTS] == []


@each_module
def test_nobody_calls_what_runs_the_code_of_a_file_or_a_shell(module):
    aliases = {
        alias.asname or alias.name: f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for call in (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)):
        where, name = f"{module}:{call.lineno}", name_call(call, aliases)
        assert name not in FORBIDDEN_CALLS, f"{where}: {name}"
        for keyword in call.keywords:
            assert keyword.arg != "shell", f"{where}: a shell"
            assert keyword.arg != "allow_pickle", f"{where}: a pickle"
        if name.startswith("yaml.") and "load" in name:
            assert ast.unparse(call.args[1]) == "_StrictLoader", f"{where}: YAML read by a lax loader"


def test_the_strict_loader_is_a_safe_loader():
    classes = [node for node in ast.walk(TREES["bench.grid"]) if isinstance(node, ast.ClassDef)]
    assert ["yaml.SafeLoader"] in [[ast.unparse(base) for base in node.bases] for node in classes]


@each_module
def test_a_module_says_what_comes_in_what_goes_out_and_what_it_knows_nothing_of(module):
    docstring = ast.get_docstring(TREES[module]) or ""
    assert docstring, f"{module} has no docstring"
    if "." not in module:  # a package's own file: one line
        return
    assert "In:" in docstring and "Out:" in docstring
    assert module == "bench.cli" or "Knows nothing of" in docstring  # a command knows where everything is


def test_no_file_has_a_name_that_says_nothing():
    assert [str(path) for path in FILES.values() if path.stem in VAGUE_NAMES] == []


def test_folders_are_one_level_deep():
    assert [str(path) for path in FILES.values() if len(path.relative_to(ROOT).parts) > 2] == []


@each_module
def test_a_file_or_function_holds_one_noun(module):
    num_lines = len(FILES[module].read_text("utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{module} has {num_lines} lines: which second noun lives in it?"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{module}.{node.name} has {num_lines} lines"


CATSEG_ALONE = """
import importlib, sys

sys.modules |= dict.fromkeys(sys.argv[1].split(","))  # None: an import fails, and torch's own question is answered
for module in sys.argv[2:]:
    importlib.import_module(module)

import torch
from catseg.dataset import read_pairs
from catseg.folder import Pair
from catseg.sample import draw_photo
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import train
from catseg.unet import make_unet

pairs = [Pair(str(number), lambda number=number: draw_photo(number)) for number in range(4)]
photos = read_pairs(pairs, [32])[32]
config = TrainConfig(image_size=32, epochs=1, batch_size=2)
for epoch in train(make_unet(UNetConfig(2), 0), photos, photos, config, torch.device("cpu")):
    print(epoch.number)
"""


def test_catseg_trains_where_only_torch_numpy_pillow_and_safetensors_are_installed():
    training = {"torch", "numpy", "PIL", "safetensors"}
    modules = [m for m in FILES if m.startswith("catseg") and m not in BESIDE_TRAINING]
    absent = set().union(*ALLOWED.values()) - set(FILES) - training | {"bench"}
    command = [sys.executable, "-c", CATSEG_ALONE, ",".join(absent), *modules]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # four tiny photos: two threads would wait for each other
    process = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "1\n"), process.stderr


def list_loaded_rooms(module: str) -> set[str]:
    """The rooms that importing this one loads, itself among them."""
    loaded: set[str] = set()
    waiting = {module}
    while waiting:
        room = waiting.pop()
        loaded.add(room)
        waiting |= (list_imports(room, at_start=True) & set(FILES)) - loaded
    return loaded


@pytest.mark.parametrize("module", NO_WAITING)
def test_who_starts_in_a_moment_waits_for_neither_torch_nor_mlflow(module):
    slow = [room for room in list_loaded_rooms(module) if list_imports(room, at_start=True) & {"torch", "mlflow"}]
    assert slow == []


def test_the_command_line_waits_for_neither_torch_nor_mlflow():
    script = "import bench.cli, sys; print(*sorted({'torch', 'mlflow', 'numpy', 'PIL', 'yaml'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout.strip()) == (0, ""), process.stderr
