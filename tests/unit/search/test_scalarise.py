"""From several objectives to one."""

import pytest

from evomerge.search.scalarise import build_scalariser, weighted_mean
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
