"""Where swarms begin: models that lie on the experts, between them, and around them. Unit coordinates throughout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.search.expert_genes import expert_genes
from evomerge.search.gene_box import GeneBox, is_constant
from evomerge.terms import Array, Gene

MASK_MEAN = 1.0  # of DARE's mask after rescaling: dropped weights are 0, the others 1 / (1 - p)


def expert_points(genes: Sequence[Gene]) -> Array:
    """One point for each expert: its genes at 1, all others at 0, or at the nearest value their range holds.

    Args:
        genes: G real genes; see ``expert_genes`` for whose they are.

    Returns:
        ``(E, G)``.
    """
    box = GeneBox(genes)
    rows = []
    for members in expert_genes(genes).values():
        natural = np.zeros(len(genes))
        natural[list(members)] = 1.0
        rows.append(box.to_unit(np.clip(natural, box.low, box.high)))
    return np.stack(rows)


def scaled_experts(genes: Sequence[Gene], rng: np.random.Generator) -> Array:
    """The experts with each gene scaled by a draw of its own from 0 to 2: what stands in for sparsified experts.

    A sparsified expert (DARE) is no combination of the experts, so genes cannot express it. Like DARE's mask the scales
    are independent with mean 1, and like it they take a swarm out of the span of whole experts.

    Args:
        genes: G real genes.
        rng: source of the draws.

    Returns:
        ``(E, G)``.
    """
    box = GeneBox(genes)
    rows = []
    for members in expert_genes(genes).values():
        natural = np.zeros(len(genes))
        natural[list(members)] = 2.0 * MASK_MEAN * rng.random(len(members))
        rows.append(box.to_unit(np.clip(natural, box.low, box.high)))
    return np.stack(rows)


def interpolant(points: Array, rng: np.random.Generator, reach: float) -> Array:
    """A point on the line through two different points, at a uniform share from 0 to ``reach`` of the first one.

    Args:
        points: ``(N, G)``, N at least 2.
        rng: source of the draws.
        reach: 1 = between the two, 2 = half of the draws lie beyond the first one; cut at the box.

    Returns:
        ``(G,)``.
    """
    first, second = rng.choice(len(points), size=2, replace=False)
    share = reach * rng.random()
    point: Array = np.clip(share * points[first] + (1.0 - share) * points[second], 0.0, 1.0)
    return point


def spans_box(points: Array, genes: Sequence[Gene]) -> bool:
    """Whether steps along the differences of points ``(N, G)`` can reach every place of the genes' box."""
    free = sum(not is_constant(gene) for gene in genes)
    return len(points) > free and int(np.linalg.matrix_rank(points[1:] - points[0], tol=1e-9)) >= free
