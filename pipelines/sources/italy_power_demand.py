"""1,096 days of electricity demand in Italy, one number an hour: a day of October to March, or of April to September?

The division is the archive's own, 67 days to learn from and 1,029 for test.  Each day was standardised by the archive.
"""

from __future__ import annotations

from neurofleet.data.sources import coded, packaged, read_ts, stacked
from neurofleet.data.write import Raw


def load() -> Raw:
    folder = packaged("aeon", "datasets/data/ItalyPowerDemand")
    train, train_seasons = read_ts(folder / "ItalyPowerDemand_TRAIN.ts")
    test, test_seasons = read_ts(folder / "ItalyPowerDemand_TEST.ts")
    values, stages = stacked(train, test)
    return Raw(
        kind="sequence",
        task="binary",
        inputs={"demand": values},
        targets={"season": coded([*train_seasons, *test_seasons], ("1", "2"))},
        classes=("october_to_march", "april_to_september"),
        stages=stages,
        source="aeon ItalyPowerDemand (UCR archive): Keogh et al., Intelligent Icons, 2006",
    )
