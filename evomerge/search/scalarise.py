"""From several objectives to the one number a single-objective optimizer is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from evomerge.terms import Objective

Scalarisation = Literal["weighted_mean", "first"]


def weighted_mean(fitness: Sequence[float], weights: Sequence[float]) -> float:
    """``sum(w f) / sum(w)``, summed exactly, so the order of the objectives does not matter.

    Args:
        fitness: ``(M,)``.
        weights: ``(M,)``, not negative, with a positive sum.

    Raises:
        ValueError: other lengths or weights.
    """
    if len(fitness) != len(weights):
        raise ValueError(f"expected {len(weights)} fitness values, got {len(fitness)}")
    total = math.fsum(weights)
    if min(weights) < 0 or not math.isfinite(total) or total <= 0:
        raise ValueError(f"weights must not be negative and need a positive sum, got {list(weights)}")
    return math.fsum(weight / total * value for weight, value in zip(weights, fitness))


def build_scalariser(
    name: Scalarisation, objectives: Sequence[Objective]
) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
    """The function from a fitness ``(M,)`` to a fitness ``(1,)``.

    Args:
        name: ``weighted_mean`` with the objectives' weights, or ``first`` objective alone.
        objectives: M.
    """
    weights = [objective.weight for objective in objectives]
    if name == "first":
        return lambda fitness: (fitness[0],)
    weighted_mean([0.0] * len(weights), weights)  # refuse bad weights now, not at the first result
    return lambda fitness: (weighted_mean(fitness, weights),)
