"""What a worker passes on."""

from __future__ import annotations

from evomerge.runtime.worker import only_finite
from evomerge.terms import Evaluation, FailureKind


def test_metrics_that_are_not_finite_are_left_out_and_the_fitness_stays() -> None:
    metrics = {"task/acc": 0.5, "task/perplexity": float("inf"), "task/other": float("nan")}
    kept = only_finite(Evaluation((0.5,), (), metrics))
    assert kept.fitness == (0.5,)
    assert kept.metrics == {"task/acc": 0.5}


def test_a_fitness_that_is_not_finite_is_a_failure() -> None:
    failed = only_finite(Evaluation((0.5, float("nan")), (), {"task/acc": 0.5}))
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.NON_FINITE
    assert failed.fitness in ((), None)
