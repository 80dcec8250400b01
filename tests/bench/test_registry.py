"""A bundle in MLflow: with the run of its trial, as a version that can be served, once."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.registry import register
from catseg.bundle import load_network, open_bundle
from catseg.errors import InputError
from catseg.photo import read_photo


@pytest.fixture
def client(finished_copy):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{finished_copy / 'mlflow.db'}")


def read_execution(folder):
    (path,) = folder.glob("mlruns/journal/tiny/lr=0.03-*/settings.json")
    return json.loads(path.read_text("utf-8"))["execution"]


@pytest.fixture
def registered(finished_copy, client, bundle, bench):
    """A folder whose store has the bundle as the champion."""
    assert bench("sync").exit_code == 0
    address = register(bundle, "tiny", read_execution(finished_copy), ("cat",), is_best=True)
    assert address == "models:/tiny@champion"
    return finished_copy


def test_the_run_of_the_trial_has_the_bundle_and_keeps_its_status(registered, client, bundle):
    version = client.get_model_version_by_alias("tiny", "champion")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.03"
    (place,) = client.list_artifacts(version.run_id, "bundle")
    names = {file.path.rpartition("/")[2] for file in client.list_artifacts(version.run_id, place.path)}
    assert names == {path.name for path in bundle.iterdir()}
    assert [f"models:/{output.model_id}" for output in run.outputs.model_outputs] == [version.source]


def test_the_registered_file_is_the_bundles_with_a_signature_and_without_a_pickle(registered, client, bundle):
    version = client.get_model_version_by_alias("tiny", "champion")
    folder = Path(
        client.get_logged_model(version.source.removeprefix("models:/")).artifact_location.removeprefix("file://")
    )
    files = {path.name for path in folder.rglob("*")}
    assert {"MLmodel", "model.onnx"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    text = (folder / "MLmodel").read_text("utf-8")
    assert "uint8" in text
    assert "probability_BKHW" in text

    import onnx

    mine, theirs = (onnx.load(place / "model.onnx") for place in (bundle, folder))
    assert mine.graph == theirs.graph


def test_the_same_bundle_again_makes_no_second_version(registered, client, bundle):
    register(bundle, "tiny", read_execution(registered), ("cat",), is_best=True)
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_what_is_not_the_best_does_not_become_the_champion(finished_copy, client, bundle, bench):
    from mlflow.exceptions import MlflowException

    assert bench("sync").exit_code == 0
    address = register(bundle, "tiny", read_execution(finished_copy), ("cat",), is_best=False)
    assert address == "models:/tiny/1"
    with pytest.raises(MlflowException):
        client.get_model_version_by_alias("tiny", "champion")


def test_a_store_without_the_run_or_none_that_answers_is_told_in_one_line(finished_copy, bundle, monkeypatch):
    with pytest.raises(InputError, match=r"has no run of this trial.*bench sync.*into a new folder"):
        register(bundle, "tiny", "unknown", ("cat",), is_best=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="MLflow has not got it"):
        register(bundle, "tiny", "unknown", ("cat",), is_best=True)


@pytest.mark.slow
def test_mlflow_serves_the_champion_and_it_answers_for_a_photo(registered, bundle, free_port, start_server, ask):
    from catseg.onnx_file import compute_probability

    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny@champion"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{registered / 'mlflow.db'}"}
    start_server([*command, "--env-manager", "local", "--port", str(free_port)], free_port, env=environment)
    photo_HW3 = read_photo(bundle / "golden/sample-0002.png")  # 37 x 64 pixels
    answer = json.loads(ask(free_port, "/invocations", inputs=photo_HW3[None].tolist()))
    probability_BKHW = np.array(answer["predictions"]["probability_BKHW"], np.float32)

    import torch

    expected = compute_probability(load_network(open_bundle(bundle)), torch.tensor(photo_HW3[None]))
    np.testing.assert_allclose(probability_BKHW, expected.numpy(), atol=1e-4)
