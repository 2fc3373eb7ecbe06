"""Compiled loops that count and find values by their bits; used where sorting would only look for one rank.

numba compiles them at first use and keeps the result on disk; all that they call is in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Words = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

_BLOCK = 2048

# Indices are unsigned: a signed one might count from the end, which keeps loops from becoming vector instructions.

_compile: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)


@_compile
def bfloat16_distances(left, right, words):  # type: ignore[no-untyped-def]
    """Write the bits of ``|left - right|`` in fp32, of numbers given as the bits of bf16."""
    first, second = np.empty(_BLOCK, dtype=np.uint32), np.empty(_BLOCK, dtype=np.uint32)
    minuend, subtrahend, distance = first.view(np.float32), second.view(np.float32), words.view(np.float32)
    for start in range(0, words.size, _BLOCK):
        lefts, rights, distances = left[start:], right[start:], distance[start:]
        size = np.uint64(min(_BLOCK, words.size - start))
        for index in range(size):
            first[index] = np.uint32(lefts[index]) << np.uint32(16)
            second[index] = np.uint32(rights[index]) << np.uint32(16)
        for index in range(size):
            distances[index] = abs(minuend[index] - subtrahend[index])


@_compile
def count_upper(words, shift, counts):  # type: ignore[no-untyped-def]
    """Add one to ``counts[word >> shift]`` for every word."""
    for index in range(np.uint64(words.size)):
        counts[words[index] >> np.uint32(shift)] += 1


@_compile
def count_lower(words, shift, upper, counts):  # type: ignore[no-untyped-def]
    """Add one to ``counts[lower bits]`` for every word whose upper bits are ``upper``."""
    mask = np.uint32((1 << shift) - 1)
    for index in range(np.uint64(words.size)):
        if words[index] >> np.uint32(shift) == np.uint32(upper):
            counts[words[index] & mask] += 1


@_compile
def find_equal(words, value, rank):  # type: ignore[no-untyped-def]
    """Index of the ``rank``-th word, from 1, that is ``value``; -1 where there are fewer."""
    for index in range(np.uint64(words.size)):
        if words[index] == np.uint32(value):
            rank -= 1
            if rank == 0:
                return index
    return -1


def select_largest(words: Words, rank: int) -> tuple[int, int]:
    """The word of a rank when the largest come first and equal ones in their order, and its index.

    Args:
        words: ``(n,)``, below 2^31.
        rank: from 1 to n.
    """
    upper, lower = np.zeros(1 << 16, dtype=np.int64), np.zeros(1 << 15, dtype=np.int64)
    count_upper(words, 15, upper)
    high, rank = _ranked(upper, rank)
    count_lower(words, 15, high, lower)
    low, rank = _ranked(lower, rank)
    word = high << 15 | low
    return word, int(find_equal(words, word, rank))


def _ranked(counts: Counts, rank: int) -> tuple[int, int]:
    """The place that holds a rank counted from the last one, and the rank that is left within it."""
    from_last = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_last, rank))
    before = int(from_last[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before
