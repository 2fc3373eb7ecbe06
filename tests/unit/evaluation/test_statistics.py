"""Intervals over documents."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.evaluation.statistics import paired_difference, score_interval
from evomerge.terms import Array, DocumentScores


def table(values: Array | list[float], name: str = "task", **extra: Array) -> DocumentScores:
    array = np.asarray(values, dtype=np.float64)
    return DocumentScores(name, tuple(str(index) for index in range(len(array))), array, extra)


def test_the_interval_has_the_width_the_theory_says() -> None:
    values = np.random.default_rng(0).random(400) < 0.3
    interval = score_interval([table(values)])
    assert interval is not None
    mean = values.mean()
    half = 1.96 * np.sqrt(mean * (1 - mean) / 400)
    assert interval.value == pytest.approx(mean)
    assert interval.low == pytest.approx(mean - half, abs=0.006)
    assert interval.high == pytest.approx(mean + half, abs=0.006)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(120):
        interval = score_interval([table((rng.random(150) < 0.4).astype(float))], num_resamples=400)
        assert interval is not None
        hits += interval.low <= 0.4 <= interval.high
    assert 0.88 <= hits / 120 <= 0.995


def test_several_tasks_are_the_mean_of_their_means() -> None:
    easy, hard = table([1.0] * 10, "easy"), table([0.0, 1.0] * 50, "hard")
    both = score_interval([easy, hard])
    alone = score_interval([hard])
    assert both is not None
    assert alone is not None
    assert both.value == pytest.approx(0.75)
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=1e-9)
    weighted = score_interval([easy, hard], weights=[3.0, -1.0])
    assert weighted is not None
    assert weighted.value == pytest.approx(2.5)


def test_pairing_removes_what_the_documents_share() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(100) * 5
    better = base + 0.2 + rng.normal(0, 0.05, 100)
    difference = paired_difference([table(better)], [table(base)])
    assert difference is not None
    assert difference.value == pytest.approx(0.2, abs=0.02)
    assert difference.excludes_zero
    assert difference.high - difference.low < 0.05
    reverse = paired_difference([table(base)], [table(better)])
    assert reverse is not None
    assert reverse.high < 0.0


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).random(30)
    assert score_interval([table(values)], seed=4) == score_interval([table(values)], seed=4)
    assert score_interval([table(values)], seed=4) != score_interval([table(values)], seed=5)


def test_group_members_are_resampled_apart_and_weighed() -> None:
    member = np.repeat([0.0, 1.0], [10, 90])
    weight = np.repeat([0.5 / 10, 0.5 / 90], [10, 90])
    values = np.concatenate([np.ones(10), np.tile([0.0, 1.0], 45)])
    interval = score_interval([table(values, member=member, weight=weight)])
    assert interval is not None
    assert interval.value == pytest.approx(0.75)
    assert interval.low >= 0.5  # the first member is always 1, whatever is drawn


def test_other_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="not scored on the same documents"):
        paired_difference([table([1.0, 0.0])], [table([1.0])])


def test_scores_that_are_no_means_have_no_interval() -> None:
    corpus = table([1.0, 2.0], corpus_metric=np.ones(2))
    assert score_interval([corpus]) is None
    assert paired_difference([corpus], [corpus]) is None
    assert score_interval([]) is None
