"""Fronts, ranks and hypervolume against cases worked out by hand. Fitness is maximised."""

import itertools
import math

import numpy as np
import pytest

from evomerge.search.front import hypervolume, largest_subset, learnt_reference, non_dominated, pareto_ranks

# Three points on the front, one dominated by the middle one, one copy of the first.
ROWS = [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [2.0, 1.0], [1.0, 3.0]]


def test_non_dominated_keeps_the_first_of_equals() -> None:
    assert non_dominated(ROWS).tolist() == [True, True, True, False, False]


def test_non_dominated_keeps_all_equals_when_asked() -> None:
    assert non_dominated(ROWS, duplicates="all").tolist() == [True, True, True, False, True]


def test_duplicates_policy_does_not_readmit_weakly_dominated_rows() -> None:
    assert non_dominated([[1.0, 2.0], [1.0, 1.0]], duplicates="all").tolist() == [True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_neither_members_nor_rivals(bad: float) -> None:
    rows = [[bad, 5.0], [1.0, 3.0], [5.0, bad], [3.0, 1.0]]
    assert non_dominated(rows).tolist() == [False, True, False, True]
    assert pareto_ranks(rows).tolist() == [1, 0, 1, 0]
    assert hypervolume(rows, [0.0, 0.0]) == pytest.approx(5.0)


def test_only_failures_give_an_empty_front() -> None:
    rows = [[math.nan, 1.0], [-math.inf, -math.inf]]
    assert not non_dominated(rows).any()
    assert hypervolume(rows, [0.0, 0.0]) == 0.0
    assert pareto_ranks(rows).tolist() == [0, 0]


def test_no_rows() -> None:
    empty = np.empty((0, 2))
    assert non_dominated(empty).shape == (0,)
    assert hypervolume(empty, [0.0, 0.0]) == 0.0


def test_one_objective_is_a_maximum() -> None:
    assert non_dominated([[1.0], [4.0], [2.0]]).tolist() == [False, True, False]
    assert hypervolume([[1.0], [4.0]], [0.5]) == pytest.approx(3.5)


def test_ranks_peel_front_after_front() -> None:
    assert pareto_ranks([[1, 1], [3, 3], [2, 2], [3, 0], [0, 4], [3, 3]]).tolist() == [2, 0, 1, 1, 0, 0]


def test_hypervolume_is_the_area_of_the_staircase() -> None:
    # columns of width 1 and height 3, 2, 1
    assert hypervolume(ROWS, [0.0, 0.0]) == pytest.approx(3 + 2 + 1)
    # the reference cuts one unit off both sides; only the middle point exceeds it in both
    assert hypervolume(ROWS, [1.0, 1.0]) == pytest.approx(1.0)


def test_points_that_do_not_exceed_the_reference_add_nothing() -> None:
    assert hypervolume([[2.0, 2.0], [9.0, 0.0], [-1.0, 9.0]], [0.0, 0.0]) == pytest.approx(4.0)


def test_hypervolume_in_three_objectives() -> None:
    # boxes of 2 and 4, sharing the unit cube
    assert hypervolume([[2.0, 1.0, 1.0], [1.0, 2.0, 2.0]], [0.0, 0.0, 0.0]) == pytest.approx(2 + 4 - 1)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="reference must be 2 finite numbers"):
        hypervolume(ROWS, [0.0])
    with pytest.raises(ValueError, match="reference must be 2 finite numbers"):
        hypervolume(ROWS, [0.0, math.nan])
    with pytest.raises(ValueError, match="shape"):
        non_dominated([1.0, 2.0])


def test_a_subset_keeps_what_it_must_and_what_dominates_most() -> None:
    angle = np.linspace(0, np.pi / 2, 40)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * [1e6, 1e-3]
    chosen = largest_subset(circle, 5, always=[7])
    assert len(chosen) == 5
    assert 7 in chosen
    assert chosen == sorted(chosen)
    reference = learnt_reference(circle)
    whole, part = hypervolume(circle, reference), hypervolume(circle[chosen], reference)
    crowded = hypervolume(circle[5:10], reference)
    assert part > 0.9 * whole > crowded
    assert largest_subset(circle, 40) == largest_subset(circle, 60) == list(range(40))


def test_a_greedy_subset_is_as_good_as_any_of_a_small_front() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((80, 3))
    rows = rows[non_dominated(rows)][:8]
    scaled = (rows - rows.min(axis=0)) / np.ptp(rows, axis=0)
    reference = learnt_reference(scaled)
    volumes = [hypervolume(scaled[list(some)], reference) for some in itertools.combinations(range(8), 4)]
    assert hypervolume(scaled[largest_subset(rows, 4)], reference) >= (1 - 1 / np.e) * max(volumes)
