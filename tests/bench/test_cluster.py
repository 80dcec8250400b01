"""What a cluster holds, how it is called and what it loses, in our words; no Ray is needed."""

import socket

import pytest

from bench.cluster import check_address, check_shape, choose_worker_device, count_places, explain_loss, explain_other
from bench.environment import CODE_HASH
from bench.trial import Failed, Started


def test_hosts_hold_as_many_trials_as_their_cores_and_gpus_allow():
    hosts = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 64.0}, {}]
    assert count_places(hosts, cpus=1, gpus=1) == 3
    assert count_places(hosts, cpus=1, gpus=0.5) == 4 + 2
    assert count_places(hosts, cpus=1, gpus=0.3) == 6 + 3  # three to a GPU: the rest of two makes no fourth
    assert count_places(hosts, cpus=2, gpus=0.25) == 4 + 1
    assert count_places(hosts, cpus=4, gpus=0) == 2 + 16
    assert count_places(hosts, cpus=1, gpus=2) == 1


def test_what_no_host_can_hold_is_refused_with_what_the_largest_has(refusal):
    hosts = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}]
    check_shape(hosts, 8, 2)
    assert refusal(check_shape, hosts, 1, 9).startswith("--gpus-per-trial: asked 9, the largest host has 2; ask for")
    assert refusal(check_shape, hosts, 65, 0).startswith("--cpus-per-trial: asked 65, the largest host has 64;")
    assert "no host has 1 GPUs and 9 CPUs" in refusal(check_shape, hosts, 9, 1)
    assert "the largest host has 0" in refusal(check_shape, [], 1, 0)


def test_an_address_is_tried_before_ray_is_and_must_be_one(refusal, free_port):
    assert "127.0.0.1:" in refusal(check_address, f"127.0.0.1:{free_port}")
    assert "does not answer" in refusal(check_address, f"127.0.0.1:{free_port}")
    for wrong in ("ray://127.0.0.1:10001", "host", ":6379", "host:port"):
        assert "must be HOST:PORT or `auto`" in refusal(check_address, wrong)
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_worker_without_a_gpu_takes_none_and_ray_chooses_which(refusal):
    assert choose_worker_device("auto", 0) == "cpu"
    assert choose_worker_device("auto", 0.5) == "auto"
    assert choose_worker_device("cpu", 1) == "cpu"
    assert "no GPUs per trial" in refusal(choose_worker_device, "cuda", 0)
    assert "Ray chooses the GPU" in refusal(choose_worker_device, "cuda:1", 1)


def test_a_full_object_store_says_what_to_do_and_an_error_of_ours_where_it_was():
    full = type("OutOfDiskError", (Exception,), {})("Local disk is full\nand more")
    failed = explain_loss(full)
    assert (failed.kind, "--object-store-memory" in failed.reason) == ("crash", True)
    raised = Exception("Traceback\n  File ...\nKeyError: 'x'")
    raised.cause = full  # as a worker meets it
    assert explain_loss(raised).reason == failed.reason
    raised.cause = KeyError("x")
    assert explain_loss(raised) == Failed("crash", "the worker ended with KeyError: 'x'", str(raised))


@pytest.mark.parametrize(
    ("device", "changes", "words"),
    [
        ("cuda:0", {}, None),
        (
            "cuda:0",
            {"code": "another"},
            f"n7 is unlike the hosts at the start (code another, not {CODE_HASH}); install",
        ),
        ("cpu", {"torch": "2.0"}, "(torch 2.0, not 2.13; device cpu, not cuda)"),
    ],
)
def test_a_host_that_joins_with_other_code_torch_or_device_fails_what_started_there(device, changes, words):
    started = Started(device, "float32", {"code": CODE_HASH, "torch": "2.13"} | changes)
    failed = explain_other("n7", started, "2.13", "cuda")
    assert (failed and failed.kind) == (words and "crash")
    assert words is None or words in failed.reason
