"""Fixtures: servers on this machine, and a real browser to look at their pages."""

import json
import os
import shutil
import socket
import subprocess
import urllib.request

import pytest


def find_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_port():
    """The same, for a test."""
    return find_port()


@pytest.fixture
def start_server(wait_until):
    """Run MLflow's server or pages until the end of the test, from the moment it answers."""
    processes = []

    def start(command, port, **options):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **silent, **options)
        processes.append(process)

        def answers():
            assert process.poll() is None, f"the server ended with {process.returncode}"
            try:
                return _ask(port, "/health") is not None
            except OSError:
                return False

        wait_until(answers)
        return process

    yield start
    for process in processes:
        _stop_server(process)


def _stop_server(process):
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def _ask(port, path, **content):
    """Bytes of a GET, or of a POST of `content` as JSON."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if content:
        request.data = json.dumps(content).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.fixture(scope="session")
def ask():
    """ask(port, path, **content): the answer of a server on this machine."""
    return _ask


@pytest.fixture(scope="session")
def chromium():
    """A real browser without a screen; skips where Playwright or Debian's Chromium is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
