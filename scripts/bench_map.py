"""MAP beside NSGA-II, random and Sobol search on metrics that are sigmoids of quadratics, with and without noise.

python scripts/bench_map.py [--seeds N] [--documents D] [--cases 2x2 4x4 ...]

Every optimizer sees binomial draws of D documents (as an accuracy on D documents would be) and is judged by the true
metrics of the candidates on its observed front: hypervolume of those, divided by that of the true front (searched with
NSGA-III on the landscape itself). `compare` is the function for other scripts.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.search.front import hypervolume, non_dominated
from evomerge.search.surrogate_front import surrogate_front
from evomerge.terms import Array, Gene

HIGH = 1.5


@dataclass(frozen=True)
class Landscape:
    """M metrics sigmoid(quadratic) of G coefficients in [0, 1.5]; with ``bend`` they are no exact quadratics."""

    matrices: Array
    best: Array
    tops: Array
    bend: float = 0.0

    @classmethod
    def random(cls, num_genes: int, num_objectives: int, seed: int, bend: float = 0.0) -> Landscape:
        """Each metric has its best point in a corner region of its own expert and falls off at random."""
        rng = np.random.default_rng(seed)
        roots = rng.normal(size=(num_objectives, num_genes, num_genes)) / math.sqrt(num_genes)
        best = 0.4 * rng.random((num_objectives, num_genes))
        for index in range(num_objectives):
            best[index, index % num_genes] = 0.8 + 0.5 * rng.random()
        return cls(3 * roots @ roots.transpose(0, 2, 1), best, 1.5 + 0.5 * rng.normal(size=num_objectives), bend)

    def __call__(self, points: Array) -> Array:
        """Metrics ``(N, M)`` of points ``(N, G)``."""
        away = points[:, None, :] - self.best[None]
        fall = 0.5 * np.einsum("nmi,mij,nmj->nm", away, self.matrices, away)
        values: Array = expit(self.tops - fall - self.bend * np.sin(4 * away).sum(axis=2))
        return values


def true_volume(landscape: Landscape, num_genes: int) -> float:
    """Hypervolume of the landscape's own front, from (0, ..., 0)."""
    box = np.zeros(num_genes), np.full(num_genes, HIGH)
    rng = np.random.default_rng(0)
    _, front = surrogate_front(
        landscape, *box, rng, start=np.empty((0, num_genes)), population_size=300, generations=150
    )
    if len(front) > 600:  # exact volumes of thousands of points in many objectives take hours
        front = front[rng.choice(len(front), 600, replace=False)]
    return hypervolume(front, (0.0,) * front.shape[1])


def search(name: str, landscape: Landscape, size: tuple[int, int], evaluations: int, documents: int, seed: int,
           settings: dict[str, Any] | None = None) -> Array:  # fmt: skip
    """True metrics ``(F, M)`` of the candidates that look non-dominated to the optimizer."""
    num_genes, num_objectives = size
    genes = tuple(Gene(f"coefficient/e{index}", high=HIGH, initial=0.7) for index in range(num_genes))
    counts = (documents,) * num_objectives if documents else ()
    problem = Problem(genes, num_objectives, seed, evaluations, noisy=documents > 0, num_documents=counts)
    optimizer = build_optimizer(name, problem, settings)
    rng = np.random.default_rng(seed)
    true: list[Array] = []
    seen: list[Array] = []
    while len(seen) < evaluations:
        batch = [optimizer.ask() for _ in range(min(optimizer.population_size, evaluations - len(seen)))]
        rows = landscape(np.stack([proposal.genotype for proposal in batch]))
        noisy = rng.binomial(documents, rows) / documents if documents else rows
        results = [Result(one.index, one.genotype, tuple(row.tolist())) for one, row in zip(batch, noisy)]
        true, seen = [*true, *rows], [*seen, *noisy]
        if len(batch) == optimizer.tell_size or optimizer.tell_size == 1:
            optimizer.tell(results)
    return np.array(true)[non_dominated(np.array(seen))]


def compare(
    names: Sequence[tuple[str, int]], size: tuple[int, int], documents: int, seeds: int, bend: float = 0.0
) -> dict[tuple[str, int], list[float]]:
    """Share of the true front's hypervolume by (optimizer, evaluations), one value for each seed.

    Args:
        names: optimizers with their budgets.
        size: genes and objectives.
        documents: of each score; 0 = no noise.
        seeds: each has its own landscape.
        bend: how far the metrics are from quadratics.
    """
    found: dict[tuple[str, int], list[float]] = {entry: [] for entry in names}
    for seed in range(seeds):
        landscape = Landscape.random(*size, seed, bend)
        whole = true_volume(landscape, size[0])
        for name, evaluations in names:
            front = search(name, landscape, size, evaluations, documents, seed)
            found[name, evaluations].append(hypervolume(front, (0.0,) * size[1]) / whole)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--bend", type=float, default=0.0)
    parser.add_argument("--cases", nargs="+", default=["2x2", "3x2", "4x4", "8x3"])
    options = parser.parse_args()
    print(f"{options.seeds} landscapes, {options.documents} documents, bend {options.bend:g}\n")
    for case in options.cases:
        num_genes, num_objectives = (int(part) for part in case.split("x"))
        budget = max(24, (num_genes + 1) * (num_genes + 2) * 3 // 2)
        names = [(name, budget) for name in ("map", "bayesian_map", "nested_map", "nsga2", "sobol")]
        names += [("nsga2", 3 * budget), ("nsga2", 10 * budget)]
        started = time.perf_counter()
        found = compare(names, (num_genes, num_objectives), options.documents, options.seeds, options.bend)
        print(f"{num_genes} genes, {num_objectives} objectives ({time.perf_counter() - started:.0f} s)")
        for (name, evaluations), shares in found.items():
            print(f"  {name:14s} {evaluations:5d} evaluations: mean {statistics.fmean(shares):.3f}, "
                  f"worst {min(shares):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
