"""Keep the k largest entries of a task vector, exactly k for any k, by two thresholds instead of a mask.

Entries are ordered by magnitude, equal ones by flat index. Let t be the k-th magnitude and c the flat index after the
k-th entry: then the kept entries are those with ``|τ| ≥ t`` before c and those with ``|τ| > t`` from c on. A table of
(t, c) by k answers any density without touching the tensor, in at most half a megabyte whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evomerge.methods.count_kernels import bfloat16_distances, select_largest
from evomerge.methods.sweep import split
from evomerge.methods.trim import BAND, MAGNITUDE, Rule

LEVELS = 1 << 16
_PIECE = 1 << 20
_CACHED = 1 << 16  # elements whose fp32 copies stay in the cache


@dataclass(frozen=True)
class MagnitudeTrim:
    """Zeroes entries below a magnitude.

    Attributes:
        threshold: entries of this magnitude are dropped from ``cut`` on.
        cut: flat index before which entries of this very magnitude are kept.
    """

    threshold: float
    cut: int

    def __call__(self, delta: Tensor, start: int, scratch: Tensor) -> None:
        """Zero the dropped entries of ``delta``, which starts at flat index ``start``."""
        below = float(np.nextafter(np.float32(self.threshold), np.float32(0.0)))
        position = self.cut - start
        if position >= len(delta):
            torch.hardshrink(delta, below, out=delta)
        elif position <= 0:
            torch.hardshrink(delta, self.threshold, out=delta)
        else:
            for part, limit in ((delta[:position], below), (delta[position:], self.threshold)):
                torch.hardshrink(part, limit, out=part)

    @property
    def rule(self) -> Rule:
        """The same as numbers."""
        return Rule(MAGNITUDE, self.threshold, self.cut)


@dataclass(frozen=True)
class BandTrim:
    """Zeroes entries below one magnitude and those above another.

    Attributes:
        lower: what is too small; None drops nothing.
        upper: keeps exactly what is too large; None if nothing is.
    """

    lower: MagnitudeTrim | None
    upper: MagnitudeTrim | None

    def __call__(self, delta: Tensor, start: int, scratch: Tensor) -> None:
        """Zero the dropped entries of ``delta``, which starts at flat index ``start``."""
        scratch.copy_(delta)
        if self.upper is not None:
            self.upper(scratch, start, scratch)
            delta.sub_(scratch)
        if self.lower is not None:
            self.lower(delta, start, scratch)

    @property
    def rule(self) -> Rule:
        """The same as numbers."""
        limit, cut = (0.0, 0) if self.lower is None else (self.lower.threshold, self.lower.cut)
        upper, upper_cut = (np.inf, 0) if self.upper is None else (self.upper.threshold, self.upper.cut)
        return Rule(BAND, limit, cut, upper, upper_cut)


class MagnitudeRanking:
    """Finds the trim of one task vector for any density.

    ``k = max(1, int(density · n))`` is exact for ``n <= 65536``; a larger tensor has 65536 levels, and k is rounded
    down to the next of them, by less than ``n / 65536`` (but never to 0).
    """

    def __init__(self, base: Tensor, expert: Tensor, with_table: bool) -> None:
        """Rank the entries.

        Args:
            base: flat ``(n,)``.
            expert: flat ``(n,)``.
            with_table: sort once for all densities; False selects anew for each, which is faster for a single one.
        """
        self._base, self._expert = base, expert
        self._size = self._num_nonzero = len(base)
        self._picks: npt.NDArray[np.int64] | None = None
        if with_table:
            ordered = _sort(self._keys())
            counts = self._count(np.arange(1, min(self._size, LEVELS) + 1))
            wanted = torch.from_numpy(counts[counts < self._num_nonzero] - 1)  # beyond, all that is not 0 is kept
            self._picks = ordered[wanted.to(ordered.device)].cpu().numpy()

    def trim(self, density: float) -> MagnitudeTrim | None:
        """What keeps that fraction of the entries; None when it keeps every entry that is not 0."""
        return self.keep_largest(max(1, int(density * self._size)))

    def band(self, density: float, gamma: float) -> BandTrim | None:
        """What drops the ``int(gamma · n)`` largest entries and keeps the ``int(density · n)`` next; None keeps all.

        Where both together are more than there are, fewer of the largest are dropped.
        """
        if density >= 1.0:
            return None
        kept = max(1, int(density * self._size))
        largest = min(int(gamma * self._size), self._size - kept)
        upper = None
        if largest > 0:
            upper = self.keep_largest(largest) or MagnitudeTrim(0.0, self._size)
        return BandTrim(self.keep_largest(largest + kept), upper)

    def keep_largest(self, count: int) -> MagnitudeTrim | None:
        """What keeps that many of the largest entries, or the next smaller level; None when all that are not 0."""
        level = self._level(count)
        if self._picks is not None:
            if level > len(self._picks):
                return None
            key = int(self._picks[level - 1])
        else:
            count = int(self._count(np.array([level]))[0])
            return self._select(count) if count < self._size else None
        return _trim(-(key >> 32), key & 0xFFFFFFFF)

    @property
    def table_bytes(self) -> int:
        """Bytes of the table."""
        return 0 if self._picks is None else self._picks.nbytes

    def _level(self, count: int) -> int:
        """The highest level, counted from 1, that keeps at most ``count`` entries."""
        levels = min(self._size, LEVELS)
        return max(1, ((count + 1) * levels - 1) // self._size)

    def _count(self, level: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many entries a level keeps."""
        counts: npt.NDArray[np.int64] = level * self._size // min(self._size, LEVELS)
        return counts

    def _select(self, count: int) -> MagnitudeTrim | None:
        """What keeps exactly that many of the largest entries; None when all that are not 0."""
        if self._base.device.type != "cpu":
            keys = self._keys()
            if count >= self._num_nonzero:
                return None
            key = int(keys.kthvalue(count).values)
            return _trim(-(key >> 32), key & 0xFFFFFFFF)
        bits, index = select_largest(self._magnitudes(), count)
        return _trim(bits, index) if bits else None

    def _magnitudes(self) -> npt.NDArray[np.uint32]:
        """Bits of ``|expert - base|`` in fp32 ``(n,)``."""
        words = np.empty(self._size, dtype=np.uint32)
        if self._base.dtype == self._expert.dtype == torch.bfloat16:
            base, expert = (tensor.view(torch.int16).numpy().view(np.uint16) for tensor in (self._base, self._expert))
            bfloat16_distances(expert, base, words)
            return words
        magnitudes = torch.from_numpy(words.view(np.float32))
        for base, expert, piece in zip(
            *(split(whole, _CACHED) for whole in (self._base, self._expert, magnitudes)), strict=True
        ):
            torch.sub(piece.copy_(expert), base.float(), out=piece).abs_()
        return words

    def _keys(self) -> Tensor:
        """One int64 for each entry; ascending order is falling magnitude, then rising flat index."""
        assert self._size < 1 << 31
        keys = torch.empty(self._size, dtype=torch.int64, device=self._base.device)
        halves = keys.view(torch.int32).view(-1, 2)  # little-endian: the low half first
        torch.arange(self._size, dtype=torch.int32, device=keys.device, out=halves[:, 0])
        self._num_nonzero = 0
        for base, expert, half in zip(
            *(split(whole, _PIECE) for whole in (self._base, self._expert, halves)), strict=True
        ):
            # As fp32, subtracted and not cast afterwards: the very values that apply compares with the threshold.
            bits = expert.to(torch.float32, copy=True).sub_(base.float()).abs_().view(torch.int32)
            self._num_nonzero += int(bits.count_nonzero())
            torch.neg(bits, out=half[:, 1])
        return keys


def _sort(keys: Tensor) -> Tensor:
    if keys.device.type != "cpu":
        return keys.sort().values
    keys.numpy().sort()  # ten times as fast as torch's sort on a CPU
    return keys


def _trim(bits: int, index: int) -> MagnitudeTrim:
    """What keeps entries down to the one of this magnitude, given as bits of an fp32 number, at this index."""
    return MagnitudeTrim(float(np.array(bits, dtype=np.int32).view(np.float32)), index + 1)
