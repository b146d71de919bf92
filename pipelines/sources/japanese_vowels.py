"""640 utterances of two Japanese vowels, 12 cepstral coefficients over 7 to 29 steps: which of 9 speakers is it?

The division is the archive's own: 30 utterances of each speaker to learn from, 24 to 88 for test.  Short utterances are
filled up with NaN at their end.
"""

from __future__ import annotations

from neurofleet.data.sources import coded, packaged, read_ts, stacked
from neurofleet.data.write import Raw


def load() -> Raw:
    folder = packaged("aeon", "datasets/data/JapaneseVowels")
    train, train_speakers = read_ts(folder / "JapaneseVowels_TRAIN.ts")
    test, test_speakers = read_ts(folder / "JapaneseVowels_TEST.ts")
    values, stages = stacked(train, test)
    speakers = [str(number) for number in range(1, 10)]
    return Raw(
        kind="sequence",
        task="multiclass",
        inputs={"cepstrum": values},
        targets={"speaker": coded(train_speakers + test_speakers, speakers)},
        classes=tuple(f"speaker_{number}" for number in speakers),
        stages=stages,
        source="aeon JapaneseVowels (UEA archive, UCI): Kudo, Toyama, Shimbo 1999",
    )
