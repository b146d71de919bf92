"""80 recordings of a smart watch, 100 steps of acceleration and rotation in 3 axes each, of four activities.

The division is the archive's own, 40 and 40.
"""

from __future__ import annotations

from neurofleet.data.sources import coded, packaged, read_ts, stacked
from neurofleet.data.write import Raw

CLASSES = ("Standing", "Running", "Walking", "Badminton")


def load() -> Raw:
    folder = packaged("aeon", "datasets/data/BasicMotions")
    train, train_motions = read_ts(folder / "BasicMotions_TRAIN.ts")
    test, test_motions = read_ts(folder / "BasicMotions_TEST.ts")
    values, stages = stacked(train, test)
    return Raw(
        kind="sequence",
        task="multiclass",
        inputs={"motion": values},
        targets={"activity": coded([*train_motions, *test_motions], CLASSES)},
        classes=tuple(name.lower() for name in CLASSES),
        stages=stages,
        source="aeon BasicMotions (UEA archive)",
    )
