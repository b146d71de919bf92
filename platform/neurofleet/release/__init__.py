"""Releases: a run's network as a version in MLflow's model registry, and the only door to that registry.

A version holds code and numbers, never a pickle ("models from code"): the script model.py, a copy of this package (so
that it answers where neurofleet is not installed), weights.safetensors, spec.json and experiment.yaml.  Loading it
builds the family from its experiment, which passes the same list of allowed targets as any config, and fills in the
weights.  Inputs and predictions are in the user's terms: see `neurofleet.data.encode` and `decode`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import RunError
from neurofleet.experiment import Experiment
from neurofleet.spec import DataSpec
from neurofleet.tracking import prepare_store, store_uri
from neurofleet.tracking.store import check_reachable

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

FILES = ("weights.safetensors", "spec.json", "experiment.yaml")
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "pytorch-lightning",
    "PyYAML",
    "safetensors",
    "torch",
    "torchmetrics",
)
"""what model.py and the parts of the package that it reaches import"""
BACKBONES: dict[str, tuple[str, ...]] = {
    "neurofleet.transfer.backbones.EfficientNetLite0": ("efficientnet_lite_pytorch",),
    "neurofleet.transfer.backbones.HuggingFace": ("transformers",),
}
"""and what these encoders import beside it"""
RELEASE_REMEDY = "the run and its weights are safe, register it again"


def register(run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> int:
    """Log the network in a run's folder as a model of that run and register it as `name`; the new version's number.

    tags: of the version, beside run_id, family and data, which every version has, and the run's own about its base

    A model that does not answer to its own example is not registered.
    """
    lacking = [file for file in FILES if not (folder / file).is_file()]
    if lacking:
        raise RunError(
            f"a release needs {', '.join(FILES)} in {folder}, lacking {', '.join(lacking)}; "
            "train first: a run that ended well leaves them there"
        )
    spec, experiment = DataSpec.load(folder / "spec.json"), experiments.load(folder / "experiment.yaml")
    described = {"family": experiments.family_name(experiment), "data": experiments.data_name(experiment)}
    check_reachable(store_uri())  # MLflow itself would try for minutes
    prepare_store()
    with _mlflow():
        import mlflow
        from mlflow.models import Model

        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        lineage = {key: value for key, value in run.data.tags.items() if key.split(".")[0] == "base"}
        tags = {"run_id": run_id, **described, **lineage, **tags}
        model = client.create_logged_model(run.info.experiment_id, name, run_id, dict(tags), run.data.params)
        logged = Model.log(
            artifact_path=None,
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(Path(__file__).with_name("model.py")),
            code_paths=[str(paths.PACKAGE)],
            artifacts={Path(file).stem: str(folder / file) for file in FILES},
            signature=signature(spec, experiments.build_family(experiment, spec).output_names),
            input_example=example(spec),
            pip_requirements=requirements(experiment, spec),
        )
        answer = mlflow.pyfunc.load_model(logged.model_uri).predict(example(spec))
        if len(answer) != 1:
            raise RunError(
                f"a release answers one row to one row, got {len(answer)}; the model {logged.model_uri} was "
                "logged but not registered"
            )
        return _create_version(run_id, name, logged, tags)


def _create_version(run_id: str, name: str, logged: Any, tags: Mapping[str, str]) -> int:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, logged.model_uri, run_id, tags=dict(tags), model_id=logged.model_id)
    return int(version.version)


def example(spec: DataSpec) -> Any:
    """One row in raw units, the mean of the training rows: a table with its column names; an image as bytes, a
    sequence or an observation as numbers; the first of the indices; the first words of the vocabulary."""
    if len(spec.shape) == 3:  # images, which an agent may see, too
        image = np.broadcast_to(np.asarray(spec.input_mean).reshape(-1, 1, 1), spec.shape)[None]
        return image.round().astype(np.uint8) if spec.kind == "image" else image.astype(np.float64)
    if spec.kind in ("sequence", "environment"):
        return np.broadcast_to(np.asarray(spec.input_mean), spec.shape).astype(np.float64)[None]
    import pandas as pd

    if spec.kind == "text":
        tokens = [token for token in spec.vocabulary if spec.tokenizer != "wordpieces" or token.isalpha()]
        return pd.DataFrame({spec.inputs[0]: [spec.joined(tokens[:5])]})
    if spec.kind == "categorical":
        return pd.DataFrame([[0] * len(spec.inputs)], columns=list(spec.inputs), dtype="int64")
    return pd.DataFrame([spec.input_mean], columns=list(spec.inputs), dtype="float64")


def signature(spec: DataSpec, output_names: Sequence[str] | None) -> ModelSignature:
    """What goes in and what `decode` gives out; `output_names` are the family's.

    Sequences and observations are left to `encode`: MLflow would hold them to one of float32 and float64, and to arrays
    of one length.
    """
    import pandas as pd
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    from neurofleet.data import decode

    columns = {"tabular": "double", "text": "string", "categorical": "long"}
    inputs = None
    if spec.kind == "image":
        inputs = Schema([TensorSpec(np.dtype("uint8"), (-1, *spec.shape))])
    elif spec.kind in columns:
        inputs = Schema([ColSpec(columns[spec.kind], name) for name in spec.inputs])
    answer = decode(torch.zeros(1, len(output_names or ()) or spec.num_outputs), spec, output_names)
    kinds = {
        name: "double"
        if pd.api.types.is_float_dtype(column)
        else "long"
        if pd.api.types.is_integer_dtype(column)
        else "string"
        for name, column in answer.items()
    }
    return ModelSignature(inputs, Schema([ColSpec(kind, name) for name, kind in kinds.items()]))


def requirements(experiment: Experiment, spec: DataSpec) -> list[str]:
    """Pinned to what is installed here; a local build's mark ("+cpu") means nothing elsewhere."""
    encoder = experiment["family"].get("encoder") or {}
    pieces = ("tokenizers",) if spec.tokenizer == "wordpieces" else ()
    names = (*REQUIREMENTS, *BACKBONES.get(encoder.get("_target_", ""), ()), *pieces)
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]


@contextlib.contextmanager
def _mlflow(what: str = "the release", remedy: str = RELEASE_REMEDY) -> Iterator[None]:
    """MLflow at this platform's store, without its advice on choices that are made above; its errors raise.

    what, remedy: of the message where it refuses

    MLflow keeps its addresses in the environment: what stood there before stands there after.
    """
    import mlflow  # sets its logger's level, so it comes before ours

    logger, level = logging.getLogger(mlflow.__name__), logging.getLogger(mlflow.__name__).level
    names = ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    uri = store_uri()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    logger.setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except mlflow.exceptions.MlflowException as error:
        raise RunError(f"MLflow refused {what}: {error}; {remedy}") from error
    finally:
        logger.setLevel(level)
        # None, not "": MLflow takes "" for ./mlruns from then on, whatever the environment says later.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
