"""A release as MLflow loads it: this script is copied into the model's folder and run there ("models from code")."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel
from safetensors.torch import load_file

from neurofleet import data, experiment
from neurofleet.spec import DataSpec


class Release(PythonModel):
    """In: a table with the spec's input columns, or images, sequences or observations [N,*shape], as an array or, but
    for images, as lists.  Out: `data.decode`'s table."""

    def load_context(self, context: Any) -> None:
        self.spec = DataSpec.load(Path(context.artifacts["spec"]))
        described = experiment.load(Path(context.artifacts["experiment"]))
        self.family = experiment.build_family(described, self.spec)
        self.family.load_state_dict(load_file(context.artifacts["weights"]), strict=True)
        self.family.eval()

    # The model's signature says what comes in (some of it as an array); MLflow reads annotations as advice, and a
    # DataFrame is the one about which it does not warn.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        dtype = next(self.family.parameters()).dtype
        with torch.inference_mode():
            inputs = data.encode(model_input, self.spec)
            inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
            outputs = torch.cat([self.family(batch) for batch in inputs.split(512)])
            return data.decode(outputs, self.spec, self.family.output_names)


mlflow.models.set_model(Release())
