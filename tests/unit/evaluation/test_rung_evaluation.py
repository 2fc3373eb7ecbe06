"""Scoring by rungs on a real model: what comes out is what scoring at once gives, or a part of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.evaluation.documents import DocumentPlan, plan_documents
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import FitnessConfig, load_fitness
from evomerge.evaluation.racing import Race, Reference
from evomerge.evaluation.rungs import RungSettings, lay_rungs
from evomerge.terms import Evaluation, ModelCost

RUNGS = RungSettings(4, 12, "geometric", 5)
DOCUMENTS = {"search": {"split": "train", "limit": 18}, "held_out": {"split": "test"}}


@pytest.fixture(scope="module")
def configs(task_dir: Path) -> list[FitnessConfig]:
    names = {"tiny_choose": "acc", "tiny_group": "acc", "tiny_code": "early_letters"}
    tasks = [
        {"task": name, "metric": metric, "documents": DOCUMENTS, "include_path": [str(task_dir)]}
        for name, metric in names.items()
    ]
    return load_fitness([*tasks, {"cost": "num_hops"}])


@pytest.fixture(scope="module")
def plan(configs: list[FitnessConfig]) -> DocumentPlan:
    return plan_documents(configs)


def bound(configs: list[FitnessConfig], plan: DocumentPlan, model: Any, tokenizer: Any, rungs: bool) -> Any:
    evaluator = build_evaluator(configs, plan, EvaluatorSettings(rungs=RUNGS if rungs else None))
    evaluator.bind(model, tokenizer, lambda context: ModelCost(2, 100, 1.0))
    return evaluator


@pytest.fixture(scope="module")
def raced(configs: list[FitnessConfig], plan: DocumentPlan, model: Any, tokenizer: Any) -> Any:
    return bound(configs, plan, model, tokenizer, True)


@pytest.fixture(scope="module")
def whole(raced: Any) -> Evaluation:
    evaluation: Evaluation = raced.evaluate("search", 3)
    assert evaluation.ok, evaluation.failure
    return evaluation


def race_against(whole: Evaluation, lead: float, **more: Any) -> Race:
    """A race against somebody who is better in the first objective by a lead on every document."""
    columns = [table.values + (lead if at == 0 else 0.0) for at, table in enumerate(whole.document_scores)]
    shares = (1.0, 0.0, 0.0, 0.0)
    return Race((Reference(9, (*columns, np.array([2.0]))),), shares, rule="wilcoxon", min_documents=4, **more)


def test_rungs_give_what_scoring_at_once_gives(
    configs: list[FitnessConfig], plan: DocumentPlan, model: Any, tokenizer: Any, raced: Any, whole: Evaluation
) -> None:
    at_once = bound(configs, plan, model, tokenizer, False).evaluate("search", 3)
    assert whole.fitness == pytest.approx(at_once.fitness, abs=1e-6)
    assert whole.metrics == pytest.approx(at_once.metrics, abs=1e-6)
    for one, other in zip(whole.document_scores, at_once.document_scores, strict=True):
        assert one.document_ids == other.document_ids
        assert one.values == pytest.approx(other.values, abs=1e-6)
        assert list(one.extra) == list(other.extra)
    assert at_once.rungs == ()
    layout = lay_rungs(configs, plan, RUNGS)
    assert [rung.documents for rung in whole.rungs] == list(layout.documents[:-1])
    for rung in whole.rungs:
        assert rung.fitness[3] == -2.0
    assert raced.evaluate("search", 3).fitness == whole.fitness


def test_other_splits_are_scored_at_once(raced: Any) -> None:
    held_out = raced.evaluate("held_out", 3)
    assert held_out.ok
    assert held_out.rungs == ()


def test_one_that_keeps_up_is_scored_to_the_end_exactly(raced: Any, whole: Evaluation) -> None:
    evaluation = raced.evaluate("search", 3, race_against(whole, -0.5))
    assert evaluation.ok
    assert evaluation.fitness == whole.fitness
    for one, other in zip(evaluation.document_scores, whole.document_scores, strict=True):
        assert np.array_equal(one.values, other.values)


def test_one_that_is_behind_is_stopped_with_the_part_it_has(
    configs: list[FitnessConfig], plan: DocumentPlan, raced: Any, whole: Evaluation
) -> None:
    evaluation = raced.evaluate("search", 3, race_against(whole, 0.5))
    assert not evaluation.ok
    assert evaluation.failure is None
    assert evaluation.fitness == ()
    assert evaluation.metrics == {}
    layout = lay_rungs(configs, plan, RUNGS)
    assert evaluation.stop.documents == sum(len(table.values) for table in evaluation.document_scores)
    assert evaluation.stop.documents < evaluation.stop.total == layout.documents[-1]
    assert evaluation.stop.against == 9
    assert evaluation.stop.difference == pytest.approx(-0.5)
    assert len(evaluation.document_scores) == 3
    for part, table in zip(evaluation.document_scores, whole.document_scores, strict=True):
        known = dict(zip(table.document_ids, table.values))
        assert 0 < len(part.values) < len(table.values)
        assert [known[item] for item in part.document_ids] == part.values.tolist()


def test_an_audited_one_is_stopped_but_has_all_scores(raced: Any, whole: Evaluation) -> None:
    evaluation = raced.evaluate("search", 3, race_against(whole, 0.5, audit=True))
    assert not evaluation.ok
    assert evaluation.fitness == ()
    assert evaluation.stop.audit == whole.fitness
    assert evaluation.stop.scored == evaluation.stop.total
    assert [len(table.values) for table in evaluation.document_scores] == [
        len(table.values) for table in whole.document_scores
    ]


def test_metrics_that_are_no_means_are_known_as_such(task_dir: Path) -> None:
    tasks = {"tiny_likelihood": "perplexity", "tiny_choose": "mcc", "tiny_letters": "acc"}
    configs = load_fitness(
        [
            {"task": name, "metric": metric, "documents": DOCUMENTS, "include_path": [str(task_dir)]}
            for name, metric in tasks.items()
        ]
    )
    plan = plan_documents(configs)
    assert [fitness.is_mean for fitness in plan.fitness] == [False, False, True]
    layout = lay_rungs(configs, plan, RUNGS)
    assert [found is None for found in layout.objectives] == [True, True, False]
