"""Model Swarms: particles drawn to their own and the swarm's best place, and away from the worst one.

``v <- (r_v f_v v + r_p f_p (p - x) + r_g f_g (g - x) - r_w f_w (w - x)) / C`` with C the sum of the four factors
``r f``, so that v is a weighted mean of the four directions; then ``x <- x + s v``.

- p is the particle's best place, g the best and w the worst place of the whole history; the r are uniform draws.
- The step length s shrinks by ``step_decay`` with each move, not below ``min_step``.
- A particle whose last ``restart_after`` results were no better goes on from its best place, at rest.
- The search ends when the best value did not improve for ``patience`` results of each particle; 0 = never.
- The first swarm: the search space's initial values, each expert alone, then points between two experts (``extrapolate:
  true`` as in the published code: half of them beyond one). Initial velocities point to another particle. Published
  swarms have no such first particle; coefficients between and around experts alone keep their sum for ever.
- The paper sweeps the factors for every task; defaults are the middle of its sweeps. Particles there are adapters,
  whose two factors are averaged one by one; here they are the genes.

Reference: Feng et al. 2025, Model Swarms: Collaborative search to adapt LLM experts via swarm intelligence,
https://arxiv.org/abs/2410.11163.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from evomerge.search.base import Problem
from evomerge.search.gene_box import GeneBox
from evomerge.search.population import swarm_population_size
from evomerge.search.swarm import Draws, Particle, Place, Swarm
from evomerge.search.swarm_start import expert_points, interpolant
from evomerge.terms import Array, derive_seed


class ModelSwarms(Swarm):
    """See the module docstring.

    Args:
        problem: real genes, one objective.
        population_size: particles; ``auto`` = 20, or an eighth of the budget where that is less, at least 8.
        extrapolate: whether first points may lie beyond an expert.
        draws: see ``Swarm``.
        restart_after: results of a particle without a better place before it goes back to its best one.
        patience: results of each particle without a better place of the swarm before the search ends, 0 = never.
        **rates: ``inertia``, ``cognitive``, ``social``, ``repel`` (the four f), ``step``, ``step_decay``, ``min_step``.
    """

    name = "model_swarms"

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        extrapolate: bool,
        draws: Draws,
        restart_after: int,
        patience: int,
        **rates: float,
    ) -> None:
        size = swarm_population_size(problem.evaluations) if population_size == "auto" else population_size
        rng = np.random.default_rng(derive_seed(problem.seed, self.name, "start"))
        start = _first_swarm(problem, size, 2.0 if extrapolate else 1.0, rng)
        others = (np.arange(size) + rng.integers(1, size, size=size)) % size
        super().__init__(problem, start, start[others] - start, draws)
        self._weights = np.array([rates["inertia"], rates["cognitive"], rates["social"], rates["repel"]])[:, None]
        self._first_step, self._decay, self._least_step = rates["step"], rates["step_decay"], rates["min_step"]
        self._restart_after = restart_after
        self._patience = patience

    def stop_reason(self) -> str | None:
        """Set once the best value stood for ``patience`` results of each particle."""
        waited = self._best is not None and self._since_best >= self._patience * self.population_size
        if not (self._patience and waited):
            return None
        return f"no better candidate in {self._patience} moves of each particle (optimizer.patience)"

    def _step(self, particle: Particle, best: Place, rng: np.random.Generator) -> Array:
        assert self._worst is not None
        if particle.best is not None and particle.stale >= self._restart_after:
            moved_back = particle.best.unit - particle.unit
            origin, particle.velocity, particle.stale = particle.best.unit, np.zeros(len(particle.unit)), 0
        else:
            moved_back, origin = np.zeros(len(particle.unit)), particle.unit
        own = origin if particle.best is None else particle.best.unit
        directions = np.stack([particle.velocity, own - origin, best.unit - origin, origin - self._worst.unit])
        particle.velocity = blended(directions, self._weights * self._factors(4, rng))
        length = max(self._least_step, self._first_step * self._decay**particle.moves)
        return moved_back + length * particle.velocity


def blended(directions: Array, factors: Array) -> Array:
    """The weighted mean ``(G,)`` of directions ``(N, G)``; zero where all factors are.

    Args:
        directions: one a row.
        factors: not negative, ``(N, 1)`` or ``(N, G)``.
    """
    total = np.sum(factors, axis=0)
    mean: Array = np.sum(directions * factors, axis=0) / np.where(total > 0, total, 1.0)
    return mean


def _first_swarm(problem: Problem, size: int, reach: float, rng: np.random.Generator) -> Array:
    """First places ``(size, G)``."""
    box = GeneBox(problem.genes)
    initial, experts = box.to_unit(box.initial), expert_points(problem.genes)
    ends = experts if len(experts) > 1 else np.stack([initial, *experts])
    named = [initial, *experts]
    return np.stack([*named, *(interpolant(ends, rng, reach) for _ in range(size - len(named)))][:size])
