"""Trials on the hosts of a Ray cluster end as they do here, whatever becomes of a host, a worker or the driver."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.cluster import (
    LOSSES,
)
from bench.journal import list_folders, read_history, read_lines, read_result
from bench.run import Task
from bench.trial import (
    Checkpoint,
    EpochDone,
    Failed,
    Finished,
    Queued,
    Retried,
    Started,
    StepDone,
    Stopped,
    TrialResult,
)
from catseg.dataset import DataConfig, load_data
from tests.bench.test_engine import CLASSES, make_trial

ROOT = Path(__file__).parents[2]
FOLDER = Path("mlruns/journal/tiny")
EIGHT = {
    "grid": "loss: [dice, bce_dice], lr: [0.01, 0.003], batch_size: [2, 4]",
    "base": "{init_features: 2, image_size: 32, epochs: 3}",
}
LONG = {
    "grid": "loss: [dice]",
    "base": "{init_features: 2, image_size: 32, epochs: 150, batch_size: 4}",
    "name": "tiny\ncheckpoint_every_seconds: 0",
}
GRID = """
experiment: tiny
data: {{train: photos}}
base: {{init_features: 2, image_size: 32, epochs: {epochs}, batch_size: 2}}
grid: {{lr: {rates}}}
checkpoint_every_seconds: 0
"""
HOST = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 150 * 2**20}

pytestmark = pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning")


# --- without Ray ---------------------------------------------------------------------------------------------------


def test_without_the_extra_one_line_says_how_to_get_it(bench, write_grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = bench("run", "--grid", write_grid(), "--engine", "ray")
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2
    assert line.startswith("--engine ray: Ray is not installed; pip install -c constraints.txt -e '.[ray]'")


def test_nobody_loads_ray_who_did_not_ask_for_it():
    script = "import bench.session, bench.jobs, bench.overview, sys; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT) == b"False\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--address", "there:6379"), "--address: is for Ray, got there:6379; add --engine ray"),
        (("--cpus-per-trial", "2"), "--cpus-per-trial: is for Ray, got 2; add --engine ray"),
        (("--engine", "ray", "--jobs", "2"), "--jobs: Ray runs as many trials at a time as its hosts hold"),
        *(
            (("--engine", "ray", "--gpus-per-trial", wrong), "--gpus-per-trial: must be 0, or from 0.0001 to 1, ")
            for wrong in ("1.5", "2", "nan", "inf", "0.00001", "-1")
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(bench, write_grid, flags, words):
    result = bench("run", "--grid", write_grid(), *flags)
    assert (result.exit_code, words in result.stderr) == (2, True)


def test_a_worker_gives_a_sign_of_life_before_it_touches_a_device():
    """Its silence counts from the first one."""
    from bench.ray_engine import _work

    assert next(_work(None, None, "none", None, None)).host == socket.gethostname()


def test_what_started_on_an_unlike_host_is_ended_and_its_host_named():
    """Without a cluster: an engine that has one attempt, whose worker says these things."""
    from bench.ray_engine import RayEngine, _Arrived, _Attempt

    engine, cancelled = object.__new__(RayEngine), []
    engine._ray = SimpleNamespace(get=lambda event: event, cancel=lambda stream, force: cancelled.append(stream))
    engine._torch_version, engine._device_type = "2.13", "cpu"
    said = [_Arrived("n7"), Started("cpu", "float32", {"code": "another", "torch": "2.13"})]
    attempt = _Attempt(make_trial(), iter(said))
    assert engine._receive(attempt) == StepDone()
    failed = engine._receive(attempt)
    assert (failed.kind, failed.reason.partition(" ")[0]) == ("crash", "n7")
    assert cancelled == [attempt.stream]


def test_what_is_taken_back_stands_where_its_checkpoint_does():
    from bench.ray_engine import RayEngine, _Attempt

    class TaskCancelledError(Exception): ...

    def fail(_):
        raise TaskCancelledError

    engine = object.__new__(RayEngine)
    engine._ray = SimpleNamespace(get=fail, exceptions=SimpleNamespace(RayError=TaskCancelledError))
    attempt = _Attempt(make_trial(), iter([None]), epoch=7, was_taken_back=True)
    assert engine._receive(attempt) == Stopped(7)


# --- a cluster -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A head without a core, two hosts with a core and a GPU in name each."""
    ray_cluster = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 150 * 2**20}
        cluster = ray_cluster.Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(**HOST)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


@pytest.fixture
def whole_cluster(cluster):
    """With both its hosts, whatever the test before has lost."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**HOST)
    cluster.wait_for_nodes()
    return cluster


@pytest.fixture
def make_engine(whole_cluster):
    """A RayEngine on the cluster, as tests drive a LocalEngine; a GPU in name computes nothing."""
    from bench.ray_engine import RayEngine

    engines = []

    def make(sets, device_name="cpu", jobs=1, **options):
        engines.append(RayEngine(sets, device_name, whole_cluster.address, **{"gpus_per_trial": 1.0} | options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.leave()


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_photos):
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos")
    return load_data(DataConfig(train=str(folder), val_fraction=0.33), [32]).sets


def find_workers(cluster):
    """pid -> the host (a node of the cluster) of every process that a trial runs in; stopped ones do not."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            title = stat.with_name("cmdline").read_bytes().strip(b"\0 ")
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if title.startswith(b"ray::") and b"=" in title and state not in "TZ" and int(parent) in raylets:
                found[int(stat.parent.name)] = raylets[int(parent)]
    return found


def read_outcomes():
    """What was found, without what it cost: of every trial, by key."""
    found = {}
    for key, folder in list_folders(FOLDER).items():
        result, counts = read_result(folder), (folder / "per_photo.json").read_bytes()
        metrics = {name: value for name, value in result.metrics.items() if not name.startswith("cost/")}
        epochs = [line["metrics"] for line in read_history(folder).epochs]
        found[key] = (result.status, result.best_epoch, metrics, counts, epochs)
    return found


def move_away():
    FOLDER.rename("elsewhere")


@pytest.mark.slow
def test_eight_trials_are_to_the_bit_what_this_machine_makes_of_them(drive, make_engine, hash_weights):
    list(drive(**EIGHT))
    here, outcomes = hash_weights(), read_outcomes()
    move_away()
    events = [event for _, event in drive(engine_class=make_engine, **EIGHT)]
    assert sum(isinstance(event, TrialResult) for event in events) == 8
    assert len(here) == 8
    assert hash_weights() == here
    assert read_outcomes() == outcomes


@pytest.mark.slow
def test_a_killed_worker_a_silent_one_and_a_lost_host_cost_what_came_after_the_last_checkpoint_and_not_a_bit(
    drive, make_engine, hash_weights, whole_cluster
):
    list(drive(**LONG))
    undisturbed, outcomes = hash_weights(), read_outcomes()
    move_away()
    events, done, victims = [], [], []

    def disturb(pid, host):
        victims.append(pid)
        if len(done) < 2:
            os.kill(pid, signal.SIGSTOP if done else signal.SIGKILL)
        else:
            with suppress(ProcessLookupError):  # Ray takes its time to kill what was stopped, which keeps a place
                os.kill(victims[1], signal.SIGKILL)
            whole_cluster.remove_node(host, allow_graceful=False)

    def make_impatient(*arguments):
        return make_engine(*arguments, silence_seconds=3.0)

    for _, event in drive(engine_class=make_impatient, **LONG):
        events.append(event)
        if isinstance(event, Checkpoint) and len(done) < 3 and event.epoch >= 3 + 10 * len(done):
            ((pid, host),) = find_workers(whole_cluster).items()
            disturb(pid, host)
            done.append(event.epoch)
    failures = [event.failure for event in events if isinstance(event, Retried)]
    assert [failure.kind for failure in failures] == ["killed", "timeout", "killed"]
    assert "the worker's host was lost" in failures[2].reason
    starts = [event.epoch for event in events if isinstance(event, Started)]
    assert all(start >= epoch for start, epoch in zip(starts, [0, *done], strict=True))
    assert sum(isinstance(event, TrialResult) for event in events) == 1
    assert hash_weights() == undisturbed
    assert read_outcomes() == outcomes


@pytest.mark.slow
def test_without_a_host_a_trial_says_why_it_waits_and_starts_on_the_one_that_joins(
    make_engine, sets, whole_cluster, monkeypatch
):
    monkeypatch.setattr("bench.ray_engine.QUEUED_SECONDS", 0.5)
    monkeypatch.setattr("bench.ray_engine.HOSTS_SECONDS", 0.1)
    with closing(make_engine(sets)) as engine:
        assert (engine.device_type, engine.num_free) == ("cpu", 2)
        for node in list(whole_cluster.worker_nodes):
            whole_cluster.remove_node(node, allow_graceful=False)
        end = time.monotonic() + 30
        while engine.num_free and time.monotonic() < end:
            time.sleep(0.1)
        engine.start(Task(make_trial(), CLASSES))
        ((_, event),) = wait_for_event(engine)
        assert event == Queued("no host is left that holds 1 CPUs and 1 GPUs; it starts when one joins the cluster")
        whole_cluster.add_node(**HOST)
        assert isinstance(follow(engine)[-1], Finished)


def wait_for_event(engine):
    while not (pairs := list(engine.wait(10))):
        pass
    return pairs


def follow(engine):
    """The events up to the first that ends a trial."""
    events = []
    while not events or not isinstance(events[-1], Finished | Failed | Stopped):
        events += [event for _, event in wait_for_event(engine)]
    return events


@pytest.mark.slow
def test_asked_to_stop_workers_leave_a_checkpoint_and_what_waits_is_taken_back(make_engine, sets):
    with closing(make_engine(sets)) as engine:
        for lr in (0.01, 0.003, 0.001):
            engine.start(Task(make_trial(epochs=2000, lr=lr), CLASSES))
        begun, ended, last = set(), {}, {}
        while len(ended) < 3:
            for trial, event in engine.wait(10):
                begun |= {trial} if isinstance(event, EpochDone) else set()
                if isinstance(event, Stopped):
                    ended[trial] = last.get(trial)
                last[trial] = event
            if len(begun) == 2 and not ended:
                engine.stop()
        assert [isinstance(ended[trial], Checkpoint) for trial in ended] == [trial in begun for trial in ended]


@pytest.mark.slow
def test_what_the_cluster_lacks_is_said_before_the_first_trial(make_engine, sets, refusal, monkeypatch):
    nine = refusal(lambda: make_engine(sets, gpus_per_trial=9.0))
    assert nine.startswith("--gpus-per-trial: asked 9, the largest host has 1; ask for less")
    monkeypatch.setattr("bench.ray_engine.CODE_HASH", "another")
    with pytest.raises(Exception, match="has other code of catseg") as caught:
        make_engine(sets)
    assert len(caught.value.problems) == 2  # hosts


@pytest.mark.slow
def test_the_losses_that_are_told_are_those_that_ray_knows(cluster):
    from ray import exceptions

    assert [name for name in LOSSES if not hasattr(exceptions, name)] == []


# --- real drivers --------------------------------------------------------------------------------------------------


@pytest.fixture
def ray_run(tracked_workplace, whole_cluster, monkeypatch):
    """The arguments of a `bench run` on the cluster."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shape = ("--device", "cpu", "--gpus-per-trial", "1")
    return ("run", "--grid", "grid.yaml", "--engine", "ray", "--address", whole_cluster.address, *shape)


def read_committed(place):
    folders = list_folders(place / FOLDER)
    return {key: (f / "result.json").read_bytes() for key, f in folders.items() if read_result(f) is not None}


def count_starts(place):
    starts = []
    for folder in list_folders(place / FOLDER).values():
        lines, _ = read_lines(folder / "events.jsonl")
        starts.append(sum(line["event"] == "Started" for line in lines))
    return starts


@pytest.mark.slow
def test_a_killed_driver_costs_nothing_that_was_committed_and_the_same_command_does_the_rest(
    ray_run, tracked_workplace, start_bench, wait_until, list_runs, whole_cluster
):
    Path("grid.yaml").write_text(GRID.format(epochs=40, rates="[0.02, 0.01, 0.003, 0.001]"))
    process = start_bench(*ray_run)
    wait_until(lambda: len(read_committed(tracked_workplace)) >= 2 and sum(count_starts(tracked_workplace)) >= 3)
    process.kill()
    process.wait()
    committed = read_committed(tracked_workplace)
    wait_until(lambda: not find_workers(whole_cluster))  # they end with their driver
    again = start_bench(*ray_run)
    output, errors = again.communicate(timeout=120)
    assert (again.returncode, errors) == (0, "")
    assert f"4 trials, {len(committed)} done" in output
    assert "Ray: trials at a time 2, hosts 2" in output
    results = read_committed(tracked_workplace)
    assert len(results) == 4
    assert {key: results[key] for key in committed} == committed
    folders = list_folders(tracked_workplace / FOLDER)
    for key, folder in folders.items():
        assert [line["epoch"] for line in read_history(folder).epochs] == list(range(1, 41))
        if key in committed:
            assert (folder / "events.jsonl").read_text().count('"Started"') == 1
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED"] * 4


@pytest.mark.slow
def test_ctrl_c_stops_with_a_checkpoint_twice_at_once_and_the_same_command_goes_on(
    ray_run, tracked_workplace, start_bench, wait_until, whole_cluster
):
    Path("grid.yaml").write_text(GRID.format(epochs=3000, rates="[0.01]"))

    def count_durable():
        folders = list_folders(tracked_workplace / FOLDER)
        return max((read_history(folder).num_durable for folder in folders.values()), default=0)

    process = start_bench(*ray_run)
    wait_until(lambda: count_durable() >= 3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert "stopping after this step, with a checkpoint" in output
    kept = count_durable()
    process = start_bench(*ray_run)
    wait_until(lambda: count_durable() >= kept + 3)
    ((pid, _),) = find_workers(whole_cluster).items()
    os.kill(pid, signal.SIGSTOP)  # a step that takes for ever
    process.send_signal(signal.SIGTERM)
    time.sleep(2)  # longer than a key pressed once may be heard twice: Ray's calls are not interrupted
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert count_starts(tracked_workplace) == [2]
    assert f'"epoch": {kept}' in (next(iter(list_folders(FOLDER).values())) / "events.jsonl").read_text()
    wait_until(lambda: not find_workers(whole_cluster))
