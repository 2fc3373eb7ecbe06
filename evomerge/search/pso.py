"""PSO-Merging: particle swarm search over merges that begins at the experts.

``v <- w v + c1 r1 (p - x) + c2 r2 (g - x)``, ``x <- x + v`` with a particle's best place p, the swarm's best place g
and uniform random factors r1 and r2.

- The first swarm: the search space's initial values (published: the base model), each expert alone, then the experts
  scaled at random, which stand in for the published sparsified experts (see ``scaled_experts``): 2 E + 1 particles.
  A larger swarm is filled with uniform draws.
- Published runs end after 5 (language models) or 50 steps; here the budget ends them. A particle that would come to
  stand still, which the best one does at once, is put at a random place instead of scoring the same merge again, and
  forgets its own best place (``restarts: false`` lets it stand).

Reference: PSO-Merging: Merging Models Based on Particle Swarm Optimization, https://arxiv.org/abs/2508.19839.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from evomerge.search.base import Problem
from evomerge.search.expert_genes import expert_genes
from evomerge.search.gene_box import GeneBox
from evomerge.search.population import pso_population_size
from evomerge.search.swarm import Draws, Particle, Place, Swarm
from evomerge.search.swarm_start import expert_points, scaled_experts
from evomerge.terms import Array, derive_seed

STILL = 1e-4  # a step of less than this fraction of every range is none


class Pso(Swarm):
    """See the module docstring.

    Args:
        problem: real genes, one objective.
        population_size: particles; ``auto`` = ``2 E + 1``, fewer where the budget would not allow 5 steps of so many.
        inertia: w.
        cognitive: c1.
        social: c2.
        draws: see ``Swarm``.
        restarts: whether particles that come to rest are put elsewhere.
    """

    name = "pso"

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        inertia: float,
        cognitive: float,
        social: float,
        draws: Draws,
        restarts: bool,
    ) -> None:
        auto = pso_population_size(len(expert_genes(problem.genes)), problem.evaluations)
        start = _first_swarm(problem, auto if population_size == "auto" else population_size)
        super().__init__(problem, start, np.zeros_like(start), draws)
        self._inertia, self._cognitive, self._social = inertia, cognitive, social
        self._restarts = restarts

    def _step(self, particle: Particle, best: Place, rng: np.random.Generator) -> Array:
        own = particle.unit if particle.best is None else particle.best.unit
        first, second = self._factors(2, rng)
        particle.velocity = (
            self._inertia * particle.velocity
            + self._cognitive * first * (own - particle.unit)
            + self._social * second * (best.unit - particle.unit)
        )
        if self._restarts and float(np.abs(particle.velocity).max()) < STILL:
            before = particle.unit
            self._scatter(particle, rng)
            target, particle.unit, particle.best = particle.unit, before, None
            return target - before
        return particle.velocity


def _first_swarm(problem: Problem, size: int) -> Array:
    """First places ``(size, G)``."""
    rng = np.random.default_rng(derive_seed(problem.seed, Pso.name, "start"))
    box = GeneBox(problem.genes)
    named = [box.to_unit(box.initial), *expert_points(problem.genes), *scaled_experts(problem.genes, rng)]
    filled = rng.random((max(0, size - len(named)), len(problem.genes)))
    return np.stack([*named, *filled][:size])
