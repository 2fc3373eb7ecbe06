"""Merges whose coefficients change inside tensors: every piece of such a tensor is a merge of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from evomerge.engine.architecture import Architecture
from evomerge.errors import MergeFailed, UserError
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.recipes.recipe import Merge
from evomerge.recipes.tensor_layout import Piece, TensorLayout


def layout_of(architecture: Architecture) -> TensorLayout:
    """The parameters of a model as one row, in the order of its tensors; tied ones once."""
    return TensorLayout((slot.name, slot.num_elements) for slot in architecture.slots)


def pieces_of(node: Merge, architecture: Architecture) -> Mapping[str, tuple[Piece, ...]]:
    """Tensor name to the pieces of a merge with stretches; empty for one without.

    Raises:
        UserError: the stretches were laid over other tensors.
        MergeFailed: a coefficient is NaN or infinite.
    """
    if node.stretches is None:
        return {}
    for part in node.stretches.parts:
        if not all(math.isfinite(value) for value in part.value):
            raise MergeFailed(f"{node.method}: coefficients {list(part.value)} from {part.tensor}[{part.offset}] on")
    try:
        return layout_of(architecture).pieces(node.stretches)
    except ValueError as error:
        raise UserError(f"recipe: stretches: {error}") from None


def write_pieces(
    method: MergeMethod,
    experts: Sequence[Tensor],
    structural: Mapping[str, Value],
    context: TensorContext,
    pieces: Sequence[Piece],
    out: Tensor,
) -> None:
    """Write a tensor piece by piece.

    Args:
        method: a method that treats every entry alike.
        experts: E tensors.
        structural: values of the method's structural hyperparameters.
        context: what the method may know of the tensor.
        pieces: cover the tensor.
        out: the tensor, its entries equally far apart.
    """
    flat = out.view(-1)
    for piece in pieces:
        parts = [expert.reshape(-1)[piece.start : piece.end] for expert in experts]
        state: Any = method.prepare(None, parts, structural, context)
        method.apply(state, {"coefficient": piece.value}, flat[piece.start : piece.end])
