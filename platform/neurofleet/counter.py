"""Randomness as a function: numbers that depend on (seed, step, site, row) and on nothing else.

A counter-based generator in the sense of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": every
draw hashes its own coordinates, so nothing random is ever saved, and a result does not depend on how many workers
share a batch, on the stack that a trial sits in, or on where a run was cut.  The hash is `lowbias32` of Chris
Wellons' hash-prospector (two multiplications; 32-bit, since 64-bit products cost five times as much on a CPU).

Keys are Python ints, or int32 tensors where every trial of a stack has a seed of its own (`torch.func.vmap`); both give
the same numbers.
"""

from __future__ import annotations

import functools
import math
from math import prod

import torch
from torch import Tensor

Key = int | Tensor

_GOLDEN = 0x9E3779B9
_MULTIPLIER_1, _MULTIPLIER_2 = 0x21F0AAAD, 0xD35A2D97
_WORD = 0xFFFFFFFF


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 32) if word >= 1 << 31 else word


def _mix(word: Key) -> Key:
    if isinstance(word, int):
        word &= _WORD
        word ^= word >> 16
        word = word * _MULTIPLIER_1 & _WORD
        word ^= word >> 15
        word = word * _MULTIPLIER_2 & _WORD
        return _signed(word ^ word >> 15)
    word = _premix(word)
    return word ^ _shift(word, 15)


def _premix(word: Tensor) -> Tensor:
    """`_mix` without its last exclusive-or, which only improves the low bits."""
    word = word ^ _shift(word, 16)
    word = word.mul_(_signed(_MULTIPLIER_1))
    word = word.bitwise_xor_(_shift(word, 15))
    return word.mul_(_signed(_MULTIPLIER_2))


def _shift(word: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (int32 tensors shift arithmetically)."""
    return (word >> bits).bitwise_and_(_WORD >> bits)


@functools.lru_cache(maxsize=256)
def _columns(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.int32, device=device) * _signed(_GOLDEN)


def fold(key: Key, *words: Key) -> Key:
    """A new key from a key and words (a step, a site, an epoch); the order of the words matters.

    Keys lie multiples of the golden ratio apart, hence as far from each other as can be: with a small factor, 31 say,
    step 31 of seed 0 and step 0 of seed 1 would draw the same numbers.
    """
    for word in words:
        if isinstance(key, int):
            key = _signed(key * _GOLDEN + _GOLDEN)
            key = _mix(key + word)
        else:
            key = _mix(key * _signed(_GOLDEN) + word + _signed(_GOLDEN))
    return key


def _words(key: Key, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """int32 words whose high bits are uniform: shape [len(rows), *shape].  `rows` are int32 global row numbers."""
    words = _premix(fold(key, rows).unsqueeze(-1) + _columns(prod(shape), rows.device))  # type: ignore[union-attr]
    return words.reshape(-1, *shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def uniform(key: Key, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1) with 24 bits each, equal in every dtype: shape [len(rows), *shape].

    Narrower dtypes than float32 could not hold them (bfloat16 would round some to 1), so they get float32.
    """
    return (_words(key, rows, shape) >> 8).to(_wide(dtype)).mul_(2.0**-24).add_(0.5)


def normal(key: Key, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by the inverse of the distribution function, none beyond 5.5: shape [len(rows), *shape].

    Each takes the middle of one of 2^24 equal parts of the probability, which float32 holds exactly; that is what
    narrower dtypes get.
    """
    middles = (_words(key, rows, shape) >> 8).to(_wide(dtype)).add_(0.5).mul_(2.0**-23)
    return middles.erfinv_().mul_(math.sqrt(2))


def bernoulli(key: Key, rows: Tensor, shape: tuple[int, ...], probability: float | Tensor) -> Tensor:
    """True with `probability` (a float, or a float64 scalar tensor in a stack of trials): bool [len(rows), *shape].

    It is the comparison of `uniform` in float64, on the words themselves: fewer passes over memory, and the same in
    every dtype.
    """
    words = _words(key, rows, shape)
    if isinstance(probability, Tensor):
        threshold = (probability.double() * (1 << 24)).ceil() - (1 << 23)
        return (words >> 8) < threshold.to(torch.int32)
    if probability > 1 - 2.0**-24:  # above the largest number that `uniform` gives, and no int32 is above all words
        return torch.ones_like(words, dtype=torch.bool)
    return words < (math.ceil(probability * (1 << 24)) - (1 << 23)) << 8


def permutations(keys: Tensor, size: int) -> Tensor:
    """A random order of range(size) for every key, int64 [len(keys), size], the same on every machine.

    The hash maps no two rows to one word, so there are no ties.
    """
    rows = torch.arange(size, dtype=torch.int32)
    return torch.argsort(_words(keys.unsqueeze(-1), rows, ()).view(len(keys), size))
