"""CO2 in the air on Mauna Loa, weekly from 1958 to 2001: two years of values, and what the next half-year brings?

A row is 104 weeks and the 26 after them, all in ppm above the last of the 104: the level itself rises beyond
everything that was ever seen in training.  59 missing weeks of the 2,284 are filled in, in a straight line between
their neighbours.

Divided by time: the weeks that test has to foretell are the last fifth, those of val the tenth before.  No week is a
target in two stages; what a row looks back on may reach before the border, as it does for a forecaster.
"""

from __future__ import annotations

import numpy as np

from neurofleet.data.sources import packaged, read_columns
from neurofleet.data.write import Raw

BACK, AHEAD = 104, 26


def load() -> Raw:
    weeks = read_columns(packaged("statsmodels", "datasets/co2/co2.csv"))["co2"].astype(np.float64)
    there = np.flatnonzero(~np.isnan(weeks))
    filled = np.interp(np.arange(len(weeks)), there, weeks[there])
    windows = np.lib.stride_tricks.sliding_window_view(filled, BACK + AHEAD)
    windows = np.round(windows - windows[:, BACK - 1 : BACK], 6)  # what lies beyond is rounding
    first = np.arange(len(windows)) + BACK  # week that each row has to foretell
    test, val = len(weeks) * 8 // 10, len(weeks) * 7 // 10
    return Raw(
        kind="sequence",
        task="regression",
        inputs={"co2": windows[:, :BACK, None]},
        targets={f"week_{week + 1}": windows[:, BACK + week] for week in range(AHEAD)},
        stages={
            "train": np.flatnonzero(first + AHEAD <= val),
            "val": np.flatnonzero((first >= val) & (first + AHEAD <= test)),
            "test": np.flatnonzero(first >= test),
        },
        source="statsmodels co2: Keeling and Whorf, Mauna Loa; 59 missing weeks interpolated",
    )
