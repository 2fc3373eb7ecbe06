"""The methods of the digits experiment, each over dense rows of parameters, one child a step as in the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from digits_network import SIZE, Digits, Network

from evomerge.search.lineage import slerp_scales
from evomerge.search.niche_archive import NicheArchive
from evomerge.terms import derive_seed

NICHES = {
    "m2n2": {},
    "no_matchmaker": {"attraction": False},
    "no_split_point": {"split_point": False},
    "ga": {"alpha": 0.0, "attraction": False},
}


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Attributes:
        train: digits that children are scored on.
        test: digits that the best so far is reported on.
        seeds: ``(2, SIZE)``.
        noise: standard deviation of mutations, 0 = none.
        passes: children to score.
        seed: of the run.
        options: the experiment's file.
    """

    train: Digits
    test: Digits
    seeds: np.ndarray
    noise: float
    passes: int
    seed: int
    options: dict = field(default_factory=dict)


Trace = Iterator[tuple[float, np.ndarray]]  # of each child's step: train accuracy of the best, its parameters


def interpolated(weight: float, split: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A child of two rows: slerp with ``weight`` before the split, with ``1 - weight`` after it."""
    products = float(a @ b), float(a @ a), float(b @ b)
    child = np.empty_like(a)
    for part, share in ((slice(0, split), weight), (slice(split, None), 1.0 - weight)):
        scale_a, scale_b = (np.float32(scale) for scale in slerp_scales(share, *products))
        np.multiply(a[part], scale_a, out=child[part])
        child[part] += scale_b * b[part]
    return child


def bred(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, noise: float, split_point: bool = True) -> np.ndarray:
    """A child with everything drawn."""
    weight, split = float(rng.random()), int(rng.integers(SIZE))
    child = interpolated(weight, split if split_point else SIZE, a, b)
    if noise:
        drawn = rng.standard_normal(SIZE, dtype=np.float32)
        drawn *= np.float32(noise)
        child += drawn
    return child


def niches(task: Task, rules: dict, in_flight: int = 1) -> Trace:
    """M2N2 and what is left of it without its parts.

    ``in_flight`` children are bred before the first of them is scored; 1 is the paper's.
    """
    rules = dict(rules)
    split_point = rules.pop("split_point", True)
    size = task.options["archive"]
    network = Network(task.train)
    rng = np.random.default_rng(derive_seed(task.seed, "digits"))
    archive = NicheArchive(size, len(task.train.labels), **rules)
    rows = np.zeros((size, SIZE), np.float32)

    def enter(parameters: np.ndarray) -> None:
        slot = archive.add(0, network.correct(parameters))
        if slot is not None:
            rows[slot] = parameters

    for seed in task.seeds:
        enter(seed)
    for done in range(0, task.passes, in_flight):
        pairs = [archive.parents(rng) for _ in range(min(in_flight, task.passes - done))]
        children = [bred(rng, rows[a], rows[b], task.noise, split_point) for a, b in pairs]
        for child in children:
            enter(child)
            best = archive.best()
            yield archive.mean_score(best), rows[best]


def map_elites(task: Task, in_flight: int = 1) -> Trace:
    """A grid over accuracy on odd and on even digits; parents by accuracy, as in the authors' code."""
    assert in_flight == 1
    bins = task.options["grid"]
    network = Network(task.train)
    rng = np.random.default_rng(derive_seed(task.seed, "digits"))
    odd = task.train.labels % 2 == 1
    cells: dict[tuple[int, int], tuple[float, np.ndarray]] = {}

    def enter(parameters: np.ndarray) -> None:
        correct = network.correct(parameters)
        cell = tuple(min(bins - 1, int(correct[half].mean() * bins)) for half in (odd, ~odd))
        quality = float(correct.mean())
        if cell not in cells or quality > cells[cell][0]:
            cells[cell] = quality, parameters

    for seed in task.seeds:
        enter(seed)
    for _ in range(task.passes):
        elites = list(cells.values())
        quality = np.array([one for one, _ in elites])
        # The authors draw with replacement while the qualities add up to less than 2.
        alone = quality.sum() < 2 or np.count_nonzero(quality) < 2
        a, b = rng.choice(len(elites), size=2, p=quality / quality.sum(), replace=bool(alone))
        enter(bred(rng, elites[a][1], elites[b][1], task.noise))
        yield max(cells.values(), key=lambda one: one[0])


def sep_cma(task: Task, in_flight: int = 1) -> Trace:
    """CMA-ES on all weights, with a diagonal covariance: a full one has 185 million entries to decompose."""
    from cmaes import SepCMA

    assert in_flight == 1
    options = task.options["cma"]
    network = Network(task.train)
    start = task.seeds[0].astype(np.float64)
    solver = SepCMA(start, options["sigma"], population_size=options["population"], seed=task.seed)
    best, done = (-1.0, task.seeds[0]), 0
    while done < task.passes:
        told = []
        for _ in range(options["population"]):
            asked = solver.ask()
            value = network.accuracy(asked.astype(np.float32))
            told.append((asked, -value))
            if value > best[0]:
                best = value, asked.astype(np.float32)
            done += 1
            if done <= task.passes:
                yield best
        solver.tell(told)


def brute_force(task: Task, in_flight: int = 1) -> Trace:
    """Interpolation of the two seeds, on a grid of weights; of equals the first."""
    network, best = Network(task.train), (-1.0, task.seeds[0])
    for weight in np.linspace(0, 1, task.options["brute_force"]):
        child = interpolated(float(weight), SIZE, *task.seeds)
        value = network.accuracy(child)
        best = (value, child) if value > best[0] else best
        yield best


def trace(method: str, task: Task, in_flight: int = 1) -> Trace:
    """The run of a method, step by step."""
    if method in NICHES:
        return niches(task, NICHES[method], in_flight)
    found: dict[str, Callable[[Task, int], Trace]] = {
        "map_elites": map_elites,
        "sep_cma": sep_cma,
        "brute_force": brute_force,
    }
    return found[method](task, in_flight)
