"""What a fine-tuned encoder still knows of the old task: the base's own head on its features, before and after."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neurofleet import experiment as experiments
from neurofleet.data import catalog, codec, tables
from neurofleet.errors import DataError
from neurofleet.experiment import Experiment
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.transfer import base as bases
from neurofleet.transfer.encoders import as_spec
from neurofleet.transfer.evidence import Predictions

PREFIX = "encoder."
ROWS = 512  # in a pass


def predictions(
    experiment: Experiment, spec: DataSpec, tuned: Mapping[str, Tensor]
) -> tuple[DataSpec, Predictions, Predictions] | None:
    """The old data's spec, and what the base's head says of its test rows on the encoder that it came with and on the
    fine-tuned one; None where that cannot be asked: a packaged backbone, no supervised family, or other old data.

    experiment: of the fine-tuned run;  spec: of its data;  tuned: its weights
    """
    family = experiment["family"]
    if not family["encoder"]["_target_"].startswith("neurofleet.families."):
        return None
    old = as_spec(family["encoder_spec"], spec)
    network = experiments.build_family({"family": family["encoder"], "seed": 0}, old)
    rows = _test_rows(old)
    if rows is None or not isinstance(network, SupervisedFamily):
        return None
    weights = bases.weights(family["base"]["sha256"], family["base"]["uri"])
    if set(network.state_dict()) - set(weights):  # an earlier fine-tuning left its head behind
        return None
    encoder = {name.removeprefix(PREFIX): value for name, value in tuned.items() if name.startswith(PREFIX)}
    before, after = (_said(network, state, rows) for state in (weights, {**weights, **encoder}))
    return old, before, after


def _test_rows(spec: DataSpec) -> tuple[Tensor, Tensor] | None:
    """The test rows on disk of the data that the base learnt from, encoded as it saw them."""
    try:
        folder, disk = catalog.locate(spec.name), catalog.load_spec(spec.name)
    except DataError:
        return None
    measured = ("input_mean", "input_std", "target_mean", "target_std", "num_rows")
    same = disk.to_dict() | {name: getattr(spec, name) for name in measured} == spec.to_dict()
    # Other statistics are those of another division of the rows, unless all but the test rows were trained on.
    if not same or (disk.input_mean != spec.input_mean and spec.num_rows["val"] > 0):
        return None
    path = folder / "test.parquet"
    table = tables.read_columns(path, (*spec.inputs, *spec.targets))
    return codec.encode(table, spec, str(path)), codec.encode_targets(table, spec, str(path))


@torch.no_grad()
def _said(network: SupervisedFamily, state: Mapping[str, Tensor], rows: tuple[Tensor, Tensor]) -> Predictions:
    network.load_state_dict(dict(state))
    network.eval()
    dtype = next(network.parameters()).dtype
    inputs = rows[0].to(dtype) if rows[0].is_floating_point() else rows[0]
    return Predictions(torch.cat([network(part) for part in inputs.split(ROWS)]), rows[1])
