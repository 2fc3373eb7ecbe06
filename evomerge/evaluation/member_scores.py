"""What one lm-eval task makes of a model's answers: filters, metrics of documents, and the margins of right choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.evaluation.failures import ScoringFailed, is_out_of_memory
from evomerge.evaluation.lm_eval_index import one_line
from evomerge.evaluation.lm_eval_tasks import OpenTask, aggregation
from evomerge.terms import Array, FailureKind

MetricKey = tuple[str, str]  # (metric, filter)


@dataclass
class Member:
    """One task on one role: its documents' requests, in scoring order."""

    opened: OpenTask
    ids: tuple[str, ...]
    groups: list[list[Any]]
    golds: list[int] | None

    @property
    def name(self) -> str:
        """The task's."""
        return self.opened.name


@dataclass(frozen=True)
class MemberScore:
    """Per-document values of one task: metric -> values, NaN where a document has none; and its scalars."""

    values: dict[MetricKey, list[Any]]
    documents: dict[MetricKey, list[int]]
    gold: dict[str, Array]


def score_member(member: Member) -> MemberScore:
    """Filters and per-document metrics of one task, as lm-eval runs them."""
    task = member.opened.task
    flat = [instance for group in member.groups for instance in group]
    try:
        for ensemble in task._filters:
            ensemble.apply(flat)
    except Exception as error:  # a filter of the user's task
        raise ScoringFailed(
            FailureKind.EXCEPTION, f"task {member.name!r}: a filter raised {one_line(error)}"
        ) from error
    values: dict[MetricKey, list[Any]] = {}
    documents: dict[MetricKey, list[int]] = {}
    for name in [ensemble.name for ensemble in task._filters]:
        for place, group in enumerate(member.groups):
            try:
                result = task.process_results(group[0].doc, [instance.filtered_resps[name] for instance in group])
            except Exception as error:  # the task's own scoring
                if is_out_of_memory(error):
                    raise
                message = f"task {member.name!r}, document {member.ids[place]!r}: {one_line(error)}"
                raise ScoringFailed(FailureKind.EXCEPTION, message) from error
            for metric, value in result.items():
                values.setdefault((metric, name), []).append(value)
                documents.setdefault((metric, name), []).append(place)
    return MemberScore(values, documents, _gold_columns(member))


def aggregate(member: Member, metric: str, items: list[Any]) -> float:
    """One number of a metric's documents, as the task has it."""
    try:
        return float(aggregation(member.opened.task, metric)(items))
    except Exception as error:  # the task's own aggregation
        message = f"task {member.name!r}: aggregating {metric!r} raised {one_line(error)}"
        raise ScoringFailed(FailureKind.EXCEPTION, message) from error


def scalars(items: Sequence[Any]) -> Array | None:
    """The values as numbers; None when they are tuples or texts that only the whole set gives a score to."""
    if not all(isinstance(item, bool | int | float | np.number | np.bool_) for item in items):
        return None
    return np.array([float(item) for item in items], dtype=np.float64)


def extra_columns(scores: Sequence[MemberScore], key: MetricKey) -> dict[str, Array]:
    """Other per-document numbers that every member has for the same documents as the metric."""
    columns: dict[str, Array] = {}
    for pair in scores[0].values:
        if pair == key or any(score.documents.get(pair) != score.documents[key] for score in scores):
            continue
        parts = [scalars(score.values[pair]) for score in scores]
        if all(part is not None for part in parts):
            columns[",".join(pair)] = np.concatenate([part for part in parts if part is not None])
    for name in scores[0].gold:
        if all(name in score.gold for score in scores):
            columns[name] = np.concatenate([score.gold[name][score.documents[key]] for score in scores])
    return columns


def gold_choices(opened: OpenTask, groups: Sequence[Sequence[Any]]) -> list[int] | None:
    """Index of the right choice of each document, where the task is a plain multiple choice."""
    task = opened.task
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or task.multiple_target:
        return None
    golds = []
    for group in groups:
        gold = task.doc_to_target(group[0].doc)
        if isinstance(gold, str):
            choices = task.doc_to_choice(group[0].doc)
            gold = choices.index(gold) if gold in choices else -1
        if not isinstance(gold, int) or not 0 <= gold < len(group) or len(group) < 2:
            return None
        golds.append(gold)
    return golds


def _gold_columns(member: Member) -> dict[str, Array]:
    """Log-probability of the right choice, and its lead over the best wrong one."""
    if member.golds is None:
        return {}
    right, lead = [], []
    for gold, group in zip(member.golds, member.groups, strict=True):
        numbers = [instance.resps[0][0] for instance in group]
        right.append(numbers[gold])
        lead.append(numbers[gold] - max(number for place, number in enumerate(numbers) if place != gold))
    return {"gold_logprob": np.array(right), "gold_margin": np.array(lead)}
