"""Test functions with several objectives and known fronts, for benchmarks and tests. Everything is maximised here.

References: Zitzler, Deb and Thiele 2000, https://doi.org/10.1162/106365600568202 (ZDT); Deb et al. 2002,
https://doi.org/10.1109/CEC.2002.1007032 (DTLZ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evomerge.terms import Array


@dataclass(frozen=True)
class ParetoProblem:
    """A function of genes in [0, 1].

    Attributes:
        name: for people.
        num_genes: G.
        num_objectives: M.
        fitness: genotype ``(G,)`` to maximised fitness.
        reference: corner of the hypervolume.
        best: hypervolume of the whole front.
    """

    name: str
    num_genes: int
    num_objectives: int
    fitness: Callable[[Array], tuple[float, ...]]
    reference: tuple[float, ...]
    best: float


def zdt1(x: Array) -> tuple[float, ...]:
    """Convex front ``f2 = 1 - sqrt(f1)``."""
    g = 1.0 + 9.0 * float(np.mean(x[1:]))
    return -float(x[0]), -g * (1.0 - np.sqrt(float(x[0]) / g))


def zdt2(x: Array) -> tuple[float, ...]:
    """Concave front ``f2 = 1 - f1^2``, which no weighted sum finds."""
    g = 1.0 + 9.0 * float(np.mean(x[1:]))
    return -float(x[0]), -g * (1.0 - (float(x[0]) / g) ** 2)


def zdt3(x: Array) -> tuple[float, ...]:
    """Front in five pieces."""
    g = 1.0 + 9.0 * float(np.mean(x[1:]))
    ratio = float(x[0]) / g
    return -float(x[0]), -g * (1.0 - np.sqrt(ratio) - ratio * np.sin(10.0 * np.pi * float(x[0])))


def dtlz2(x: Array) -> tuple[float, ...]:
    """Three objectives, front = an eighth of the unit sphere."""
    g = float(np.sum((x[2:] - 0.5) ** 2))
    a, b = x[:2] * np.pi / 2.0
    radius = -(1.0 + g)
    return radius * np.cos(a) * np.cos(b), radius * np.cos(a) * np.sin(b), radius * np.sin(a)


def _volume(front: Callable[[Array], Array], far: float) -> float:
    """Area that a front ``f2(f1)`` over [0, 1] dominates up to (1.1, far), by a fine grid of its staircase."""
    lowest = np.minimum.accumulate(front(np.linspace(0.0, 1.0, 1_000_001)))
    return float(np.mean(far - lowest[:-1])) + 0.1 * (far - float(lowest[-1]))


def pareto_problems(num_genes: int = 8, far: float = 1.1) -> dict[str, ParetoProblem]:
    """The problems by name.

    Args:
        num_genes: G.
        far: second coordinate of the ZDT problems' reference point, minimised; the others are 1.1.
    """
    two, three = (-1.1, -far), (-1.1, -1.1, -1.1)
    fronts: dict[str, Callable[[Array], Array]] = {
        "zdt1": lambda f1: 1.0 - np.sqrt(f1),
        "zdt2": lambda f1: 1.0 - f1**2,
        "zdt3": lambda f1: 1.0 - np.sqrt(f1) - f1 * np.sin(10.0 * np.pi * f1),
    }
    found = {
        name: ParetoProblem(name, num_genes, 2, function, two, _volume(fronts[name], far))
        for name, function in (("zdt1", zdt1), ("zdt2", zdt2), ("zdt3", zdt3))
    }
    return found | {"dtlz2": ParetoProblem("dtlz2", num_genes, 3, dtlz2, three, 1.1**3 - np.pi / 6.0)}
