"""Whole searches on landscapes: the real optimizers in the rhythm of a run, and what they found after each evaluation.

Shapes: C candidates in ask order, G genes, M objectives, S seeds, P checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
from landscapes import Landscape, SearchView, best_known, load_landscape

from evomerge.search.base import Optimizer, Problem, Result, SearchExhausted
from evomerge.search.catalogue import SPECS, build_optimizer, validate_optimizer
from evomerge.search.front import hypervolume, non_dominated
from evomerge.search.surrogate_front import surrogate_front
from evomerge.terms import Array, derive_seed

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """What optimizers are compared on.

    Attributes:
        landscape: its name.
        evaluations: the budget.
        objectives: how many of the landscape's tasks are objectives, in their order; 1 = the mean of all tasks.
        documents: of each task that the search sees, None = all. Which ones depends on the seed.
        workers: candidates evaluated at once.
        failures: share of evaluations that fail.
    """

    landscape: str
    evaluations: int
    objectives: int = 1
    documents: int | None = None
    workers: int = 4
    failures: float = 0.0


@dataclass(frozen=True)
class Entry:
    """One optimizer of a comparison.

    Attributes:
        name: in the catalogue.
        settings: that differ from its defaults.
        factor: its budget, in budgets of the case.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    factor: int = 1

    @property
    def label(self) -> str:
        """For people."""
        given = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return self.name + (f" ({given})" if given else "") + (f" x{self.factor}" if self.factor > 1 else "")


@dataclass(frozen=True)
class Trace:
    """One search.

    Attributes:
        genotypes: ``(C, G)``.
        seen: ``(C, M)`` what the optimizer was told, NaN where the evaluation failed.
    """

    genotypes: Array
    seen: Array


def problem_of(case: Case, view: SearchView, seed: int, evaluations: int) -> Problem:
    """The problem as a run would state it."""
    landscape = view.landscape
    experts = np.array([_told(landscape.fitness(row, view.documents), case) for row in landscape.expert_genotypes])
    counts = view.num_documents[: case.objectives] if case.objectives > 1 else (sum(view.num_documents),)
    return Problem(
        landscape.genes,
        case.objectives,
        derive_seed("landscape search", seed),
        evaluations,
        noisy=view.is_sample,
        workers=case.workers,
        reference_point=(0.0,) * case.objectives,
        expert_fitness=tuple(tuple(float(value) for value in row) for row in experts),
        num_documents=counts,
    )


def why_not(entry: Entry, case: Case) -> str | None:
    """Why an optimizer does not fit a case, or None."""
    view = _view(case, 0)
    found = validate_optimizer(entry.name, entry.settings, problem_of(case, view, 0, entry.factor * case.evaluations))
    return found[0].message if found else None


def search(entry: Entry, case: Case, seed: int) -> Trace:
    """Ask, score, tell, as a run in generations does.

    Args:
        entry: the optimizer.
        case: what it is searching.
        seed: of the optimizer, of the documents and of what fails.
    """
    view = _view(case, seed)
    evaluations = entry.factor * case.evaluations
    optimizer = build_optimizer(entry.name, problem_of(case, view, seed, evaluations), dict(entry.settings))
    fails = np.random.default_rng(derive_seed("landscape failures", seed))
    genotypes: list[Array] = []
    seen: list[tuple[float, ...]] = []
    untold: list[Result] = []
    while len(genotypes) < evaluations and optimizer.stop_reason() is None:
        batch = list(_batch(optimizer, min(optimizer.population_size, evaluations - len(genotypes))))
        if not batch:
            break
        for proposal in batch:
            told = _told(view.fitness(proposal.genotype), case) if fails.random() >= case.failures else None
            genotypes.append(proposal.genotype.copy())
            seen.append(told or (math.nan,) * case.objectives)
            untold.append(Result(proposal.index, proposal.genotype.copy(), told))
        while untold and len(untold) >= (size := optimizer.tell_size):
            size = len(untold) if size == 1 else size
            optimizer.tell(untold[:size])
            untold = untold[size:]
    return Trace(np.array(genotypes), np.array(seen))


def curve(entry: Entry, case: Case, seed: int) -> Array:
    """What one search has found after each checkpoint of its budget, judged by all documents: ``(P,)``.

    With one objective the candidate that looked best so far, as it truly is. With several the hypervolume, from zero,
    of the candidates that looked non-dominated so far.
    """
    trace = search(entry, case, seed)
    truths = _truths(load_landscape(case.landscape), trace.genotypes, case.objectives)
    points = checkpoints(entry.factor * case.evaluations, case.objectives)
    found = []
    for count in np.minimum(points, len(truths)):
        seen = trace.seen[:count]
        if case.objectives > 1:
            found.append(hypervolume(truths[:count][non_dominated(seen)], (0.0,) * case.objectives))
        else:
            right = np.flatnonzero(np.isfinite(seen[:, 0]))
            found.append(float(truths[right[np.argmax(seen[right, 0])], 0]) if len(right) else 0.0)
    return np.array(found)


def checkpoints(evaluations: int, objectives: int) -> list[int]:
    """After how many evaluations a search is judged: each of them, for fronts every twentieth of the budget or so."""
    step = 1 if objectives == 1 else max(1, evaluations // 40)
    return sorted({*range(step, evaluations + 1, step), evaluations})


def compare(entries: Sequence[Entry], case: Case, seeds: Sequence[int], jobs: int = 1) -> dict[str, Array]:
    """Curves ``(S, P)`` of each optimizer by its label, on the same documents for the same seed."""
    plan = [(entry, case, seed) for entry in entries for seed in seeds]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            rows = list(pool.map(_curve_of, plan))
    else:
        rows = [_curve_of(one) for one in plan]
    size = len(seeds)
    return {entry.label: np.stack(rows[i * size : (i + 1) * size]) for i, entry in enumerate(entries)}


@lru_cache(maxsize=16)
def best_value(landscape: str, objectives: int) -> float:
    """Best known value of a case: the largest mean of the tasks, or the hypervolume of the whole front.

    Both are searched with tens of thousands of evaluations on all documents.
    """
    found = load_landscape(landscape)
    if objectives == 1:
        return best_known(found)[0]
    low, high = (np.array([getattr(gene, end) for gene in found.genes]) for end in ("low", "high"))
    _, front = surrogate_front(
        lambda points: _truths(found, points, objectives), low, high, np.random.default_rng(0),
        start=np.stack([found.initial, best_known(found)[1]]), population_size=200, generations=150,
    )  # fmt: skip
    return hypervolume(front, (0.0,) * objectives)


def start_value(case: Case) -> float:
    """True value of the initial genes, where every search begins: with one objective."""
    found = load_landscape(case.landscape)
    return float(_truths(found, found.initial[None], 1)[0, 0])


@dataclass(frozen=True)
class Band:
    """A mean over seeds and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def band(values: Array) -> Band:
    """Of one number for each seed ``(S,)``."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (NUM_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Band(float(values.mean()), float(low), float(high))


def first_reach(curves: Array, target: float) -> tuple[Array, Array]:
    """Evaluations ``(S,)`` each seed needed to a target, its whole budget where it did not; and which reached it."""
    reached = (curves >= target).any(axis=1)
    return np.where(reached, (curves >= target).argmax(axis=1) + 1, curves.shape[1]).astype(np.float64), reached


def expected_evaluations(curves: Array, target: float) -> Band | None:
    """Expected evaluations until a target is reached, restarting where a search did not; None where none did.

    All evaluations of all seeds divided by the number of successes; the interval resamples seeds and may be open.

    Reference: Hansen et al. 2021, COCO, expected running time, https://doi.org/10.1080/10556788.2020.1808977.
    """
    spent, reached = first_reach(curves, target)
    if not reached.any():
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(spent), (NUM_RESAMPLES, len(spent)))
    hits = reached[drawn].sum(axis=1)
    times = np.where(hits > 0, spent[drawn].sum(axis=1) / np.maximum(hits, 1), np.inf)
    low, high = np.quantile(times, (0.025, 0.975), method="nearest")
    return Band(float(spent.sum() / reached.sum()), float(low), float(high))


def fitting(names: Sequence[str], case: Case) -> list[str]:
    """Those optimizers of the catalogue that can solve a case."""
    return [name for name in names if name in SPECS and why_not(Entry(name), case) is None]


def _batch(optimizer: Optimizer, count: int) -> Iterator[Any]:
    for _ in range(count):
        try:
            yield optimizer.ask()
        except SearchExhausted:
            return


def _told(fitness: Sequence[float], case: Case) -> tuple[float, ...]:
    return tuple(fitness[: case.objectives]) if case.objectives > 1 else (math.fsum(fitness) / len(fitness),)


def _truths(landscape: Landscape, genotypes: Array, objectives: int) -> Array:
    values = landscape.truths(genotypes)
    return values[:, :objectives] if objectives > 1 else values.mean(axis=1, keepdims=True)


def _view(case: Case, seed: int) -> SearchView:
    return SearchView.of(load_landscape(case.landscape), case.documents, seed)


def _curve_of(one: tuple[Entry, Case, int]) -> Array:
    return curve(*one)
