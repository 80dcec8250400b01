"""Told to stop, a real `bench run` keeps what it has, says so truly, and the same command does the rest."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from bench.journal import list_folders, read_history, read_result

# The second trial is long enough to be stopped in the middle.
GRID = """
experiment: tiny
data: {train: photos}
base: {init_features: 2, image_size: 32, batch_size: 4, loss: dice}
grid: {epochs: [1, 1200]}
"""
OUTPUT = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def start_long_run(tracked_workplace, start_bench, list_runs, wait_until):
    """A real `bench run`: its first trial is done, its second one has come two epochs further, MLflow has both."""

    def start():
        (tracked_workplace / "grid.yaml").write_text(GRID)
        before = count_epochs(tracked_workplace)
        process = start_bench("run", "--grid", "grid.yaml")

        def has_come_further():
            assert process.poll() is None, process.communicate()
            return count_epochs(tracked_workplace) >= before + 2 and len(list_runs(tracked_workplace)) == 2

        wait_until(has_come_further)
        return process

    return start


def find_trials(folder):
    """The short one's and the long one's folder."""
    folders = {path.name.partition("-")[0]: path for path in list_folders(folder / "mlruns/journal/tiny").values()}
    return folders.get("epochs=1"), folders.get("epochs=1200")


def count_epochs(folder):
    _, long_one = find_trials(folder)
    return len(read_history(long_one).epochs) if long_one else 0


def check_that_the_rest_is_done(bench, folder, list_runs):
    """After a stop: what was finished is kept, what was not is done now, and MLflow knows it."""
    short_one, long_one = find_trials(folder)
    assert read_result(short_one) is not None
    assert read_result(long_one) is None, "the run was over before it could be stopped"
    again = bench("run", "--grid", "grid.yaml")
    assert (again.exit_code, "2 trials, 1 done, 1 to do" in again.stdout) == (0, True)
    assert [run.info.status for run in list_runs(folder)] == ["FINISHED", "FINISHED"]
    assert [line["epoch"] for line in read_history(long_one).epochs] == list(range(1, 1201))
    assert not [path for path in long_one.iterdir() if path.name.startswith((".", "checkpoint"))]


@pytest.mark.slow
def test_every_signal_stops_after_the_step_with_a_checkpoint_and_the_same_command_goes_on_from_there(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    epochs = []
    for signum, exit_code in (
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 143),
    ):
        process = start_long_run()
        if signum == signal.SIGTERM:
            process.send_signal(signum)
        else:
            os.killpg(process.pid, signum)  # a terminal and a batch system signal all processes of a job
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (exit_code, "")
        assert "once more to stop at once" in output
        assert "stopped; all is kept, the same command goes on" in output
        assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "KILLED"]
        wait_until(lambda pid=process.pid: not list_session(pid))
        history = read_history(find_trials(tracked_workplace)[1])
        assert history.checkpoints
        epochs.append(history.num_durable)
        assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "KILLED"]
    assert epochs == sorted(set(epochs)), "a session lost what the one before had done"
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)


@pytest.mark.slow
def test_an_impatient_second_ctrl_c_stops_at_once_and_leaves_nothing_that_the_same_command_does_not_mend(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    process = start_long_run()
    for pid in set(list_session(process.pid)) - {process.pid}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # a step that takes for ever
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    for pid in list_session(process.pid):  # the server that forks, which was stopped above
        os.kill(pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[1] == ""
    wait_until(lambda: not list_session(process.pid))
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)


@pytest.mark.slow
def test_a_stop_keeps_its_manners_when_nobody_reads_what_is_said(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    """As with `bench run | tee log`: Ctrl-C ends the tee, too. And a closed terminal sends its signal twice."""
    for signums, exit_code in (((signal.SIGINT,), 130), ((signal.SIGHUP, signal.SIGHUP), 129)):
        process = start_long_run()
        process.stdout.close()
        for signum in signums:
            process.send_signal(signum)
            time.sleep(0.02)
        assert process.wait(timeout=60) == exit_code
        assert process.stderr.read() == ""
        wait_until(lambda pid=process.pid: not list_session(pid))
        assert read_history(find_trials(tracked_workplace)[1]).checkpoints
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)


@pytest.mark.slow
def test_what_was_started_to_ignore_a_closed_terminal_ignores_it(start_long_run, tracked_workplace):
    """nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_long_run()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    epochs = count_epochs(tracked_workplace)
    time.sleep(1)
    assert process.poll() is None
    assert count_epochs(tracked_workplace) > epochs


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_its_mirror_says_what_became_of_the_run(
    start_long_run, tracked_workplace, bench, list_runs, list_session, wait_until
):
    process = start_long_run()
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not list_session(process.pid))
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "KILLED"]
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)


@pytest.mark.slow
def test_when_all_are_killed_at_once_the_next_session_gives_the_run_its_true_status(
    start_long_run, tracked_workplace, bench, list_runs
):
    process = start_long_run()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "RUNNING"]
    assert bench("sync").exit_code == 0
    assert [run.info.status for run in list_runs(tracked_workplace)] == ["FINISHED", "KILLED"]
    check_that_the_rest_is_done(bench, tracked_workplace, list_runs)


@pytest.mark.slow
def test_told_to_fail_fast_the_first_failure_stops_what_is_at_work(workplace, write_grid, start_bench):
    grid = "lr: [0.01, 1.0e+30, 0.02]"
    write_grid(grid=grid, base="{init_features: 2, image_size: 32, epochs: 300, batch_size: 4}")
    process = start_bench("run", "--grid", "grid.yaml", "--jobs", "2", "--fail-fast")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (1, "")
    assert "FAILED  lr=1e+30: nonfinite" in output
    folders = list_folders(workplace / "mlruns/journal/tiny").values()
    (stopped,) = [path for path in folders if "1e+30" not in path.name]  # the third one was never begun
    history = read_history(stopped)
    assert len(history.epochs) < 300
    assert history.checkpoints


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_is_said_before_the_first_trial_and_a_disk_that_fills_up_pauses_cleanly(
    workplace, write_grid, start_bench, bench
):
    small = workplace / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=52m", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this sandbox mounts nothing")
    try:
        shutil.copytree(workplace / "photos", small / "photos")
        grid = write_grid(grid="lr: [0.01, 0.02]", base="{init_features: 8, image_size: 32, epochs: 60, batch_size: 4}")
        grid = shutil.copy(grid, small / "grid.yaml")
        (small / "ballast").write_bytes(b"\0" * 42_000_000)
        refused = start_bench("run", "--grid", "grid.yaml", cwd=small)
        _, errors = refused.communicate(timeout=60)
        assert (refused.returncode, errors.count("\n")) == (2, 1)
        assert "free on this disk, 2 trials need up to " in errors
        (small / "ballast").unlink()
        script = FILL_THE_DISK.format(python=sys.executable)
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{workplace / 'mlflow.db'}"}
        paused = subprocess.run([sys.executable, "-c", script], cwd=small, env=environment, check=False, **OUTPUT)
        assert paused.returncode == 2, paused.stdout
        assert paused.stderr.count("\n") == 1, paused.stderr
        assert "cannot be written (No space left on device); what is finished is kept" in paused.stderr
        (small / "ballast").unlink()
        rest = start_bench("run", "--grid", "grid.yaml", cwd=small, env=environment)
        _, errors = rest.communicate(timeout=120)
        assert (rest.returncode, errors) == (0, "")
    finally:
        subprocess.run(["umount", "-l", small], check=False)


# `bench run`, and at its first event the disk is full.
FILL_THE_DISK = """
import sys
from bench import cli, driver

def hand_out(self, original=driver._Driver.hand_out):
    yield from original(self)
    with open("ballast", "ab") as ballast:
        try:
            while True:
                ballast.write(b"0" * 4096)
                ballast.flush()
        except OSError:
            pass

if __name__ == "__main__":
    driver._Driver.hand_out = hand_out
    sys.argv = ["bench", "run", "--grid", "grid.yaml"]
    cli.main()
"""
