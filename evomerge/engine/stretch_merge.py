"""Merges whose coefficients change inside tensors: every piece of such a tensor is a merge of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from evomerge.engine.architecture import Architecture
from evomerge.errors import MergeFailed, UserError
from evomerge.methods.base import MergeMethod
from evomerge.methods.linear import Linear
from evomerge.recipes.recipe import Merge
from evomerge.recipes.stretches_yaml import METHOD
from evomerge.recipes.tensor_layout import Piece, TensorLayout


def layout_of(architecture: Architecture) -> TensorLayout:
    """The parameters of a model as one row, in the order of its tensors; tied ones once."""
    return TensorLayout((slot.name, slot.num_elements) for slot in architecture.slots)


def pieces_of(node: Merge, architecture: Architecture) -> Mapping[str, tuple[Piece, ...]]:
    """Tensor name to the pieces of a merge with stretches; empty for one without.

    Raises:
        UserError: another method than ``linear``, or stretches that were laid over other tensors.
        MergeFailed: a coefficient is NaN or infinite.
    """
    if node.stretches is None:
        return {}
    if node.method != METHOD:
        raise UserError(f"recipe: {node.method} takes no coefficients by stretches, only {METHOD} does")
    for part in node.stretches.parts:
        if not all(math.isfinite(value) for value in part.value):
            raise MergeFailed(f"{node.method}: coefficients {list(part.value)} from {part.tensor}[{part.offset}] on")
    try:
        return layout_of(architecture).pieces(node.stretches)
    except ValueError as error:
        raise UserError(f"recipe: stretches: {error}") from None


def write_pieces(method: MergeMethod, state: Any, pieces: Sequence[Piece], out: Tensor) -> None:
    """Write a tensor piece by piece.

    Args:
        method: ``linear``.
        state: what it prepared for the whole tensor.
        pieces: cover the tensor.
        out: the tensor, its entries equally far apart.
    """
    assert isinstance(method, Linear)
    flat = out.view(-1)
    for piece in pieces:
        part = method.part(state, piece.start, piece.end)
        method.apply(part, {"coefficient": piece.value}, flat[piece.start : piece.end])
