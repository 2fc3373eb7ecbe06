"""From several objectives to one."""

import pytest

from evomerge.search.scalarise import build_scalariser, default_ideal, harmonic_mean, tchebycheff, weighted_mean
from evomerge.terms import Objective

OBJECTIVES = (Objective("maths", weight=3.0), Objective("spanish", higher_is_better=False, weight=1.0))


def test_weighted_mean() -> None:
    assert build_scalariser("weighted_mean", OBJECTIVES)((0.5, -0.1)) == (pytest.approx(0.35),)


def test_first_objective() -> None:
    assert build_scalariser("first", OBJECTIVES)((0.5, -0.1)) == (0.5,)


def test_the_mean_of_one_objective_is_that_objective() -> None:
    assert build_scalariser("weighted_mean", OBJECTIVES[:1])((0.1,)) == (pytest.approx(0.1, abs=0),)


def test_the_order_of_objectives_does_not_change_a_bit() -> None:
    fitness, weights = [0.1, 1e16, 0.7, -1e16], [1.0, 1.0, 1.0, 1.0]
    assert weighted_mean(fitness, weights) == weighted_mean(fitness[::-1], weights) == pytest.approx(0.2)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.5], [float("inf"), 1.0]])
def test_bad_weights_are_refused_before_any_result(weights: list[float]) -> None:
    objectives = [Objective(f"o{i}", weight=weight) for i, weight in enumerate(weights)]
    with pytest.raises(ValueError, match="weights must not be negative"):
        build_scalariser("weighted_mean", objectives)


def test_wrong_number_of_fitness_values() -> None:
    with pytest.raises(ValueError, match="expected 2 fitness values, got 1"):
        build_scalariser("weighted_mean", OBJECTIVES)((0.5,))


def test_harmonic_mean() -> None:
    assert harmonic_mean([0.5, 1.0], [1, 1]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.5, 1.0], [3, 1]) == pytest.approx(4 / (3 / 0.5 + 1))
    assert harmonic_mean([0.0, 1.0], [1, 1]) == 0.0
    assert harmonic_mean([-0.2, 1.0], [1, 1]) == -0.2
    assert harmonic_mean([-5.0, 1.0], [0, 1]) == 1.0  # weight 0 does not count
    assert 0 < harmonic_mean([1e-9, 1.0], [1, 1]) < 1e-8


def test_tchebycheff_finds_a_concave_front_that_no_weighted_mean_finds() -> None:
    front = [(1.0, 0.0), (0.55, 0.4), (0.0, 1.0)]  # the middle lies below the line of the ends
    assert max(front, key=lambda f: tchebycheff(f, [1, 1], [1, 1])) == (0.55, 0.4)
    assert all(max(front, key=lambda f: weighted_mean(f, [w, 1 - w])) != (0.55, 0.4) for w in (0.1, 0.3, 0.5, 0.7))
    assert tchebycheff([0.5, 0.8], [1, 1], [1, 1], augmentation=0.1) == pytest.approx(-(0.25 + 0.1 * 0.35))
    assert tchebycheff([0.5, 0.9], [1, 1], [1, 1]) > tchebycheff([0.5, 0.8], [1, 1], [1, 1])  # weakly dominated


def test_default_ideal_points() -> None:
    objectives = (Objective("up"), Objective("down", higher_is_better=False))
    assert default_ideal(objectives, [False, False]) == (1.0, 0.0)
    assert default_ideal(objectives, [True, True]) == (1.0, -1.0)
    scalarise = build_scalariser("tchebycheff", objectives, (1.0, 0.0))
    assert scalarise((0.8, -0.4)) == pytest.approx((-(0.2 + 0.05 * 0.3),))
    assert build_scalariser("harmonic_mean", (Objective("a"), Objective("b")))((0.5, 1.0)) == pytest.approx((2 / 3,))
