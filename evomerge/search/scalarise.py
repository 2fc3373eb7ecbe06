"""From several objectives to the one number a single-objective optimizer is told. Fitness is maximised throughout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from evomerge.terms import Objective

Scalarisation = Literal["weighted_mean", "first", "harmonic_mean", "tchebycheff"]

AUGMENTATION = 0.05  # share of the plain mean in the augmented Tchebycheff value


def weighted_mean(fitness: Sequence[float], weights: Sequence[float]) -> float:
    """``sum(w f) / sum(w)``, summed exactly, so the order of the objectives does not matter.

    Args:
        fitness: ``(M,)``.
        weights: ``(M,)``, not negative, with a positive sum.

    Raises:
        ValueError: other lengths or weights.
    """
    return math.fsum(share * value for share, value in zip(_shares(weights, len(fitness)), fitness))


def harmonic_mean(fitness: Sequence[float], weights: Sequence[float]) -> float:
    """``sum(w) / sum(w / f)``: near the smallest value, so no objective can be given up for the others.

    Args:
        fitness: ``(M,)``. Where one is zero or less, the result is the least of them, as in the limit.
        weights: ``(M,)``, not negative, with a positive sum; objectives of weight 0 do not count.

    Raises:
        ValueError: other lengths or weights.

    Reference: as in Model Swarms, Feng et al. 2025, https://arxiv.org/abs/2410.11163.
    """
    pairs = [(share, value) for share, value in zip(_shares(weights, len(fitness)), fitness) if share > 0]
    least = min(value for _, value in pairs)
    return least if least <= 0 else 1.0 / math.fsum(share / value for share, value in pairs)


def tchebycheff(
    fitness: Sequence[float], weights: Sequence[float], ideal: Sequence[float], augmentation: float = AUGMENTATION
) -> float:
    """Minus the largest weighted distance to an ideal point, less a little of the weighted sum of all distances.

    Every point of a front is the best one for some weights, also where the front is concave; the small sum keeps weakly
    dominated points from winning.

    Args:
        fitness: ``(M,)``.
        weights: ``(M,)``, not negative, with a positive sum.
        ideal: ``(M,)``, at least as good as anything in every objective.
        augmentation: factor of the sum.

    Raises:
        ValueError: other lengths or weights.

    Reference: Steuer and Choo 1983, An interactive weighted Tchebycheff procedure for multiple objective programming,
    https://doi.org/10.1007/BF02591870.
    """
    if len(ideal) != len(fitness):
        raise ValueError(f"expected {len(fitness)} ideal values, got {len(ideal)}")
    gaps = [share * (best - value) for share, best, value in zip(_shares(weights, len(fitness)), ideal, fitness)]
    return -(max(gaps) + augmentation * math.fsum(gaps))


def default_ideal(objectives: Sequence[Objective], normalised: Sequence[bool]) -> tuple[float, ...]:
    """What is as good as can be: 1 for a raised score, 0 for a lowered one; one's anchor where it is normalised.

    Args:
        objectives: M.
        normalised: for each, whether its fitness is divided by an anchor's.
    """
    return tuple(
        (1.0 if objective.higher_is_better else -1.0) if is_share else (1.0 if objective.higher_is_better else 0.0)
        for objective, is_share in zip(objectives, normalised, strict=True)
    )


def build_scalariser(
    name: Scalarisation, objectives: Sequence[Objective], ideal: Sequence[float] = ()
) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
    """The function from a fitness ``(M,)`` to a fitness ``(1,)``.

    Args:
        name: ``first`` objective alone, or one of the functions above with the objectives' weights.
        objectives: M.
        ideal: of ``tchebycheff``.
    """
    weights = [objective.weight for objective in objectives]
    if name == "first":
        return lambda fitness: (fitness[0],)
    functions: Mapping[str, Callable[[Sequence[float]], float]] = {
        "weighted_mean": lambda fitness: weighted_mean(fitness, weights),
        "harmonic_mean": lambda fitness: harmonic_mean(fitness, weights),
        "tchebycheff": lambda fitness: tchebycheff(fitness, weights, ideal),
    }
    function = functions[name]
    function([0.0] * len(weights))  # refuse bad weights now, not at the first result
    return lambda fitness: (function(fitness),)


def _shares(weights: Sequence[float], count: int) -> list[float]:
    """Weights that sum to one."""
    if count != len(weights):
        raise ValueError(f"expected {len(weights)} fitness values, got {count}")
    total = math.fsum(weights)
    if min(weights) < 0 or not math.isfinite(total) or total <= 0:
        raise ValueError(f"weights must not be negative and need a positive sum, got {list(weights)}")
    return [weight / total for weight in weights]
