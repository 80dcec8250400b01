"""A workplace for the harness's tests: tiny photos, tiny grids, MLflow's store made once, real `bench` processes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.servers import ask, chromium, free_port, start_server

__all__ = ["ask", "chromium", "free_port", "start_server"]  # fixtures, for pytest to find here

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before anything imports mlflow

BENCH = Path(sys.executable).with_name("bench")

TINY_BASE = "{init_features: 2, image_size: 32, epochs: 2, batch_size: 4}"

# The grid of the `finished` folder: a trial that overflows at once, a good one and a poor one.
GRID = """
experiment: tiny
data: {train: photos, val: val}
base: {init_features: 4, image_size: 32, epochs: 8, batch_size: 2}
grid: {lr: [1.0e+30, 0.03, 0.0001]}
"""


@pytest.fixture(scope="session", autouse=True)
def plain_environment():
    """No setting of the user's reaches a test; one thread per worker: two would wait for each other's cores."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        for name in ("FORCE_COLOR", "COLUMNS", "GIT_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """The product sets MLflow's defaults in the environment; the next test shall not inherit them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="session")
def write_photos():
    """A Labelme folder: `count` photos of 40 x 40, each with a bright rectangle that its annotation calls a cat."""

    def write(folder, count=6, seed=0):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        for number in range(count):
            photo_HW3 = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            left, top = rng.integers(0, 18, 2).tolist()
            photo_HW3[top : top + 22, left : left + 22] = (240, 150, 60)
            Image.fromarray(photo_HW3).save(folder / f"cat{number}.png")
            shape = {"label": "cat", "shape_type": "rectangle", "points": [[left, top], [left + 21, top + 21]]}
            annotation = {"version": "5.4.1", "imagePath": f"cat{number}.png", "imageData": None, "shapes": [shape]}
            annotation |= {"imageHeight": 40, "imageWidth": 40}
            (folder / f"cat{number}.json").write_text(json.dumps(annotation))
        return folder

    return write


@pytest.fixture(scope="session")
def template_store(tmp_path_factory):
    """MLflow's database as MLflow makes it: seconds to make, nothing to copy."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow's own libraries warn of while they load
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_photos):
    """An empty working folder with six photos in `photos`, and it is the current one."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    return tmp_path


@pytest.fixture
def tracked_workplace(workplace, template_store):
    """The same, with an empty MLflow store in it."""
    shutil.copy(template_store, workplace / "mlflow.db")
    return workplace


@pytest.fixture
def write_grid(workplace):
    """grid.yaml in the workplace: two trials of two epochs, or what the test wants."""

    def write(grid="loss: [dice, bce_dice]", base=TINY_BASE, data="{train: photos}", seeds="[0]", name="tiny"):
        path = workplace / "grid.yaml"
        path.write_text(f"experiment: {name}\ndata: {data}\nbase: {base}\ngrid: {{{grid}}}\nseeds: {seeds}\n")
        return path

    return write


@pytest.fixture
def bench():
    """The `bench` command within this process: exit_code, stdout, stderr. A traceback fails the test."""
    from typer.testing import CliRunner

    from bench.cli import app

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def start_bench():
    """A real `bench` process in a session of its own; whatever is left of it dies with the test."""
    processes = []

    def start(*arguments, **options):
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        } | options
        process = subprocess.Popen([BENCH, *arguments], **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.fixture(scope="session")
def wait_until():
    """Poll until something holds; the limit is for a test that would hang, not a measurement."""

    def wait(condition, limit_s=120.0):
        end = time.monotonic() + limit_s
        while not (answer := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)
        return answer

    return wait


@pytest.fixture(scope="session")
def list_session():
    """The living processes that a process with a session of its own has started, itself included."""

    def list_pids(leader):
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has just ended
                continue
            if int(session) == leader and state not in "ZX":
                pids.append(int(stat.parent.name))
        return pids

    return list_pids


@pytest.fixture(scope="session")
def list_runs(template_store):
    """All runs of one experiment in a folder's MLflow store, the first one first."""
    from mlflow import MlflowClient

    def list_them(folder, experiment="tiny"):
        client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        found = client.get_experiment_by_name(experiment)
        return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []

    return list_them


@pytest.fixture(scope="session")
def read_events():
    """What the journal says happened in the trials of one experiment, by the trial's folder name."""

    def read(folder, experiment="tiny"):
        files = sorted((folder / "mlruns/journal" / experiment).glob("*/events.jsonl"))
        return {file.parent.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}

    return read


@pytest.fixture(scope="session")
def finished(tmp_path_factory, write_photos):
    """A folder in which `bench run` has run GRID with --test, in a process of its own. Read it, do not write there.

    `output` is what it printed, as a pipe sees it.
    """
    folder = tmp_path_factory.mktemp("finished")
    for name, count, seed in (("photos", 8, 0), ("val", 4, 1), ("test", 3, 2)):
        write_photos(folder / name, count, seed)
    (folder / "grid.yaml").write_text(GRID)
    process = subprocess.run(
        [BENCH, "run", "--grid", "grid.yaml", "--test", "test"], cwd=folder, capture_output=True, text=True, check=False
    )
    (folder / "output").write_text(process.stdout)
    (folder / "errors").write_text(process.stderr)
    (folder / "exit_code").write_text(str(process.returncode))
    return folder


@pytest.fixture
def finished_copy(finished, tmp_path, monkeypatch, template_store):
    """The finished folder's photos, grid and journal with an empty MLflow store; to be written in."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("mlflow.db", "artifacts"))
    shutil.copy(template_store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def find_ranking():
    """The rows of the ranking in a run's output, each as its cells."""

    def find(output):
        table = output.partition("Machine:")[0].rpartition("\n\n")[2]
        return [line.split() for line in table.splitlines() if line.split()[0].isdecimal()]

    return find


@pytest.fixture(scope="session")
def read_board():
    """read_board(folder): the leaderboard of an experiment's journal."""
    from bench.standing import read_standing

    return lambda folder: read_standing(folder).board


@pytest.fixture
def cats(tmp_path, monkeypatch, write_labelme_folder):
    """A working folder with three outlined cats in `cats` and its labels.txt; nothing is wrong with them."""
    monkeypatch.chdir(tmp_path)
    write_labelme_folder(tmp_path / "cats", num=3)
    Path("labels.txt").write_text("__ignore__\n_background_\ncat\n")
    return tmp_path / "cats"


class _NoMirror:
    """MLflow has tests of its own; the driver only tells of what changed."""

    def __init__(self):
        self.told = set()

    def notify(self, folder):
        self.told.add(folder)

    def pump(self):
        pass


@pytest.fixture(scope="session")
def silent_mirror():
    """silent_mirror(): what the driver tells of changes to where nothing is sent; `told` is what it heard."""
    return _NoMirror


@pytest.fixture
def drive(workplace, write_grid):
    """drive(**grid): the driver at work on a grid, as (trial, event) pairs."""

    from bench.claim import make_experiment_folder
    from bench.driver import run_pending
    from bench.engine import LocalEngine
    from bench.grid import load_experiment
    from bench.plan import make_plan
    from bench.stops import Stop
    from catseg.dataset import load_data

    def start(mirror=None, stop=None, engine_class=LocalEngine, retry=(), rerun=False, jobs=1, **grid):
        experiment = load_experiment(write_grid(**grid), {}, None)
        data = load_data(experiment.data, [trial.train.image_size for trial in experiment.trials])
        folder = make_experiment_folder("tiny")
        plan = make_plan(experiment, data, folder, "cpu", retry, rerun)
        with closing(engine_class(data.sets, "cpu", jobs)) as engine:
            yield from run_pending(experiment, data, plan, folder, engine, mirror or _NoMirror(), stop or Stop())

    return start


@pytest.fixture(scope="session")
def hash_weights():
    """sha256 of what every trial of an experiment left, by its key."""

    def compute(experiment_folder=Path("mlruns/journal/tiny")):
        from bench.journal import list_folders

        return {
            key: [
                hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("best", "last")
            ]
            for key, folder in list_folders(experiment_folder).items()
        }

    return compute


@pytest.fixture(scope="session")
def bundle(finished, tmp_path_factory):
    """What `bench export --int8` makes of the finished folder. Read it, do not write there."""
    out = tmp_path_factory.mktemp("bundles") / "cats"
    command = [BENCH, "export", "--out", out, "--int8"]
    process = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return out
