"""The requests of one lm-eval fitness, built once; each candidate costs its forwards and the metric arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.evaluation.documents import FitnessPlan, MemberPlan
from evomerge.evaluation.failures import ScoringFailed, is_out_of_memory
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.lm_eval_index import TaskTree, load_tree, one_line
from evomerge.evaluation.lm_eval_scorer import PreparedRequests, PreparedScorer
from evomerge.evaluation.lm_eval_tasks import (
    OpenTask,
    aggregation,
    build_instances,
    is_mean,
    lm_eval_conditions,
    open_task,
    render,
    restrict_examples,
)
from evomerge.evaluation.task_planning import forbidden_examples
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.terms import Array, DocumentScores, FailureKind, SplitName

_Key = tuple[str, str]  # (metric, filter)
MAX_CHOICES = 4  # choices of documents whose requests are kept


@dataclass
class _Member:
    """One task on one role: its documents' requests, in scoring order."""

    opened: OpenTask
    ids: tuple[str, ...]
    groups: list[list[Any]]
    golds: list[int] | None

    @property
    def name(self) -> str:
        return self.opened.name


@dataclass
class _Role:
    members: list[_Member]
    prepared: list[list[PreparedRequests]]  # of each rung; one rung where nothing is raced


@dataclass(frozen=True)
class _MemberScore:
    """Per-document values of one task: metric -> values, NaN where a document has none; and its scalars."""

    values: dict[_Key, list[Any]]
    documents: dict[_Key, list[int]]
    gold: dict[str, Array]


class TaskBank:
    """Tasks, prompts, tokens and batches of one fitness.

    Args:
        config: the fitness.
        plan: its documents.
        scorer: the scorer around the live model.
        batch_size: overrides the fitness's own, None = leave it.
        exact_roles: scored through lm-eval's own loops.
        rungs: of the search documents, positions that are scored together, one rung after the other; empty = all at
            once.
    """

    def __init__(
        self,
        config: FitnessConfig,
        plan: FitnessPlan,
        scorer: PreparedScorer,
        batch_size: int | None = None,
        exact_roles: Sequence[SplitName] = (),
        rungs: Sequence[Sequence[int]] = (),
    ) -> None:
        self._config = config
        self._plan = plan
        self._scorer = scorer
        self._batch_size = batch_size or config.batch_size
        self._exact_roles = tuple(exact_roles)
        self._rungs = tuple(tuple(rung) for rung in rungs)
        self._leaves = {leaf.name: leaf for leaf in load_tree(TaskTree.from_json(plan.tree)).leaves}
        self._roles: dict[SplitName, _Role] = {}
        self._choices: dict[tuple[int, ...], list[PreparedRequests]] = {}

    def build(self, role: SplitName) -> None:
        """Make the requests of a role; a second call does nothing.

        Raises:
            InvalidInput: the task's documents are not those of the plan, or a prompt cannot be made.
        """
        if role in self._roles:
            return
        members = [self._build_member(member, role) for member in self._plan.members]
        parts = self._parts(members, self._rungs if role == "search" else ())
        exact = self._config.exact or role in self._exact_roles
        self._roles[role] = _Role(members, [self._scorer.prepare(part, self._batch_size, exact) for part in parts])

    def _parts(self, members: Sequence[_Member], rungs: Sequence[Sequence[int]]) -> list[list[list[Any]]]:
        """The documents' instances, rung by rung."""
        groups = [group for member in members for group in member.groups]
        return [[groups[place] for place in rung] for rung in rungs] or [groups]

    def _build_member(self, member: MemberPlan, role: SplitName) -> _Member:
        split = member.splits[role]
        opened = open_task(self._leaves[member.name], split.source, self._config)
        wrong = [
            item
            for index, item, key in zip(split.indices, split.ids, split.hashes, strict=True)
            if index >= len(opened.documents) or render(opened.task, opened.documents[index]) != key
        ]
        if wrong:
            message = (
                f"{len(wrong)} documents of split {split.source!r} changed since they were chosen (first: {wrong[0]})"
            )
            raise InvalidInput([Problem(f"task {member.name}", message)])
        restrict_examples(opened, forbidden_examples(member, role))
        chat_template = self._chat_template() if self._config.apply_chat_template else None
        groups = build_instances(opened, split.indices, self._config, chat_template)
        return _Member(opened, split.ids, groups, _gold_choices(opened, groups))

    def _chat_template(self) -> Callable[..., str]:
        if getattr(self._scorer.tokenizer, "chat_template", None) is None:
            message = "`apply_chat_template: true`, but the model's tokenizer has no chat template"
            raise UserError(f"fitness {self._config.name}: {message}")
        template: Callable[..., str] = self._scorer.apply_chat_template
        return template

    def score(self, role: SplitName, seed: int) -> ObjectiveScore:
        """Score the live model.

        Args:
            role: whose documents.
            seed: for requests that ask for sampling.

        Raises:
            ScoringFailed: numbers that are not finite, or an error of the task on a document.
        """
        self.build(role)
        for part in range(len(self._roles[role].prepared)):
            self._answer(self._roles[role].prepared[part], seed)
        return self._scored(self._roles[role].members)

    def score_chosen(self, places: tuple[int, ...], seed: int) -> tuple[DocumentScores, dict[str, float]]:
        """Score some of the search documents.

        Args:
            places: their positions, ascending.
            seed: see `score`.

        Returns:
            Their table, ids as in the whole one; and the means that `score` calls metrics, over these documents.

        Raises:
            ScoringFailed: see `score`; also where the metric has no number for a document.
        """
        self.build("search")
        self._answer(self._prepared(places), seed)
        part = [member for kept, member in self._part(places) if kept]
        with lm_eval_conditions():
            scores = [_score_member(member) for member in part]
            metrics, shares = self._means(part, scores), np.ones(len(part))
        table = self._table(part, scores, (self._plan.metric, self._plan.filter), shares)
        if table is None or len(table.document_ids) != len(places):
            message = f"{self._plan.metric},{self._plan.filter} has no number for each document"
            raise ScoringFailed(FailureKind.NON_FINITE, message)
        return table, metrics

    def _prepared(self, places: tuple[int, ...]) -> list[PreparedRequests]:
        if places not in self._choices:
            if len(self._choices) == MAX_CHOICES:
                self._choices.pop(next(iter(self._choices)))
            part = self._parts(self._roles["search"].members, [places])[0]
            self._choices[places] = self._scorer.prepare(part, self._batch_size, self._config.exact)
        return self._choices[places]

    def score_rung(self, rung: int, seed: int) -> Array:
        """Score the next rung of the search documents; every rung before was scored with the same weights.

        Args:
            rung: its number.
            seed: see `score`.

        Returns:
            Values ``(documents of the rung,)`` in the rung's order; NaN where the metric has no number for a document.

        Raises:
            ScoringFailed: see `score`.
        """
        self.build("search")
        self._answer(self._roles["search"].prepared[rung], seed)
        places = self._rungs[rung]
        column = np.full(sum(len(member.ids) for member in self._roles["search"].members), np.nan)
        with lm_eval_conditions():
            for kept, member in self._part(places):
                if not kept:
                    continue
                score = _score_member(member)
                key = (self._plan.metric, self._plan.filter)
                numbers = _scalars(score.values.get(key, ()))
                if numbers is not None:
                    column[[kept[at] for at in score.documents.get(key, ())]] = numbers
        found: Array = column[list(places)]
        return found

    def score_so_far(self, rung: int | None = None) -> ObjectiveScore:
        """The objective over the search documents answered until a rung; None = over all of them."""
        if rung is None:
            return self._scored(self._roles["search"].members)
        places = sorted(place for part in self._rungs[: rung + 1] for place in part)
        return self._scored([member for _, member in self._part(places)])

    def _part(self, places: Sequence[int]) -> list[tuple[list[int], _Member]]:
        """The tasks with only these search documents, and which ones each has."""
        found, start = [], 0
        for member in self._roles["search"].members:
            kept = [place for place in places if start <= place < start + len(member.ids)]
            at = [place - start for place in kept]
            golds = None if member.golds is None else [member.golds[place] for place in at]
            ids, groups = tuple(member.ids[place] for place in at), [member.groups[place] for place in at]
            found.append((kept, _Member(member.opened, ids, groups, golds)))
            start += len(member.ids)
        return found

    def _scored(self, members: Sequence[_Member]) -> ObjectiveScore:
        with lm_eval_conditions():
            return self._combine(members, [_score_member(member) for member in members])

    def _answer(self, part: list[PreparedRequests], seed: int) -> None:
        """Ask the live model the requests of one part."""
        for prepared in part:
            for request in prepared.requests:
                request.resps, request.filtered_resps = [], {}
        for prepared in part:
            for request, answer in zip(prepared.requests, self._scorer.score(prepared, seed), strict=True):
                _refuse_non_finite(answer)
                request.resps.append(answer)

    def _combine(self, members: Sequence[_Member], scores: Sequence[_MemberScore]) -> ObjectiveScore:
        key = (self._plan.metric, self._plan.filter)
        metrics = self._means(members, scores)
        values = [metrics[f"{member.name}/{','.join(key)}"] for member in members]
        sizes = [max(len(items) for items in score.values.values()) for score in scores]
        shares = np.array(sizes if self._plan.weight_by_size else [1.0] * len(sizes), dtype=np.float64)
        shares /= shares.sum()
        value = values[0] if len(values) == 1 else float(np.dot(shares, values))
        if not math.isfinite(value):
            raise ScoringFailed(FailureKind.NON_FINITE, f"{','.join(key)} is {value}")
        return ObjectiveScore(self._config.name, value, self._table(members, scores, key, shares), metrics)

    def _means(self, members: Sequence[_Member], scores: Sequence[_MemberScore]) -> dict[str, float]:
        """The metric of each task, and its other metrics that are means."""
        key, metrics = (self._plan.metric, self._plan.filter), {}
        for member, score in zip(members, scores, strict=True):
            if key not in score.values:
                known = ", ".join(",".join(pair) for pair in score.values)
                message = f"task {member.name!r} gave no {','.join(key)} for this model (only {known})"
                raise ScoringFailed(FailureKind.EXCEPTION, message)
            for pair, items in score.values.items():
                if pair == key or (is_mean(member.opened.task, pair[0]) and _scalars(items) is not None):
                    metrics[f"{member.name}/{','.join(pair)}"] = _aggregate(member, pair[0], items)
        return metrics

    def _table(
        self, members: Sequence[_Member], scores: Sequence[_MemberScore], key: _Key, shares: Array
    ) -> DocumentScores | None:
        """Per-document values; a group's carry the member and the weight of each document in the objective."""
        columns = [_scalars(score.values[key]) for score in scores]
        if any(column is None for column in columns):
            return None
        grouped = len(self._plan.members) > 1
        ids = tuple(
            f"{member.name}/{member.ids[place]}" if grouped else member.ids[place]
            for member, score in zip(members, scores, strict=True)
            for place in score.documents[key]
        )
        extra = _extra_columns(scores, key)
        if grouped:
            sizes = [len(score.documents[key]) for score in scores]
            extra["member"] = np.repeat(np.arange(len(sizes), dtype=np.float64), sizes)
            extra["weight"] = np.repeat(shares / np.array(sizes), sizes)
        if not all(is_mean(member.opened.task, key[0]) for member in members):
            extra["corpus_metric"] = np.ones(len(ids))
        return DocumentScores(
            self._config.name, ids, np.concatenate([column for column in columns if column is not None]), extra
        )


def _score_member(member: _Member) -> _MemberScore:
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
    values: dict[_Key, list[Any]] = {}
    documents: dict[_Key, list[int]] = {}
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
    return _MemberScore(values, documents, _gold_columns(member))


def _aggregate(member: _Member, metric: str, items: list[Any]) -> float:
    try:
        return float(aggregation(member.opened.task, metric)(items))
    except Exception as error:  # the task's own aggregation
        message = f"task {member.name!r}: aggregating {metric!r} raised {one_line(error)}"
        raise ScoringFailed(FailureKind.EXCEPTION, message) from error


def _scalars(items: Sequence[Any]) -> Array | None:
    """The values as numbers; None when they are tuples or texts that only the whole set gives a score to."""
    if not all(isinstance(item, bool | int | float | np.number | np.bool_) for item in items):
        return None
    return np.array([float(item) for item in items], dtype=np.float64)


def _extra_columns(scores: Sequence[_MemberScore], key: _Key) -> dict[str, Array]:
    """Other per-document numbers that every member has for the same documents as the metric."""
    columns: dict[str, Array] = {}
    for pair in scores[0].values:
        if pair == key or any(score.documents.get(pair) != score.documents[key] for score in scores):
            continue
        parts = [_scalars(score.values[pair]) for score in scores]
        if all(part is not None for part in parts):
            columns[",".join(pair)] = np.concatenate([part for part in parts if part is not None])
    for name in scores[0].gold:
        if all(name in score.gold for score in scores):
            columns[name] = np.concatenate([score.gold[name][score.documents[key]] for score in scores])
    return columns


def _gold_choices(opened: OpenTask, groups: Sequence[Sequence[Any]]) -> list[int] | None:
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


def _gold_columns(member: _Member) -> dict[str, Array]:
    """Log-probability of the right choice, and its lead over the best wrong one."""
    if member.golds is None:
        return {}
    right, lead = [], []
    for gold, group in zip(member.golds, member.groups, strict=True):
        numbers = [instance.resps[0][0] for instance in group]
        right.append(numbers[gold])
        lead.append(numbers[gold] - max(number for place, number in enumerate(numbers) if place != gold))
    return {"gold_logprob": np.array(right), "gold_margin": np.array(lead)}


def _refuse_non_finite(answer: Any) -> None:
    number = answer[0] if isinstance(answer, tuple) else answer
    if isinstance(number, float) and not math.isfinite(number):
        raise ScoringFailed(FailureKind.NON_FINITE, "the model gives log-probabilities that are not finite")
