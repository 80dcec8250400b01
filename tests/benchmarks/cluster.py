"""What one driver can take: thousands of trials that only pretend, from hosts that only pretend, into a real journal.

    python -m tests.benchmarks.cluster [--trials 2000] [--hosts 8] [--places 4] [--seconds 1] [--without-ray]

Real are the driver, the journal with its fsyncs, the engine, Ray and its raylets; a trial sleeps and yields events of
the usual number and size. Worker processes are used again, since two cores cannot start two thousand; `--without-ray`
leaves out Ray, too: then the trials are a list, and what is measured is the driver alone.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.environment import CODE_HASH, read_torch_version  # this much in every worker: neither torch nor the driver
from bench.trial import Checkpoint, EpochDone, Finished, Overlays, Started, StepDone, TrialResult, Weights
from catseg.photo import encode_png

EPOCHS = 4
NUM_PHOTOS, MODEL_BYTES, PICTURE_BYTES = 8, 130_000, 8_000  # a network of two features, a panel of 40 pixels
PNG = encode_png(np.random.default_rng(0).integers(0, 256, (PICTURE_BYTES // 120, 40, 3), np.uint8))
NAMES = ("miou", "miou_per_photo", "dice", "precision", "recall", "false_alarm_photos", "loss")
GRID = """
experiment: pretended
data: {{train: sample}}
base: {{init_features: 2, image_size: 32, epochs: {epochs}, batch_size: 4}}
grid: {{lr: [{rates}]}}
"""


def pretend(task, photos, device_name, threads, stopper, seconds=1.0) -> Iterator[object]:
    """The events of a trial, as a worker yields them."""
    environment = {"code": CODE_HASH, "torch": read_torch_version(), "machine_fingerprint": "pretended"}
    environment |= {"cpu": "none", "gpu": "none", "threads": "1", "cores": "1"}
    yield Started("cpu", "float32", environment)
    for epoch in range(1, EPOCHS + 1):
        time.sleep(seconds / EPOCHS)
        yield StepDone()
        metrics = {f"val/{name}": 0.5 + epoch / 100 for name in NAMES} | {"train/loss": 0.4, "train/lr": 0.001}
        yield EpochDone(epoch, metrics, 0.2, 0.05, {"system/cpu_percentage": 99.0, "system/rss_mib": 400.0})
        if epoch == 1:
            yield Overlays("first", 1, (PNG,) * 4)
        if epoch == EPOCHS // 2:
            yield Checkpoint(epoch, 0, 0.01, os.urandom(4 * MODEL_BYTES))
    for which in ("last", "best"):
        yield Weights(which, EPOCHS, os.urandom(MODEL_BYTES))
        yield Overlays(which, EPOCHS, (PNG,) * 4)
    counts = (((100, 10, 10),),) * NUM_PHOTOS
    names = tuple(f"cat{number}.png" for number in range(NUM_PHOTOS))
    yield Finished(EPOCHS, metrics | {"cost/train_seconds": 1.0}, names, counts, (1600,) * NUM_PHOTOS)


class ListEngine:
    """So many trials at a time, in this process: their events wait to be taken, one of each by turns."""

    device_type, torch_version = "cpu", read_torch_version()

    def __init__(self, num_places: int) -> None:
        self.num_places, self._running = num_places, {}

    @property
    def num_free(self) -> int:
        return self.num_places - len(self._running)

    def start(self, task) -> None:
        self._running[task.trial] = pretend(task, None, "cpu", 1, None, seconds=0.0)

    def wait(self, seconds):
        for trial, events in list(self._running.items()):
            event = next(events)
            if isinstance(event, Finished):
                del self._running[trial]
            if not isinstance(event, StepDone):
                yield trial, event

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Timed:
    """An engine, and a clock that runs while the driver handles what it yields."""

    def __init__(self, engine) -> None:
        self._engine, self.num_events, self.handling_seconds, self.slowest = engine, 0, 0.0, 0.0
        self.num_syncs, self.disk_seconds, self._sync = 0, 0.0, os.fsync
        os.fsync = self._sync_timed

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def _sync_timed(self, file) -> None:
        start = time.perf_counter()
        self._sync(file)
        self.num_syncs, self.disk_seconds = self.num_syncs + 1, self.disk_seconds + time.perf_counter() - start

    def wait(self, seconds):
        for pair in self._engine.wait(seconds):
            start = time.perf_counter()
            yield pair
            took = time.perf_counter() - start
            self.num_events, self.handling_seconds = self.num_events + 1, self.handling_seconds + took
            self.slowest = max(self.slowest, took)


class SilentMirror:
    def notify(self, folder) -> None: ...

    def pump(self) -> None: ...


def read_rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def start_cluster(num_hosts: int, places: int):
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    for _ in range(num_hosts):
        cluster.add_node(num_cpus=places, **store)
    cluster.wait_for_nodes()
    return cluster


def make_ray_engine(sets, address: str, seconds: float):
    from bench import ray_engine

    def pretend_for(*arguments):
        from tests.benchmarks.cluster import pretend

        yield from pretend(*arguments, seconds=seconds)

    ray_engine.make_worker = lambda ray: ray.remote(max_retries=0, num_returns="streaming")(pretend_for)
    return ray_engine.RayEngine(sets, "cpu", address)


def drive(engine, experiment, data, folder: Path) -> None:
    """Run all of it; print what it took."""
    from bench.driver import run_pending
    from bench.plan import make_plan
    from bench.stops import Stop

    plan = make_plan(experiment, data, folder, "cpu")
    timed, ended, memory = Timed(engine), 0, [read_rss_mib()]
    start, cpu = time.perf_counter(), time.process_time()
    for _, event in run_pending(experiment, data, plan, folder, timed, SilentMirror(), Stop()):
        if isinstance(event, TrialResult):
            ended += 1
            if ended % (len(plan.pending) // 8 or 1) == 0:
                memory.append(read_rss_mib())
                print(f"{ended} trials, {time.perf_counter() - start:.0f} s, {memory[-1]:.0f} MiB", flush=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    files = [path for path in folder.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    each_ms, cpu_ms = 1000 * timed.handling_seconds / timed.num_events, 1000 * cpu / timed.num_events
    print(f"{ended} trials, {timed.num_events} events in {seconds:.0f} s; of the driver's CPU {cpu_ms:.2f} ms an event")
    print(
        f"handling an event: {each_ms:.2f} ms, the slowest {1000 * timed.slowest:.0f} ms, waiting for the disk included"
    )
    disk_ms = 1000 * timed.disk_seconds / timed.num_syncs
    print(f"the disk, in handing out, too: {timed.num_syncs / ended:.0f} times a trial, {disk_ms:.2f} ms each time")
    print(f"memory of the driver, MiB: {memory[0]:.0f} at the start, {', '.join(f'{mib:.0f}' for mib in memory[1:])}")
    print(f"journal: {num_bytes / 2**20:.0f} MiB, {len(files)} files; {num_bytes / ended / 2**10:.0f} KiB a trial")


def count_rows(folder: Path, num_trials: int) -> None:
    """Rows of MLflow's store, from the first trials; the others make as many each."""
    import sqlite3

    from bench.mirror import sync_all

    for superfluous in sorted(folder.glob("*-*"))[num_trials:]:
        superfluous.rename(folder / superfluous.name.replace("-", "_"))  # no trial's name
    start = time.perf_counter()
    num_sent = sum(1 for _ in sync_all(folder))
    seconds = (time.perf_counter() - start) / num_sent
    with sqlite3.connect("mlflow.db") as store:
        tables = [name for (name,) in store.execute("select name from sqlite_master where type = 'table'")]
        rows = {name: store.execute(f'select count(*) from "{name}"').fetchone()[0] / num_sent for name in tables}
    shown = ", ".join(
        f"{name} {count:.0f}" for name, count in sorted(rows.items(), key=lambda r: -r[1]) if count >= 0.9
    )
    size = Path("mlflow.db").stat().st_size / num_sent / 2**10
    print(f"MLflow, of {num_sent} trials: {sum(rows.values()):.0f} rows a trial ({shown})")
    print(f"and {size:.0f} KiB of database, {seconds:.2f} s to send")


def main() -> None:
    from bench.claim import make_experiment_folder
    from bench.grid import load_experiment
    from catseg.dataset import load_data

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--places", type=int, default=4, help="trials at a time on a host")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a trial")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--rows", type=int, default=0, help="trials to send to MLflow, to count its rows")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with TemporaryDirectory() as place:
        os.chdir(place)
        rates = ", ".join(f"{1e-5 * (number + 1):.6f}" for number in range(options.trials))
        Path("grid.yaml").write_text(GRID.format(epochs=EPOCHS, rates=rates))
        experiment = load_experiment(Path("grid.yaml"), {}, None)
        data = load_data(experiment.data, [32])
        folder = make_experiment_folder(experiment.name)
        if options.without_ray:
            drive(ListEngine(options.hosts * options.places), experiment, data, folder)
        else:
            cluster = start_cluster(options.hosts, options.places)
            engine = make_ray_engine(data.sets, cluster.address, options.seconds)
            drive(engine, experiment, data, folder)
            engine.leave()
            cluster.shutdown()
        if options.rows:
            count_rows(folder, options.rows)


if __name__ == "__main__":
    main()
