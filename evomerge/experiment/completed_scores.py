"""A complete evaluation put together from the documents that were scored first and those scored later."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.evaluation.estimated_fitness import EstimatedTask, EstimationLayout
from evomerge.store.estimation_events import Estimated
from evomerge.terms import Array, DocumentScores, Evaluation, Seconds

_OWN_COLUMNS = ("member", "weight")  # of groups; they count over all documents


def completed_evaluation(
    layout: EstimationLayout, before: Estimated, first: Sequence[DocumentScores], rest: Evaluation
) -> Evaluation:
    """The evaluation that scoring all documents at once would have given.

    Args:
        layout: what is estimated.
        before: the estimate; objectives that were scored whole keep what they had.
        first: tables of the documents that were scored for it.
        rest: of the others.
    """
    tables = {table.objective: table for table in first}
    later = {table.objective: table for table in rest.document_scores}
    metrics, fitness = dict(before.metrics), list(before.estimate.fitness)
    for at, (objective, ids) in enumerate(zip(layout.objectives, layout.document_ids, strict=True)):
        if ids is None:
            continue
        tasks = [task for task in layout.tasks if task.objective == at]
        parts = [found[objective.name] for found in (tables, later) if objective.name in found]
        table = _joined(objective.name, ids, parts, tasks)
        tables[objective.name] = table
        fitness[at] = layout.mean(at, table.values.tolist())
        for task in tasks:
            own = slice(task.start, task.start + task.size)
            metrics[task.metric] = sum(table.values[own].tolist()) / task.size
            member = task.metric.split("/", 1)[0]
            for name, column in table.extra.items():
                if f"{member}/{name}" in rest.metrics:
                    metrics[f"{member}/{name}"] = sum(column[own].tolist()) / task.size
    ordered = tuple(tables[objective.name] for objective in layout.objectives if objective.name in tables)
    named = {objective.name for objective in layout.objectives}
    others = tuple(table for name, table in tables.items() if name not in named)
    return Evaluation(tuple(fitness), ordered + others, metrics, _sum(before.seconds, rest.seconds), hops=rest.hops)


def _joined(
    name: str, ids: tuple[str, ...], parts: Sequence[DocumentScores], tasks: Sequence[EstimatedTask]
) -> DocumentScores:
    kept = [key for key in parts[0].extra if key not in _OWN_COLUMNS and all(key in part.extra for part in parts)]
    extra = {key: _column(ids, [(part, part.extra[key]) for part in parts]) for key in kept}
    if len(tasks) > 1:
        sizes = [task.size for task in tasks]
        shares = np.array([task.share for task in tasks])
        extra["member"] = np.repeat(np.arange(len(sizes), dtype=np.float64), sizes)
        extra["weight"] = np.repeat(shares / np.array(sizes), sizes)
    return DocumentScores(name, ids, _column(ids, [(part, part.values) for part in parts]), extra)


def _column(ids: tuple[str, ...], parts: Sequence[tuple[DocumentScores, Array]]) -> Array:
    found = {key: value for part, values in parts for key, value in zip(part.document_ids, values.tolist())}
    return np.array([found[key] for key in ids], dtype=np.float64)


def _sum(first: Seconds, second: Seconds) -> Seconds:
    return Seconds(
        first.merge + second.merge, first.forward + second.forward, first.metric + second.metric,
        first.wait + second.wait,
    )  # fmt: skip
