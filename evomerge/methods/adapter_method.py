"""Merge methods on the factors of LoRA adapters instead of on task vectors.

What an adapter adds to a matrix is a product ``B A``, and the same product has many factors: a method that treats A and
B in different ways needs those that were trained. They reach ``prepare`` as ``context.factors``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Inputs, Values
from evomerge.methods.spectral import one_thread


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one tensor: ``up @ down``, or its transpose.

    Attributes:
        up: fp32 ``(out, r)``, the adapter's B times its own scale (``lora_alpha / r``).
        down: fp32 ``(r, in)``, the adapter's A.
        is_transposed: whether the tensor is stored as ``(in, out)``.
    """

    up: Tensor
    down: Tensor
    is_transposed: bool = False

    @property
    def rank(self) -> int:
        """Rank r of the product."""
        return int(self.down.shape[0])

    def flat_product(self) -> Tensor:
        """The added change in the tensor's layout, flat ``(n,)``; the same bits for any number of threads."""
        with one_thread():
            product = self.up @ self.down
        return (product.T if self.is_transposed else product).reshape(-1)


@dataclass(frozen=True)
class AdapterState:
    """One tensor of the base and what a method prepared of the adapters.

    Attributes:
        base: flat ``(n,)``.
        prepared: of the experts that adapt the tensor; the method's own, None where no expert does.
        num_experts: E.
        num_bytes: memory of ``prepared`` and of a copied base.
    """

    base: Tensor
    prepared: Any
    num_experts: int
    num_bytes: int = 0


class AdapterMethod(MergeMethod):
    """A merge method that makes one adapter of many and adds it to the base.

    ``prepare`` gets no experts; ``context.factors`` holds one entry for each, None where an adapter leaves the tensor
    alone. Everything else is as in MergeMethod's contract.
    """

    @abstractmethod
    def prepare_factors(
        self, factors: Sequence[Factors | None], structural: Mapping[str, Value], context: TensorContext
    ) -> tuple[Any, int]:
        """What ``merged`` needs of factors of one shape and layout, at least one of which is there, and its bytes."""

    @abstractmethod
    def merged(self, prepared: Any, values: Values) -> Factors:
        """The merged adapter of one tensor.

        Raises:
            ValueError: values the method does not take.
        """

    @abstractmethod
    def check_values(self, values: Values, count: int) -> None:
        """Read every value, also where no expert adapts the tensor.

        Raises:
            ValueError: values the method does not take.
        """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> AdapterState:
        """Check the factors and prepare them.

        Raises:
            ValueError: no base, experts given as tensors, or factors whose ranks or shapes differ.
        """
        if experts or len(context.factors) != len(context.expert_keys):
            raise ValueError("the method merges LoRA adapters by their factors, not whole tensors")
        if base is None:
            raise ValueError("the method needs a base, to which the merged adapter is added")
        inputs = Inputs.check(None, [base])
        flat = inputs.experts[0]
        there = {name: entry for name, entry in zip(context.expert_keys, context.factors) if entry is not None}
        if not there:
            return AdapterState(flat, None, len(context.factors))
        _check(there, base)
        with torch.no_grad():
            prepared, num_bytes = self.prepare_factors(context.factors, structural, context)
        return AdapterState(flat, prepared, len(context.factors), num_bytes + inputs.copied_bytes)

    @torch.no_grad()
    def apply(self, state: AdapterState, values: Mapping[str, Value | Sequence[float]], out: Tensor) -> None:
        """Write base plus merged adapter.

        Raises:
            ValueError: values the method does not take.
        """
        if state.prepared is None:
            self.check_values(values, state.num_experts)
            out.copy_(state.base.view(out.shape))
            return
        change = self.merged(state.prepared, values).flat_product()
        weighted_sum(out, [state.base, change], [1.0, 1.0])

    def is_constant(self, state: AdapterState) -> bool:
        """Whether no adapter changes the tensor."""
        return state.prepared is None

    def state_bytes(self, state: AdapterState) -> int:
        """Bytes of what was prepared."""
        return state.num_bytes


def _check(factors: Mapping[str, Factors], base: Tensor) -> None:
    ranks = {name: entry.rank for name, entry in factors.items()}
    if len(set(ranks.values())) > 1:
        listed = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        raise ValueError(
            f"adapters must have one rank, got {listed}: factors of different rank cannot be added. Train them with "
            "one rank, or merge them as task vectors (task_arithmetic)"
        )
    for name, entry in factors.items():
        shape = (entry.up.shape[0], entry.down.shape[1])
        if shape[0] * shape[1] != base.numel() or entry.up.shape[1] != entry.rank:
            raise ValueError(f"the factors of {name} make a matrix of {list(shape)}, the tensor is {list(base.shape)}")
    if len({(entry.up.shape, entry.down.shape, entry.is_transposed) for entry in factors.values()}) > 1:
        raise ValueError(f"the factors of {', '.join(factors)} must have one shape")
