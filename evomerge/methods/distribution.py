"""How the values of a whole model are distributed, to answer "what is the k-th largest" for any k."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evomerge.methods.inputs import Inputs
from evomerge.methods.sweep import split

EXACT = 1 << 21  # values up to which every one is kept
_SHIFT = 11  # bits of an fp32 number that a bin leaves out: bins are 2^-12 of their value wide
_PIECE = 1 << 20

Keys = npt.NDArray[np.uint32]


@dataclass
class Distribution:
    """Counted values that grow tensor by tensor: the values themselves while they are few, bins of them after that.

    Not usable for ranks before ``finish``.

    Attributes:
        size: number of values.
        largest: the largest value, 0 without one.
    """

    size: int = 0
    largest: float = 0.0
    _exact: list[Keys] = field(default_factory=list)
    _bins: npt.NDArray[np.int64] | None = None
    _edges: Keys = field(default_factory=lambda: np.empty(0, dtype=np.uint32))
    _from_top: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @classmethod
    def of(cls, values: Tensor) -> Distribution:
        """The distribution of the values of an fp32 tensor."""
        counted = cls()
        for piece in split(values.detach().reshape(-1), _PIECE):
            counted._add_keys(_keys(piece.cpu().float()))
        return counted

    def add(self, other: Distribution) -> Distribution:
        """Take in another's values, and return this one."""
        if other._bins is None:
            for keys in other._exact:
                self._add_keys(keys)
            return self
        self._to_bins()
        assert self._bins is not None
        self._bins += other._bins
        self._count(other.size, other.largest)
        return self

    def finish(self) -> Distribution:
        """Make ready for questions; nothing can be added any more. Returns itself."""
        if self._bins is None:
            keys, counts = np.unique(np.concatenate(self._exact or [self._edges]), return_counts=True)
            self._edges, self._exact = keys, []
        else:
            filled = np.flatnonzero(self._bins)
            counts, self._bins = self._bins[filled], None
            self._edges = (filled << _SHIFT).astype(np.uint32)
        self._from_top = np.cumsum(counts[::-1])[::-1].astype(np.int64)
        return self

    def kth_largest(self, count: int) -> float:
        """The ``count``-th largest value, 1 being the largest: exact up to EXACT values, else rounded down to 12 bits.

        So at least ``count`` values are as large. Counts beyond the ends mean the ends; without values it is 0.
        """
        if not self.size:
            return 0.0
        count = min(max(count, 1), self.size)
        position = int(np.searchsorted(-self._from_top, -count, side="right")) - 1
        return _value(self._edges[position])

    @property
    def num_bytes(self) -> int:
        """Bytes of the finished distribution."""
        return self._edges.nbytes + self._from_top.nbytes

    def _add_keys(self, keys: Keys) -> None:
        if not len(keys):
            return
        if self._bins is None and self.size + len(keys) > EXACT:
            self._to_bins()
        self._count(len(keys), _value(keys.max()))
        if self._bins is None:
            self._exact.append(keys)
        else:
            self._bins += np.bincount(keys >> _SHIFT, minlength=len(self._bins))

    def _to_bins(self) -> None:
        if self._bins is None:
            self._bins = np.zeros(1 << (32 - _SHIFT), dtype=np.int64)
            for keys in self._exact:
                self._bins += np.bincount(keys >> _SHIFT, minlength=len(self._bins))
            self._exact = []

    def _count(self, size: int, largest: float) -> None:
        self.largest = max(largest, self.largest) if self.size else largest
        self.size += size


def task_vector_magnitudes(inputs: Inputs) -> list[Distribution]:
    """For each expert the distribution of ``|τ|``, in fp32."""
    found = []
    for expert in inputs.experts:
        counted = Distribution()
        for origin, end in zip(split(inputs.origin, _PIECE), split(expert, _PIECE), strict=True):
            counted.add(Distribution.of((end.float() - origin.float()).abs_()))
        found.append(counted)
    return found


def add_each(total: list[Distribution] | None, share: list[Distribution]) -> list[Distribution]:
    """Each expert's distribution with that of one more tensor."""
    return share if total is None else [all_.add(more) for all_, more in zip(total, share, strict=True)]


def _keys(values: Tensor) -> Keys:
    """Whole numbers in the order of the fp32 numbers; both zeros have the same."""
    bits = (values + 0.0).contiguous().view(torch.int32).numpy().astype(np.int64)
    return np.where(bits < 0, -1 - bits, bits + (1 << 31)).astype(np.uint32)


def _value(key: np.uint32) -> float:
    bits = int(key)
    bits = bits - (1 << 31) if bits >= 1 << 31 else -1 - bits
    return float(np.array(bits, dtype=np.int64).astype(np.int32).view(np.float32))
