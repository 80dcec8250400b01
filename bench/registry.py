"""MLflow's registry and the files of its runs: a bundle goes there to be served, a checkpoint comes from there.

In:  the id of a run, a bundle's folder.   Out: a version of a registered model; a checkpoint's path; whose run it is.
Knows nothing of how a bundle is made, nor of the mirror. (Beside bench.tracking the one room that imports mlflow.)
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.store import DEFAULT_STORE, lacks_default_store
from bench.tracking import connect
from catseg.errors import InputError, first_line

CHAMPION = "champion"  # the alias of the best that was exported: models:/NAME@champion
BUNDLE = "bundle"  # where a run keeps its bundles, and the tag that says which one a version is of


@contextmanager
def fetch_checkpoint(run_id: str) -> Iterator[Path]:
    """The best checkpoint of an MLflow run, as a file for as long as it is needed."""
    if lacks_default_store():
        raise InputError(f"{run_id}: neither a file nor a run: there is no {DEFAULT_STORE} here; check the path")
    with TemporaryDirectory() as folder:
        try:
            path = connect().download_artifacts(run_id, "checkpoints/best.safetensors", folder)
        except Exception as error:  # whatever a store, a server or a disk may raise
            reason = first_line(error)
            raise InputError(f"{run_id}: neither a file nor a run with a checkpoint ({reason}); check the id") from None
        yield Path(path)


def find_trial(run_id: str) -> tuple[str, str]:
    """The key of the trial whose run this is, and which execution of it: a trial that is done anew keeps its key."""
    if lacks_default_store():
        raise InputError(f"--run {run_id}: there is no {DEFAULT_STORE} here; check the working folder")
    try:
        tags = connect().get_run(run_id).data.tags
        return tags["trial_key"], tags["execution"]
    except Exception as error:  # as above
        raise InputError(f"--run {run_id}: no run of a trial ({first_line(error)}); check the id") from None


def register(bundle: Path, experiment: str, execution: str, classes: tuple[str, ...], is_best: bool) -> str:
    """Give a bundle to the run of its trial and its network to the registry; the version's address, models:/...

    The registered model has the experiment's name; the best of an experiment gets the alias `champion`.
    The same bundle again makes no second version. InputError: MLflow does not answer, or knows no such run.
    """
    try:
        client = connect()
        run = _find_run(client, experiment, execution)
        digest = hashlib.sha256((bundle / "certificate.json").read_bytes()).hexdigest()[:16]
        version = _find_version(client, experiment, digest)
        if version is None:
            client.log_artifacts(run.info.run_id, str(bundle), f"{BUNDLE}/{digest}")
            version = _make_version(client, bundle, experiment, run, len(classes), {BUNDLE: digest})
        if is_best:
            client.set_registered_model_alias(experiment, CHAMPION, version)
    except Exception as error:  # as above
        raise InputError(
            f"MLflow has not got it ({first_line(error)}); `bench sync`, then export it into a new folder"
        ) from None
    return f"models:/{experiment}@{CHAMPION}" if is_best else f"models:/{experiment}/{version}"


def _find_run(client: Any, experiment: str, execution: str) -> Any:
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.execution = '{execution}'", max_results=1) if found else []
    if not runs:
        raise LookupError(f"experiment {experiment} has no run of this trial")
    return runs[0]


def _find_version(client: Any, experiment: str, digest: str) -> str | None:
    for version in client.search_model_versions(f"name = '{experiment}'"):
        if version.tags.get(BUNDLE) == digest:
            return str(version.version)
    return None


def _make_version(client: Any, bundle: Path, experiment: str, run: Any, num_classes: int, tags: dict[str, str]) -> str:
    """A logged model of the run, with what it takes and gives, and a version of the registered model of it."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    model = client.create_logged_model(experiment_id, "unet", run_id, tags, run.data.params)
    with TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what MLflow and its libraries say to each other
            _save_model(Path(folder) / "model", bundle / "model.onnx", num_classes, run_id, model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    if not client.search_registered_models(f"name = '{experiment}'"):
        client.create_registered_model(experiment)
    source = f"models:/{model.model_id}"
    version = client.create_model_version(
        experiment, source, run_id, tags, model_id=model.model_id, await_creation_for=None
    )
    return str(version.version)


def _save_model(folder: Path, file: Path, num_classes: int, run_id: str, model_id: str) -> None:
    """The folder that MLflow serves: the ONNX file and what is to be known of it. No pickle."""
    import mlflow.onnx
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    # the photos have no name here, though they have in the file: `mlflow models serve` takes no list for a named one
    photo = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    sides = (-1, num_classes, -1, -1)
    outputs = [TensorSpec(np.dtype(np.float32), sides, name) for name in ("probability_BKHW", "logits_BKHW")]
    mlflow.onnx.save_model(
        onnx.load_from_string(file.read_bytes()),
        folder,
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        signature=ModelSignature(Schema([photo]), Schema(outputs)),
        pip_requirements=["mlflow", "numpy", "onnx", "onnxruntime"],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
