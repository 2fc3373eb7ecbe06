"""How sure a front is, against a slow count of the same thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from evomerge.evaluation.front_statistics import MeasuredPoint, Resampling, front_uncertainty, non_dominated_share
from evomerge.terms import Array, DocumentScores, Objective

UP, DOWN, COST = Objective("up"), Objective("down", higher_is_better=False), Objective("cost", False, 0.0, "hops")


def table(name: str, values: Sequence[float] | Array, ids: Sequence[object] = (), **extra: Array) -> DocumentScores:
    array = np.asarray(values, dtype=np.float64)
    return DocumentScores(name, tuple(map(str, ids)) or tuple(str(i) for i in range(len(array))), array, extra)


def point(*columns: Sequence[float] | Array, costs: Sequence[float] = ()) -> MeasuredPoint:
    tables = [table(name, values) for name, values in zip(("up", "down"), columns)]
    values = tuple(float(item.values.mean()) for item in tables)
    return MeasuredPoint((*values, *costs), (*tables, *(None for _ in costs)))


def slow_share(draws: Sequence[Array], rivals: Sequence[bool]) -> list[float]:
    """One pair of points after the other."""
    num_draws, num_points = max(len(rows) for rows in draws), draws[0].shape[1]
    kept = np.zeros(num_points)
    for draw in range(num_draws):
        rows = np.array([scores[draw if len(scores) > 1 else 0] for scores in draws]).T
        for mine in range(num_points):
            kept[mine] += not any(
                rivals[other] and np.all(rows[other] >= rows[mine]) and np.any(rows[other] > rows[mine])
                for other in range(num_points)
            )
    return list(kept / num_draws)


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_shares_equal_a_slow_count_with_ties_copies_and_a_constant(num_objectives: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, 4, size=(60, 7)).astype(float) / 7 for _ in range(num_objectives)]
    draws.append(rng.integers(0, 3, size=(1, 7)).astype(float))  # a cost: the same in every draw
    for rows in draws:
        rows[:, 5] = rows[:, 2]  # a copy
    rivals = rng.random(7) < 0.7
    assert list(non_dominated_share(draws, rivals)) == slow_share(draws, list(rivals))


def test_points_far_apart_are_certain_and_copies_share_their_place() -> None:
    rng = np.random.default_rng(1)
    noise = rng.random(40) / 10
    good, copy = point(0.8 + noise, 0.1 + noise), point(0.8 + noise, 0.1 + noise)
    bad, other = point(0.4 + noise, 0.6 + noise), point(0.9 + noise, 0.4 + noise)
    found = front_uncertainty([good, copy, bad, other], [UP, DOWN], resampling=Resampling(0, 300))
    assert [item.probability for item in found] == [1.0, 1.0, 0.0, 1.0]
    alone = front_uncertainty([good, bad], [UP, DOWN], rivals=[False, True], resampling=Resampling(0, 300))
    assert [item.probability for item in alone] == [1.0, 1.0]  # the good one is not compared with


def test_as_many_right_answers_are_a_tie_although_tenths_have_no_exact_float() -> None:
    """One point is right on the first five documents, the other on the last five: 252 of 1024 draws are ties."""
    rows = [np.repeat([1.0, 0.0], 5), np.repeat([0.0, 1.0], 5)]
    for extra in ({}, {"member": np.zeros(10), "weight": np.full(10, 0.1)}):
        points = [MeasuredPoint((0.5,), (table("up", row, **extra),)) for row in rows]
        found = [item.probability or 0.0 for item in front_uncertainty(points, [UP], resampling=Resampling(0, 5000))]
        assert sum(found) - 1 == pytest.approx(252 / 1024, abs=0.02)


def test_scores_that_differ_by_rounding_only_are_a_tie() -> None:
    """The same sums in another order of documents, and weights that differ inside a task."""
    rng = np.random.default_rng(0)
    values, weight = rng.random(9) / 3, np.array([0.05, 0.1, 0.15] * 3) / 0.9
    nearly = values * (1 + 1e-15 * rng.integers(-1, 2, 9))
    points = [MeasuredPoint((0.2,), (table("up", row, member=np.zeros(9), weight=weight),)) for row in (values, nearly)]
    found = front_uncertainty(points, [UP], resampling=Resampling(0, 500))
    assert [item.probability for item in found] == [1.0, 1.0]


def test_intervals_and_probability_are_what_drawing_documents_one_by_one_gives() -> None:
    rng = np.random.default_rng(3)
    columns = [(rng.random((2, 30)) < share).astype(float) for share in (0.5, 0.55, 0.6)]
    points = [point(up, down, costs=[cost]) for (up, down), cost in zip(columns, (1.0, 1.0, 2.0))]
    found = front_uncertainty(points, [UP, DOWN, COST], resampling=Resampling(5, 4000))
    slow_up, slow_down = (np.empty((4000, 3)) for _ in range(2))
    for draw in range(4000):
        first, second = rng.integers(0, 30, 30), rng.integers(0, 30, 30)
        slow_up[draw] = [up[first].mean() for up, _ in columns]
        slow_down[draw] = [-down[second].mean() for _, down in columns]
    expected = slow_share([slow_up[:500], slow_down[:500], np.array([[-1.0, -1.0, -2.0]])], [True] * 3)
    for place, item in enumerate(found):
        assert item.probability == pytest.approx(expected[place], abs=0.08)
        assert item.intervals[2] is None
        assert item.intervals[0] is not None
        low, high = np.quantile(slow_up[:, place], [0.025, 0.975])
        assert item.intervals[0].low == pytest.approx(low, abs=0.034)
        assert item.intervals[0].high == pytest.approx(high, abs=0.034)


def test_documents_are_drawn_together_for_all_points_and_for_objectives_that_share_them() -> None:
    hard = np.random.default_rng(2).random(50) * 10
    points = [point(hard, hard), point(hard + 0.01, hard + 0.01)]  # up better, down worse: both stay
    together = front_uncertainty(points, [UP, DOWN], resampling=Resampling(0, 200))
    assert [item.probability for item in together] == [1.0, 1.0]
    # One objective is the other's mirror image: only where they are drawn together can no draw contradict that.
    mirrored = [
        MeasuredPoint((float(values.mean()), float(values.mean())), (table("up", values), table("down", values)))
        for values in (hard, hard[::-1] + 0.01)
    ]
    same = front_uncertainty(mirrored, [UP, DOWN], None, Resampling(0, 400), ["documents", "documents"])
    apart = front_uncertainty(mirrored, [UP, DOWN], None, Resampling(0, 400))
    assert [item.probability for item in same] == [1.0, 1.0]
    assert min(item.probability or 0.0 for item in apart) < 1.0


def test_nothing_that_is_no_number_enters() -> None:
    good, worse = point([0.5, 0.6]), point([0.4, 0.5])
    broken = [point([np.nan, 9.0]), MeasuredPoint((np.inf,), (None,))]
    found = front_uncertainty([good, *broken, worse], [UP], resampling=Resampling(0, 200))
    assert [item.probability for item in found] == [1.0, None, None, 0.0]
    assert found[1].intervals == (None,)
    assert all(
        np.isfinite([item.intervals[0].low, item.intervals[0].high]).all() for item in found if item.intervals[0]
    )


def test_without_documents_or_with_a_metric_of_the_whole_set_there_is_no_probability() -> None:
    costs = [MeasuredPoint((cost,), (None,)) for cost in (3.0, 4.0)]
    assert [item.probability for item in front_uncertainty(costs, [COST])] == [None, None]
    corpus = MeasuredPoint((0.5,), (table("up", [0.5, 0.5], corpus_metric=np.ones(2)),))
    found = front_uncertainty([corpus, corpus], [UP])
    assert [(item.probability, item.intervals) for item in found] == [(None, (None,))] * 2


def test_other_documents_are_compared_on_those_that_all_share() -> None:
    first = MeasuredPoint((0.75,), (table("up", [1.0, 1.0, 1.0, 0.0], "abcd"),))
    second = MeasuredPoint((0.5,), (table("up", [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "cbaxyz"),))
    found = front_uncertainty([first, second], [UP], resampling=Resampling(0, 200))
    assert [item.probability for item in found] == [1.0, 0.0]  # on a, b and c
    assert found[1].intervals[0] is not None
    assert found[1].intervals[0].high > 0.5  # its own interval is over its own documents
    strangers = MeasuredPoint((0.5,), (table("up", [0.0, 1.0], "yz"),))
    assert [item.probability for item in front_uncertainty([first, strangers], [UP])] == [None, None]


def test_the_same_seed_gives_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    points = [point(rng.random(30), rng.random(30)) for _ in range(5)]
    first, again, other = (front_uncertainty(points, [UP, DOWN], None, Resampling(seed, 300)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
