"""49,097 readings of 9 sensors of a space shuttle: normal, or an anomaly (7 in 100)?

The majority class of Statlog's seven is normal, the five rare ones are anomalies, the second-largest is left out: the
set-up of the ODDS benchmark.
"""

from __future__ import annotations

from neurofleet.data.sources import packaged, read_columns
from neurofleet.data.write import Raw


def load() -> Raw:
    table = read_columns(packaged("river", "datasets/shuttle.csv.gz"))
    target = table.pop("anomaly")
    return Raw(
        kind="tabular",
        task="binary",
        inputs=table,
        targets={"anomaly": target},
        classes=("normal", "anomaly"),
        source="river Shuttle: UCI Statlog (Shuttle), as in ODDS",
    )
