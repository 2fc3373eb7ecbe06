"""Variation of single genes: numbers by simulated binary crossover and polynomial mutation, choices by chance.

Integers vary as real numbers and are rounded; a mutated integer moves by at least one.

References: Deb and Agrawal 1995, Simulated binary crossover for continuous search space, Complex Systems 9(2), in the
bounded form of Deb and Goyal 1996, A combined genetic adaptive search (GeneAS) for engineering design, which is also
where polynomial mutation comes from.
"""

from __future__ import annotations

import numpy as np

from evomerge.terms import Gene, GeneKind


def crossed(gene: Gene, first: float, second: float, eta: float, rng: np.random.Generator) -> float:
    """A child's value of one gene: half of the time the first parent's, else crossed with the second's.

    Args:
        gene: what the value is of.
        first: value of the parent that gives most.
        second: value of the other parent.
        eta: distribution index; larger = nearer to the parents.
        rng: source of randomness.
    """
    if rng.random() < 0.5 or first == second:
        return first
    if gene.kind is GeneKind.CATEGORY:
        return second
    low, high = min(first, second), max(first, second)
    is_lower = rng.random() < 0.5
    to_wall = (low - gene.low) if is_lower else (gene.high - high)
    alpha = 2.0 - (1.0 + 2.0 * max(to_wall, 0.0) / (high - low)) ** -(eta + 1.0)
    draw = rng.random()
    spread = draw * alpha if draw <= 1.0 / alpha else 1.0 / (2.0 - draw * alpha)
    beta = spread ** (1.0 / (eta + 1.0))
    middle, reach = 0.5 * (low + high), 0.5 * beta * (high - low)
    return _inside(gene, middle - reach if is_lower else middle + reach)


def mutated(gene: Gene, value: float, eta: float, rng: np.random.Generator) -> float:
    """Another value of one gene: polynomial mutation of a number, any other choice of a category.

    Args:
        gene: what the value is of; it must be able to change.
        value: where it is now.
        eta: distribution index; larger = nearer to the value.
        rng: source of randomness.
    """
    if gene.kind is GeneKind.CATEGORY:
        return float((int(value) + 1 + int(rng.integers(len(gene.choices) - 1))) % len(gene.choices))
    moved = _inside(gene, value + gene.width * _polynomial_step((value - gene.low) / gene.width, eta, rng))
    if gene.kind is GeneKind.REAL or moved != value:
        return moved
    can_rise, can_fall = value < gene.high, value > gene.low
    return value + 1.0 if can_rise and (not can_fall or rng.random() < 0.5) else value - 1.0


def random_value(gene: Gene, rng: np.random.Generator) -> float:
    """Any value of one gene, all with the same chance."""
    if gene.kind is GeneKind.CATEGORY:
        return float(rng.integers(len(gene.choices)))
    if gene.kind is GeneKind.INTEGER:
        return float(rng.integers(round(gene.low), round(gene.high) + 1))
    return gene.low + gene.width * float(rng.random())


def _polynomial_step(unit: float, eta: float, rng: np.random.Generator) -> float:
    """Step of a value at ``unit`` of its range, as a fraction of the range; never leaves it."""
    draw = float(rng.random())
    power = 1.0 / (eta + 1.0)
    if draw < 0.5:
        step = (2.0 * draw + (1.0 - 2.0 * draw) * (1.0 - unit) ** (eta + 1.0)) ** power - 1.0
    else:
        step = 1.0 - (2.0 * (1.0 - draw) + (2.0 * draw - 1.0) * unit ** (eta + 1.0)) ** power
    return float(step)


def _inside(gene: Gene, value: float) -> float:
    bounded = min(max(float(value), gene.low), gene.high)
    return float(round(bounded)) if gene.kind is GeneKind.INTEGER else bounded
