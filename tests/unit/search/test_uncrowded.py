"""Uncrowded hypervolume improvement and total orders, against brute force and the library that has the former."""

import itertools
import math

import numpy as np
import pytest
from cmaes._uhvi_archiving import UHVIArchive2D

from evomerge.search.feasibility import feasible_first
from evomerge.search.front import contributions, feasible_front, hypervolume, non_dominated, pareto_ranks
from evomerge.search.total_order import best_spread, total_order
from evomerge.search.uncrowded import staircase, uncrowded_improvement

REFERENCE = (-0.2, -0.1)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(a >= b) and np.any(a > b))


def random_rows(seed: int, num_objectives: int) -> np.ndarray:
    """A coarse grid, so that ties and copies are common; some rows are not finite."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 5, size=(24, num_objectives)) / 4.0
    rows[rng.integers(24, size=3), rng.integers(num_objectives, size=3)] = [math.nan, math.inf, -math.inf]
    return rows


@pytest.mark.parametrize(("seed", "num_objectives"), list(itertools.product(range(10), (1, 2, 3, 4))))
def test_fronts_ranks_and_contributions_are_those_of_brute_force(seed: int, num_objectives: int) -> None:
    rows = random_rows(seed, num_objectives)
    finite = np.all(np.isfinite(rows), axis=1)
    good = [i for i in range(len(rows)) if finite[i]]
    every = [i for i in good if not any(dominates(rows[j], rows[i]) for j in good)]
    first = [i for i in every if not any(np.array_equal(rows[j], rows[i]) for j in every if j < i)]
    assert np.flatnonzero(non_dominated(rows)).tolist() == first
    assert np.flatnonzero(non_dominated(rows, duplicates="all")).tolist() == every
    left, expected, rank = set(good), np.zeros(len(rows), dtype=int), 0
    while left:
        layer = [i for i in sorted(left) if not any(dominates(rows[j], rows[i]) for j in left)]
        expected[layer], left, rank = rank, left - set(layer), rank + 1
    expected[~finite] = rank
    assert pareto_ranks(rows).tolist() == expected.tolist()
    reference = [-0.3] * num_objectives
    front = rows[every]
    whole = hypervolume(front, reference)
    found = contributions(rows, reference)
    for i in range(len(rows)):
        if i not in every:
            assert found[i] == 0.0
    for place, i in enumerate(every):
        lost = whole - hypervolume(np.delete(front, place, axis=0), reference)
        assert found[i] == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_improvement_equals_the_librarys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.round(rng.random((int(rng.integers(0, 8)), 2)), 1 + seed % 3)
    library, front = UHVIArchive2D(-rows), staircase(rows.tolist())
    for point in np.round(rng.uniform(-0.6, 1.3, size=(60, 2)), 1 + seed % 3):
        expected = library.uhvi(-point, -np.array(REFERENCE))
        found = uncrowded_improvement(point.tolist(), front, REFERENCE)
        if found == 0.0 and expected < 0.0:  # on the staircase's edge the library gives a negative area, not distance 0
            assert hypervolume(np.vstack([rows, point]), REFERENCE) == pytest.approx(hypervolume(rows, REFERENCE))
            continue
        assert found == pytest.approx(expected, abs=1e-12)


def test_improvement_is_what_the_hypervolume_gains() -> None:
    rng = np.random.default_rng(3)
    rows = rng.random((6, 2))
    before = hypervolume(rows, REFERENCE)
    for point in rng.random((50, 2)):
        gain = hypervolume(np.vstack([rows, point]), REFERENCE) - before
        found = uncrowded_improvement(point.tolist(), staircase(rows.tolist()), REFERENCE)
        assert found == pytest.approx(gain) if gain > 0 else found <= 0


def test_rank_comes_before_contribution_and_the_archive_counts() -> None:
    fitness = np.array([[0.5, 0.5], [0.4, 0.4], [0.9, 0.1], [0.5, 0.5], [0.0, 0.0]])
    none = np.empty((0, 2))
    assert total_order(fitness, none, (-1.0, -1.0)).tolist() == [1, 2, 0, 1, 3]  # copies add nothing to each other
    covered = np.array([[0.9, 0.1]])
    assert total_order(fitness[:3], covered, (-1.0, -1.0)).tolist() == [0, 2, 1]


def test_a_full_archive_keeps_what_adds_most() -> None:
    rows = np.array([[0.0, 1.0], [0.49, 0.51], [0.5, 0.5], [1.0, 0.0], [0.2, 0.2]])
    kept = best_spread(rows, 3, (-1.0, -1.0))
    assert kept.shape == (3, 2)
    assert [0.0, 1.0] in kept.tolist()
    assert [1.0, 0.0] in kept.tolist()


def test_feasible_candidates_come_first_and_failures_last() -> None:
    ranks = feasible_first([3.0, 1.0, None, 0.0, 1.0, -5.0], [0.0, 0.0, 0.0, 0.2, 0.0, 0.1])
    assert ranks == [1.0, 0.0, math.inf, 3.0, 0.0, 2.0]


def test_the_front_under_constraints() -> None:
    rows = [[1.0, 1.0], [0.5, 0.5], [0.2, 0.7], [0.1, 0.1]]
    assert feasible_front(rows, [0.3, 0.0, 0.0, 0.0]).tolist() == [False, True, True, False]
    assert feasible_front(rows, [0.3, 0.1, 0.1, 0.1]).tolist() == [True, False, False, False]
