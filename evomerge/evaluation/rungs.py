"""Rungs: the fixed parts in which a racing run scores the search documents, the same for everyone.

The documents of every task are put in a random order that depends on the run's seed only. A rung takes the next ones of
each task, in proportion to what the task has, so the scores so far are those of a small fitness of the same make-up.
What is no mean over documents (costs, Python functions, corpus metrics such as perplexity) is scored whole with the
first rung.

Shapes: M objectives, D documents of an objective.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.terms import Array, derive_seed

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RungSettings:
    """How the search documents are cut.

    Attributes:
        count: rungs.
        first: documents of the first one, over all fitnesses.
        sizes: ``geometric``: each rung multiplies the documents so far by one factor; ``equal``: each adds as many.
        seed: of the order.
    """

    count: int
    first: int
    sizes: Literal["geometric", "equal"]
    seed: int


@dataclass(frozen=True)
class ObjectiveRungs:
    """One objective that is a weighted mean over its documents.

    Attributes:
        rungs: of each rung, positions among the objective's documents in scoring order.
        strata: ``(D,)`` number of the task each document belongs to.
        weights: ``(D,)`` share of each document in the objective; they sum to 1.
    """

    rungs: tuple[Indices, ...]
    strata: Indices
    weights: Array

    def until(self, rung: int) -> Indices:
        """Positions scored after this rung, in the order of the rungs."""
        return np.concatenate(self.rungs[: rung + 1])

    def balanced(self, positions: Indices) -> Array:
        """Weights of some documents that give each task its share of the objective; they sum to 1."""
        whole = np.bincount(self.strata, self.weights)
        part = np.bincount(self.strata[positions], self.weights[positions], minlength=len(whole))
        return self.weights[positions] * (whole / np.where(part > 0, part, 1.0))[self.strata[positions]]


@dataclass(frozen=True)
class RungLayout:
    """The rungs of a run.

    Attributes:
        objectives: M, None for one that is scored whole with the first rung.
        order: of each rung, the documents of all objectives in one random order: pairs of objective and position.
        whole_documents: documents that are scored whole with the first rung.
    """

    objectives: tuple[ObjectiveRungs | None, ...]
    order: tuple[Indices, ...]
    whole_documents: int = 0

    @property
    def num_rungs(self) -> int:
        """How many there are; the last one makes the fitness complete."""
        return len(self.order)

    @cached_property
    def documents(self) -> tuple[int, ...]:
        """Documents scored after each rung."""
        return tuple(self.whole_documents + total for total in itertools.accumulate(map(len, self.order)))

    @property
    def num_raced(self) -> int:
        """Documents that are scored by parts."""
        return sum(map(len, self.order))


def can_be_raced(config: FitnessConfig, plan: FitnessPlan) -> bool:
    """Whether a fitness is a mean over documents that may be scored one after the other."""
    return config.task is not None and plan.is_mean


def lay_rungs(configs: Sequence[FitnessConfig], plan: DocumentPlan, settings: RungSettings) -> RungLayout:
    """Cut the search documents. The same arguments give the same rungs on every machine.

    Args:
        configs: the searched fitnesses, in order.
        plan: their documents.
        settings: how to cut.
    """
    raced = [
        (at, plan.of(config.name)) for at, config in enumerate(configs) if can_be_raced(config, plan.of(config.name))
    ]
    sizes = {at: len(fitness.document_ids("search")) for at, fitness in raced}
    ends = _ends(sum(sizes.values()), settings)
    objectives: list[ObjectiveRungs | None] = []
    for at, config in enumerate(configs):
        fitness = plan.of(config.name)
        found = _cut(fitness, ends, settings.seed) if at in sizes else None
        objectives += [found] * len(objective_names(config))
    order = []
    for rung in range(len(ends)):
        pairs = [(m, place) for m, found in enumerate(objectives) if found for place in found.rungs[rung].tolist()]
        rng = np.random.default_rng(derive_seed("rungs", settings.seed, "order", rung))
        order.append(np.array(pairs, dtype=np.int64).reshape(-1, 2)[rng.permutation(len(pairs))])
    whole = sum(
        len(plan.of(config.name).document_ids("search")) for at, config in enumerate(configs) if at not in sizes
    )
    return RungLayout(tuple(objectives), tuple(order), whole)


def _ends(total: int, settings: RungSettings) -> list[float]:
    """What share of the documents is scored after each rung; rising, the last one 1."""
    if total <= settings.first or settings.count < 2:
        return [1.0]
    first, steps = settings.first / total, settings.count - 1
    if settings.sizes == "equal":
        return [first + (1.0 - first) * step / steps for step in range(steps)] + [1.0]
    return [first * (1.0 / first) ** (step / steps) for step in range(steps)] + [1.0]


def _cut(plan: FitnessPlan, ends: Sequence[float], seed: int) -> ObjectiveRungs:
    sizes = [len(member.splits["search"].ids) for member in plan.members]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total = sum(sizes)
    rungs: list[list[int]] = [[] for _ in ends]
    weights = []
    for member, size, start in zip(plan.members, sizes, starts.tolist()):
        rng = np.random.default_rng(derive_seed("rungs", seed, plan.name, member.name))
        shuffled = start + rng.permutation(size)
        # Every task is in every comparison from the first rung on.
        cuts = [0, *(min(size, max(1, math.floor(end * size + 0.5))) for end in ends)]
        for rung, (low, high) in enumerate(itertools.pairwise(cuts)):
            rungs[rung] += shuffled[low:high].tolist()
        weights += [1.0 / total if plan.weight_by_size else 1.0 / (len(sizes) * size)] * size
    strata = np.repeat(np.arange(len(sizes)), sizes)
    return ObjectiveRungs(tuple(np.array(rung, dtype=np.int64) for rung in rungs), strata, np.array(weights))
