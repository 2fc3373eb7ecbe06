"""Which estimated candidates are worth all documents, and which show whether estimates are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.search.front import pareto_ranks
from evomerge.terms import derive_seed

Fitness = tuple[float, ...]


@dataclass(frozen=True)
class Ranking:
    """How candidates compare.

    Attributes:
        one_number: raw fitness ``(M,)`` to the number that decides between equals, or alone.
        told: raw fitness ``(M,)`` to what the optimizer sees.
        violation: by how much raw fitness misses the constraints in sum.
        many: whether the optimizer sees all objectives.
    """

    one_number: Callable[[Fitness], float]
    told: Callable[[Fitness], Fitness]
    violation: Callable[[Fitness], float]
    many: bool


def leading(
    fitness: Mapping[int, Fitness], recipes: Mapping[int, str], count: int, ranking: Ranking
) -> tuple[int, ...]:
    """The ids with the best fitness, best first, equal recipes once; of several objectives front after front.

    Args:
        fitness: ``(M,)`` by id.
        recipes: recipe by id.
        count: how many at most.
        ranking: how they compare.
    """
    keys = sorted(fitness)
    fronts = [0] * len(keys)
    if ranking.many and keys:
        fronts = pareto_ranks([ranking.told(fitness[key]) for key in keys]).tolist()
    places = dict(zip(keys, fronts))
    keys.sort(key=lambda key: (ranking.violation(fitness[key]), places[key], -ranking.one_number(fitness[key]), key))
    distinct: dict[str, int] = {}
    for key in keys:
        distinct.setdefault(recipes[key], key)
    return tuple(list(distinct.values())[:count])


def sample(keys: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """Some ids, drawn by the seed alone."""
    return tuple(sorted(sorted(keys, key=lambda key: derive_seed("sampled", seed, key))[:count]))
