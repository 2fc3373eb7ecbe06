"""How many candidates one generation has when the user says ``auto``. Plain arithmetic, no optimizer library."""

from __future__ import annotations

import math


def cma_population_size(num_genes: int) -> int:
    """Default population of the CMA family: ``4 + floor(3 ln n)``.

    Reference: Hansen 2016, The CMA Evolution Strategy: A Tutorial, eq. 48, https://arxiv.org/abs/1604.00772.
    """
    return 4 + math.floor(3 * math.log(max(num_genes, 1)))


def nsga_population_size(evaluations: int | None) -> int:
    """Default population of NSGA-II and NSGA-III: a tenth of the budget, even, between 8 and 50."""
    if evaluations is None:
        return 50
    return min(50, max(8, 2 * (evaluations // 20)))


def ga_population_size(evaluations: int | None, num_objectives: int) -> int:
    """Default population of the genetic algorithm.

    With several objectives NSGA-II's, since the population has to hold a front. With one objective half the square root
    of the budget, even, between 8 and 50: small populations recovered planted orders of blocks in fewer evaluations.
    """
    if num_objectives > 1 or evaluations is None:
        return nsga_population_size(evaluations)
    return min(50, max(8, 2 * round(math.sqrt(evaluations) / 4)))


def random_population_size(num_genes: int, workers: int) -> int:
    """Candidates in a generation of a method that does not learn: only the rhythm of checkpoints depends on it."""
    return max(cma_population_size(num_genes), workers)


def num_divisions(num_objectives: int, population_size: int) -> int:
    """Divisions of NSGA-III's reference simplex: the most that give no more points than candidates, at most 100."""
    divisions = 1
    while divisions < 100 and math.comb(num_objectives + divisions, divisions + 1) <= population_size:
        divisions += 1
    return divisions


def num_kernels(evaluations: int | None, kernel_population: int) -> int:
    """Default number of kernels: as many as the budget updates twelve times, between 3 and 10."""
    if evaluations is None:
        return 10
    return min(10, max(3, evaluations // (12 * (kernel_population + 1))))


def num_unknowns(num_genes: int) -> int:
    """Coefficients of a quadratic in G genes: ``(G + 1)(G + 2) / 2``."""
    return (num_genes + 1) * (num_genes + 2) // 2


def design_size(num_genes: int, evaluations: int | None) -> int:
    """Default number of MAP's first points: twice the unknowns, as published.

    With a smaller budget three quarters of it, but never less than the unknowns.
    """
    needed = num_unknowns(num_genes)
    return 2 * needed if evaluations is None else max(needed, min(2 * needed, evaluations * 3 // 4))


def pso_population_size(num_experts: int, evaluations: int | None) -> int:
    """Default swarm of PSO-Merging: ``2 E + 1``, as published; fewer, but not below 8, where the budget asks for it.

    Five steps are published for language models, so six rounds of the swarm have to fit.
    """
    published = 2 * num_experts + 1
    return published if evaluations is None else min(published, max(8, evaluations // 6))


def swarm_population_size(evaluations: int | None) -> int:
    """Default swarm of Model Swarms: 20, as published, or an eighth of the budget where that is less, at least 8."""
    return 20 if evaluations is None else min(20, max(8, evaluations // 8))


def evogm_population_size(num_genes: int, evaluations: int | None, generations: int) -> int:
    """Default population of EvoGM: twice the genes, as published; fewer where the budget asks for it, at least 8.

    Args:
        num_genes: that can change.
        evaluations: the budget.
        generations: that have to fit into it.
    """
    published = max(8, 2 * num_genes)
    return published if evaluations is None else min(published, max(8, evaluations // generations))
