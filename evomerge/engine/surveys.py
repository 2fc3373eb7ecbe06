"""Passes over a whole model for methods that need its statistics, made once for as long as nothing they see changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from evomerge.engine.architecture import Slot
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.whole_model import Statistics, WholeModelMethod

KEPT = 4  # statistics of as many merges, for searches that move between a few structural choices


class Surveyed(Protocol):
    """The merge node that is surveyed."""

    method: MergeMethod
    key_number: int

    def structural(self, slot: Slot) -> Mapping[str, Value]:
        """Structural hyperparameters of a tensor."""

    def tensors(self, slot: Slot) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Its base and experts."""

    def context(self, slot: Slot, statistics: Statistics) -> TensorContext:
        """What else the method may know of it."""


class Surveys:
    """Makes and keeps the statistics of merge nodes."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[int, Statistics]] = {}
        self._made = 0

    def of(
        self,
        merge: Surveyed,
        slots: Sequence[Slot],
        threads: TensorThreads | None,
        visited: Callable[[Slot], None] | None = None,
    ) -> tuple[int, Statistics]:
        """Statistics of one merge node over all its tensors, and a number that equal ones share.

        Args:
            merge: the node.
            slots: its tensors, in model order.
            threads: work on several tensors at once; None for one after the other.
            visited: called after each tensor of each pass.

        Returns:
            0 and nothing for a method or values that need no survey.
        """
        method = merge.method
        if not isinstance(method, WholeModelMethod):
            return 0, ()
        passes = {slot.name: method.num_surveys(merge.structural(slot)) for slot in slots}
        count = max(passes.values(), default=0)
        if not count:
            return 0, ()
        key = (merge.key_number, *(tuple(merge.structural(slot).items()) for slot in slots))
        if key in self._kept:
            found = self._kept.pop(key)  # and put back as the one to forget last
        else:
            statistics: Statistics = ()
            for index in range(count):
                asked = [slot for slot in slots if passes[slot.name] > index]
                statistics = (*statistics, _one_pass(method, merge, asked, statistics, threads, visited))
            self._made += 1
            found = (self._made, statistics)
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = found
        return found


def surveys_of(
    method: MergeMethod, values: Callable[[Slot], tuple[Mapping[str, Value], Any]], slots: Iterable[Slot]
) -> int:
    """How many passes a method needs over some tensors."""
    if not isinstance(method, WholeModelMethod):
        return 0
    return max((method.num_surveys(values(slot)[0]) for slot in slots), default=0)


def _one_pass(
    method: WholeModelMethod,
    merge: Surveyed,
    slots: Sequence[Slot],
    statistics: Statistics,
    threads: TensorThreads | None,
    visited: Callable[[Slot], None] | None,
) -> Any:
    def share(slot: Slot) -> Any:
        with torch.no_grad():
            base, experts = merge.tensors(slot)
            return method.survey(base, experts, merge.structural(slot), merge.context(slot, statistics))

    total = None
    shares = map(share, slots) if threads is None else threads.in_order(share, slots)
    for slot, found in zip(slots, shares, strict=True):
        total = method.fold(total, found)
        if visited is not None:
            visited(slot)
    return method.conclude(total)
