"""Text as tokens: how it is cut up, the vocabulary of the training rows, and rows of token numbers.

Three tokenizers:

    words       lower-case words and punctuation marks: `\\w+(?:'\\w+)*|[^\\w\\s]` on the text in lower case, so that
                "Don't!" is `don't` and `!`
    characters  each character as it is
    wordpieces  those of a pretrained encoder (BERT, uncased): lower case, accents taken off, each word cut into the
                longest pieces of the vocabulary from its start on (a piece within a word starts with `##`), between
                `[CLS]` and `[SEP]`.  The library `tokenizers` does it, and is imported only then.

A token's number is its place in `spec.vocabulary` plus 2: 0 is padding after the end, 1 a token that is not in it.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from neurofleet.data import tables
from neurofleet.data.sources import library
from neurofleet.errors import DataError
from neurofleet.spec import RESERVED_TOKENS, DataSpec, Tokenizer

UNKNOWN = 1
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # what a vocabulary of word pieces has to hold


def tokenise(text: str, tokenizer: Tokenizer, vocabulary: tuple[str, ...] = ()) -> list[str]:
    """A text's tokens in their order; word pieces are those of a vocabulary."""
    if tokenizer == "wordpieces":
        return list(_pieces(vocabulary).encode(_whole(text)).tokens)
    return _WORD.findall(text.lower()) if tokenizer == "words" else list(text)


@functools.lru_cache(maxsize=4)
def _pieces(vocabulary: tuple[str, ...]) -> Any:
    """The library's tokenizer; a token's id is its place.

    Raises:
        ConfigError: the library is not installed.
        DataError: the vocabulary lacks a special piece.
    """
    lacking = [piece for piece in PIECES if piece not in vocabulary]
    if lacking:
        raise DataError(f"a vocabulary of word pieces needs {', '.join(PIECES)}, it lacks {', '.join(lacking)}")
    return library("tokenizers").BertWordPieceTokenizer({piece: place for place, piece in enumerate(vocabulary)})


def _whole(text: str) -> str:
    """Without halves of characters, which the library refuses; it drops what stands in their place."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def build_vocabulary(rows: Iterable[str], tokenizer: Tokenizer, most: int) -> tuple[str, ...]:
    """The `most` frequent tokens of `rows`, most frequent first; equally frequent ones in the order of their code
    points.

    Raises:
        DataError: for word pieces, whose vocabulary comes with an encoder that was pretrained.
    """
    if tokenizer == "wordpieces":
        raise DataError("a vocabulary of word pieces comes with a pretrained encoder; prepare data as words")
    counts: collections.Counter[str] = collections.Counter()
    for text in rows:
        counts.update(tokenise(text, tokenizer))
    return tuple(sorted(counts, key=lambda token: (-counts[token], token))[:most])


def token_names(spec: DataSpec) -> tuple[str, ...]:
    """What each token number stands for, [num_tokens]."""
    return ("<padding>", "<unknown>", *spec.vocabulary)


def text_column(table: Any, column: str, where: str) -> list[str]:
    """The texts of a table's column, or of a numpy array [N] or [N,1] of strings."""
    if isinstance(table, np.ndarray):
        if table.ndim != 1 and table.shape[1:] != (1,):
            raise DataError(f"{where} needs one text a row, got an array of shape {table.shape}")
        rows = table.reshape(-1).tolist()
    else:
        tables.require_columns(table, [column], where)
        rows = table.column(column).to_pylist() if isinstance(table, pa.Table) else table[column].tolist()
    bad = [index for index, row in enumerate(rows) if not isinstance(row, str)]
    if bad:
        raise DataError(
            f"{where}: column {column!r} needs a text in each row, got {len(bad)} rows without one, "
            f"the first is row {bad[0]} (counting from 0), {rows[bad[0]]!r}; fill or drop these rows"
        )
    return rows


def token_array(rows: Sequence[str], spec: DataSpec, where: str) -> np.ndarray:
    """Texts to token numbers, int64 [N,T].

    Of a longer text the first T tokens count; for the task language the last T, since those decide what comes next.
    Raises DataError for a text without any token.
    """
    (length,) = spec.shape
    part = slice(-length, None) if spec.task == "language" else slice(length)
    if spec.tokenizer == "characters":
        rows = [row[part] for row in rows]
        lengths, flat = np.array([len(row) for row in rows], dtype=np.int64), _characters("".join(rows), spec)
    elif spec.tokenizer == "wordpieces":
        lengths, flat = _numbered_pieces(rows, spec)
    else:
        numbers = {token: index + RESERVED_TOKENS for index, token in enumerate(spec.vocabulary)}
        tokens = [[numbers.get(token, UNKNOWN) for token in tokenise(row, spec.tokenizer)[part]] for row in rows]
        lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        flat = np.array([number for row in tokens for number in row], dtype=np.int64)
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise DataError(
            f"{where}: column {spec.inputs[0]!r} needs a text of at least one token in each row, got {len(empty)} "
            f"empty ones, the first in row {empty[0]} (counting from 0); drop these rows"
        )
    values = np.zeros((len(rows), length), dtype=np.int64)
    values[np.arange(length) < lengths[:, None]] = flat
    return values


def _numbered_pieces(rows: Sequence[str], spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens each text has, and all of them in a row; of a longer one the last is `[SEP]` too."""
    (most,) = spec.shape
    cut = _pieces(spec.vocabulary).encode_batch([_whole(row) for row in rows], add_special_tokens=False)
    begin, end = (spec.vocabulary.index(piece) + RESERVED_TOKENS for piece in ("[CLS]", "[SEP]"))
    tokens = [np.array(row.ids[: most - 2], dtype=np.int64) + RESERVED_TOKENS for row in cut]
    lengths = np.array([len(row) + 2 if len(row) else 0 for row in tokens], dtype=np.int64)
    return lengths, np.concatenate([[begin, *row, end] for row in tokens if len(row)] or [[]]).astype(np.int64)


def _characters(text: str, spec: DataSpec) -> np.ndarray:
    """The token number of each character, by a search in the sorted code points of the vocabulary."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    known = np.array([ord(character) for character in spec.vocabulary], dtype=np.uint32)
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known, points, sorter=order), len(known) - 1)]
    return np.where(known[places] == points, places + RESERVED_TOKENS, UNKNOWN).astype(np.int64)
