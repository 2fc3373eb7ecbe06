"""Scoring chosen documents on a real model: with the rest they give what scoring all at once gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.estimated_fitness import NotEstimable, choose_subsets, fit_tasks, lay_out
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.experiment.completed_scores import completed_evaluation
from evomerge.store.estimation_events import Estimated
from evomerge.terms import DocumentScores, Estimate, ModelCost

DOCUMENTS = {"search": {"split": "train", "limit": 18}, "held_out": {"split": "test"}}


def test_two_parts_make_the_whole(task_dir: Path, model: Any, tokenizer: Any) -> None:
    names = {"tiny_choose": "acc", "tiny_group": "acc", "tiny_code": "early_letters"}
    tasks = [
        {"task": name, "metric": metric, "documents": DOCUMENTS, "include_path": [str(task_dir)]}
        for name, metric in names.items()
    ]
    configs = load_fitness([*tasks, {"cost": "num_hops"}])
    plan = plan_documents(configs)
    evaluator = build_evaluator(configs, plan, EvaluatorSettings())
    evaluator.bind(model, tokenizer, lambda context: ModelCost(2, 100, 1.0))
    whole = evaluator.evaluate("search", 3)
    assert whole.ok, whole.failure

    layout = lay_out(configs, plan, evaluator.objectives)
    assert layout.document_ids[3] is None
    subsets = choose_subsets(layout, {}, 20, "mean", 1)
    choice = layout.choice(subsets)
    first = evaluator.evaluate("search", 3, documents=choice)
    rest = evaluator.evaluate("search", 3, documents=layout.rest(choice))
    assert not first.ok
    assert first.part.whole == (None, None, None, -2.0)
    scored = [len(part.document_scores[at].values) for part in (first, rest) for at in range(3)]
    assert [a + b for a, b in zip(scored[:3], scored[3:])] == [len(table.values) for table in whole.document_scores]

    estimate = Estimate(20, 54, (0.5, 0.5, 0.5, -2.0), (0.1, 0.1, 0.1, 0.0), 0)
    own = {task.metric.split("/")[0] for task in layout.tasks}
    kept = {name: value for name, value in first.metrics.items() if name.split("/")[0] not in own}
    before = Estimated("c0", 0, estimate, kept)
    completed = completed_evaluation(layout, before, first.document_scores, rest)
    assert completed.fitness == whole.fitness
    assert completed.metrics == pytest.approx(whole.metrics, abs=1e-6)
    for one, other in zip(completed.document_scores, whole.document_scores, strict=True):
        assert one.document_ids == other.document_ids
        assert np.array_equal(one.values, other.values)
        assert list(one.extra) == list(other.extra)
        for name, column in one.extra.items():
            assert column == pytest.approx(other.extra[name], abs=1e-5)

    # Counts of letters are no scores from 0 to 1.
    with pytest.raises(NotEstimable, match=r"tiny_code, document 'q0': score .* is outside \[0, 1\]"):
        layout.columns(whole.document_scores)
    shares = [table.values / max(1.0, table.values.max()) for table in whole.document_scores]
    bounded = [
        DocumentScores(table.objective, table.document_ids, values)
        for table, values in zip(whole.document_scores, shares, strict=True)
    ]
    means = [layout.mean(at, values.tolist()) for at, values in enumerate(shares)]

    # All documents: the estimate is the score, whatever the estimator.
    everything = choose_subsets(layout, {}, layout.num_documents, "mean", 1)
    columns = layout.columns(bounded)
    models = {str(at): [(np.round(column) + at) % 2 for column in columns] for at in range(4)}
    for estimator in ("mean", "p_irt", "gp_irt", "mp_irt"):
        fitted = fit_tasks(everything, models, estimator, ["0", "1"])
        found = [task.estimate(estimator, column) for task, column in zip(fitted, columns)]
        values = np.array([one.values[0] for one in found])
        fitness, errors = layout.of_objectives(values, np.array([one.standard_errors[0] for one in found]))
        assert fitness[:3] == pytest.approx(means, abs=1e-12)
        assert fitness[3] is None
        assert errors == pytest.approx([0.0] * 4, abs=1e-12)
