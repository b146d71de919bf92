"""The transformer on mnist5k's patches, on Python's manual character by character, and on food reviews.

The settings were chosen on val rows.  An epoch of pydoc_topics reads each character four times (its windows overlap);
the n-gram model, the trivial baseline there, reads each once and is scored on the same characters.
"""

import collections
import math

import numpy as np
from rows import SEEDS, Row, fitted
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from neurofleet.data import ParquetDataModule

STRIDE = 64  # of pydoc_topics' windows


def witten_bell(data: ParquetDataModule, order: int = 5) -> float:
    """Bits per character of the interpolated n-gram model of Witten and Bell (1991) on the scored test characters.

    After a history h that was seen n(h) times with t(h) different successors, c has probability
    (n(h, c) + t(h) P(c | shorter h)) / (n(h) + t(h)); at the end of the shortest stands the uniform distribution.
    """
    text = written_out(data)
    counts: list[dict[str, collections.Counter[str]]] = [
        collections.defaultdict(collections.Counter) for _ in range(order)
    ]
    for length, successors in enumerate(counts):
        for place in range(length, len(text)):
            successors[text[place - length : place]][text[place]] += 1
    num_tokens = data.spec.num_tokens

    def bits(row: str, place: int) -> float:
        probability = 1 / num_tokens
        for length, successors in enumerate(counts):
            seen = successors.get(row[place - length : place])
            if seen is None:
                break
            different = len(seen)
            probability = (seen[row[place]] + different * probability) / (seen.total() + different)
        return -math.log2(probability)

    inputs, given = data.rows("test")
    texts = ["".join(map(chr, row)) for row in inputs.tolist()]
    scored = [
        bits(text, place)
        for text, first in zip(texts, given.tolist(), strict=True)
        for place in range(first, len(text))
        if text[place] != chr(0)
    ]
    return float(np.mean(scored))


def written_out(data: ParquetDataModule) -> str:
    """The training text, a character for each token: the rows without what they share with those before them."""
    inputs, given = (tensor.numpy() for tensor in data.rows("train"))
    parts: list[np.ndarray] = []
    for row, first, before in zip(inputs, given, [None, *inputs[:-1]], strict=True):
        if before is None:
            parts.append(row)
        elif first > 1:  # of val: what is given has been said
            parts.append(row[first:])
        else:
            parts.append(row[len(row) - STRIDE :])
    return "".join(map(chr, np.concatenate(parts)))


def bag_of_words(data: ParquetDataModule) -> float:
    """Accuracy of a logistic regression on how often each word occurs."""

    def counted(stage: str) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = (tensor.numpy() for tensor in data.rows(stage))
        counts = np.zeros((len(inputs), data.spec.num_tokens), dtype=np.float32)
        for row, tokens in zip(counts, inputs, strict=True):
            np.add.at(row, tokens[tokens > 0], 1)
        return counts, targets.ravel()

    return float(LogisticRegression(C=0.1, max_iter=2000).fit(*counted("train")).score(*counted("test")))


SUPPORT_VECTORS = ("support vectors, RBF", fitted(lambda: SVC(C=10.0)))
WITTEN_BELL = ("5-grams, Witten and Bell", witten_bell)
BAG_OF_WORDS = ("logistic regression on counts of words", bag_of_words)
ROWS = (
    Row(("experiment=mnist5k_transformer",), SEEDS, "accuracy", 0.965, (SUPPORT_VECTORS,)),
    Row(("experiment=pydoc_topics_transformer",), SEEDS, "bits_per_character", 1.93, (WITTEN_BELL,), lower=True),
    Row(("experiment=food_reviews_transformer",), SEEDS, "accuracy", 0.77, (BAG_OF_WORDS,)),
)
