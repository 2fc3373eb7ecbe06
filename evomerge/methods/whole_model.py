"""Methods that look at the whole model before they merge a tensor of it: a threshold, a norm, a count.

Each pass over the model is a survey: every tensor gives its share, shares are folded in model order, and what is
concluded from them reaches ``prepare`` and the next survey as ``context.statistics``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value

Statistics = tuple[Any, ...]


class WholeModelMethod(MergeMethod):
    """A merge method with surveys. Given no statistics it takes the tensor at hand for the whole model."""

    @abstractmethod
    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """How many passes these values need, for one tensor; 0 where the tensor alone is enough."""

    @abstractmethod
    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Any:
        """One tensor's share of the pass after those that ``context.statistics`` holds; may be called by threads.

        Args:
            base: see ``prepare``.
            experts: see ``prepare``.
            structural: see ``prepare``.
            context: with the conclusions of the passes before.
        """

    @abstractmethod
    def fold(self, total: Any, share: Any) -> Any:
        """What is known after one more tensor.

        Args:
            total: what the last call returned, None at the first tensor; may be changed and returned.
            share: of the next tensor, in model order.
        """

    def conclude(self, total: Any) -> Any:
        """The statistics of one pass."""
        return total

    @abstractmethod
    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Any:
        """``prepare``, with one conclusion for every pass in ``context.statistics``."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Any:
        """State of one tensor for any later coefficients, see MergeMethod."""
        count = self.num_surveys(structural)
        while len(context.statistics) < count:
            share = self.survey(base, experts, structural, context)
            context = replace(context, statistics=(*context.statistics, self.conclude(self.fold(None, share))))
        return self.prepare_surveyed(base, experts, structural, context)
