"""The Ray that `bench run --engine ray` starts by itself: for this machine alone, and gone at the end."""

import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bench.test_ray_engine import GRID, ROOT, count_starts

pytestmark = pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning")


@pytest.mark.slow
def test_a_ray_of_our_own_answers_this_machine_alone_and_leaves_nothing_running(
    tracked_workplace, start_bench, list_session, wait_until, monkeypatch
):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tracked_workplace))  # where Ray keeps its token
    Path("grid.yaml").write_text(GRID.format(epochs=3000, rates="[0.01]"))
    process = start_bench("run", "--grid", "grid.yaml", "--engine", "ray")
    wait_until(lambda: sum(count_starts(tracked_workplace)) == 1)
    addresses = list_listening(list_session(process.pid))
    assert addresses
    assert {address for address in addresses if not address.endswith("0100007F")} == set()
    assert (tracked_workplace / ".ray/auth_token").is_file()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    wait_until(lambda: not list_session(process.pid))


def list_listening(pids):
    """The addresses, in the kernel's hexadecimal, on which some processes listen."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                sockets |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in sockets]
