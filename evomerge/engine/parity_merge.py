"""Merging with mergekit's arithmetic, one tensor at a time, only to disk (``parity: mergekit``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evomerge.engine.architecture import Slot
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.tensor_merge import DTYPES, PendingTensor, TensorMerger
from evomerge.errors import UserError
from evomerge.methods.mergekit_arithmetic import merge_like_mergekit
from evomerge.recipes.recipe import Merge, Node, Source


class ParityMerger(TensorMerger):
    """A merger that casts every input first, computes in that dtype, and prepares nothing."""

    def __init__(self, models: OpenModels, compute_dtype: str | None) -> None:
        """Remember the dtype.

        Args:
            models: where tensors come from.
            compute_dtype: dtype of all arithmetic; None = the widest of the inputs' own.
        """
        super().__init__(models, torch.device("cpu"), state_memory_bytes=0)
        self._compute = None if compute_dtype is None else DTYPES[compute_dtype]

    def pending(self, node: Node, slot: Slot) -> PendingTensor:
        """The tensor, not prepared."""
        part, place = self._places.locate(node, slot)
        assert isinstance(part, Source | Merge)
        return PendingTensor(slot, None, part, place)

    def write(self, pending: PendingTensor, out: Tensor) -> None:
        """Write the merged tensor into ``out``, cast to its dtype.

        Raises:
            UserError: mergekit has no such method, or its result is random.
        """
        out.copy_(self._merged(pending.node, pending.place))

    def _merged(self, node: Node, slot: Slot) -> Tensor:
        part, place = self._places.locate(node, slot)
        if isinstance(part, Source):
            tensor = self.models.tensor(part, place.name)
            return tensor if self._compute is None else tensor.to(self._compute)
        assert isinstance(part, Merge)
        plan = self._plans[id(part)]
        structural, others = plan.values(place)
        values: dict[str, Any] = {**structural, **others}
        base = None if part.base is None else self._merged(part.base, place)
        experts = [self._merged(expert, place) for expert in plan.experts]
        dtype = experts[0].dtype
        for tensor in (*experts, *(() if base is None else (base,))):
            dtype = torch.promote_types(dtype, tensor.dtype)
        base = None if base is None else base.to(dtype)
        try:
            return merge_like_mergekit(part.method, base, [expert.to(dtype) for expert in experts], values)
        except ValueError as error:
            raise UserError(f"recipe: {part.method}, tensor {place.name}: {error}") from error
