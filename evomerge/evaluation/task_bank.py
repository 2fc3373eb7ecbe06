"""The requests of one lm-eval fitness, built once; each candidate costs its forwards and the metric arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.evaluation.documents import FitnessPlan, MemberPlan
from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.known_answers import KnownAnswers, NotKnown
from evomerge.evaluation.lm_eval_index import TaskTree, load_tree
from evomerge.evaluation.lm_eval_scorer import PreparedRequests, PreparedScorer
from evomerge.evaluation.lm_eval_tasks import (
    build_instances,
    is_mean,
    lm_eval_conditions,
    open_task,
    render,
    restrict_examples,
)
from evomerge.evaluation.member_scores import (
    Member,
    MemberScore,
    MetricKey,
    aggregate,
    extra_columns,
    gold_choices,
    scalars,
    score_member,
)
from evomerge.evaluation.part_answers import PartKey, pack_answers, part_key, read_answers
from evomerge.evaluation.task_planning import forbidden_examples
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.terms import Array, DocumentScores, FailureKind, SplitName

_Fresh = tuple[PartKey, list[list[Any]]] | None  # answers that were computed now, and what they answer
MAX_CHOICES = 4  # choices of documents whose requests are kept


@dataclass
class _Role:
    members: list[Member]
    prepared: list[list[PreparedRequests]]  # of each rung; one rung where nothing is raced
    keys: dict[int, PartKey] = field(default_factory=dict)  # of rungs, once they are asked for


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

    def _parts(self, members: Sequence[Member], rungs: Sequence[Sequence[int]]) -> list[list[list[Any]]]:
        """The documents' instances, rung by rung."""
        groups = [group for member in members for group in member.groups]
        return [[groups[place] for place in rung] for rung in rungs] or [groups]

    def _build_member(self, member: MemberPlan, role: SplitName) -> Member:
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
        return Member(opened, split.ids, groups, gold_choices(opened, groups))

    def _chat_template(self) -> Callable[..., str]:
        if getattr(self._scorer.tokenizer, "chat_template", None) is None:
            message = "`apply_chat_template: true`, but the model's tokenizer has no chat template"
            raise UserError(f"fitness {self._config.name}: {message}")
        template: Callable[..., str] = self._scorer.apply_chat_template
        return template

    def score(self, role: SplitName, seed: int, known: KnownAnswers | None = None) -> ObjectiveScore:
        """Score the live model.

        Args:
            role: whose documents.
            seed: for requests that ask for sampling.
            known: the model's answers of earlier; None = ask it.

        Raises:
            ScoringFailed: numbers that are not finite, or an error of the task on a document.
            NotKnown: something is not known, and nothing may be asked.
        """
        self._build_unless(role, known)
        fresh = [self._answer(role, part, seed, known) for part in range(len(self._roles[role].prepared))]
        scored = self._scored(self._roles[role].members)
        _keep(known, fresh)
        return scored

    def score_chosen(
        self, places: tuple[int, ...], seed: int, known: KnownAnswers | None = None
    ) -> tuple[DocumentScores, dict[str, float]]:
        """Score some of the search documents.

        Args:
            places: their positions, ascending.
            seed: see `score`.
            known: see `score`.

        Returns:
            Their table, ids as in the whole one; and the means that `score` calls metrics, over these documents.

        Raises:
            ScoringFailed: see `score`; also where the metric has no number for a document.
            NotKnown: see `score`.
        """
        self._build_unless("search", known, places)
        parts = self._prepared(places)
        fresh = self._ask(parts, seed, known, lambda: self._key_of("search", parts), len(places))
        part = [member for kept, member in self._part(places) if kept]
        with lm_eval_conditions():
            scores = [score_member(member) for member in part]
            metrics, shares = self._means(part, scores), np.ones(len(part))
        table = self._table(part, scores, (self._plan.metric, self._plan.filter), shares)
        if table is None or len(table.document_ids) != len(places):
            message = f"{self._plan.metric},{self._plan.filter} has no number for each document"
            raise ScoringFailed(FailureKind.NON_FINITE, message)
        _keep(known, [fresh])
        return table, metrics

    def _prepared(self, places: tuple[int, ...]) -> list[PreparedRequests]:
        if places not in self._choices:
            if len(self._choices) == MAX_CHOICES:
                self._choices.pop(next(iter(self._choices)))
            part = self._parts(self._roles["search"].members, [places])[0]
            self._choices[places] = self._scorer.prepare(part, self._batch_size, self._config.exact)
        return self._choices[places]

    def score_rung(self, rung: int, seed: int, known: KnownAnswers | None = None) -> Array:
        """Score the next rung of the search documents; every rung before was scored with the same weights.

        Args:
            rung: its number.
            seed: see `score`.
            known: see `score`.

        Returns:
            Values ``(documents of the rung,)`` in the rung's order; NaN where the metric has no number for a document.

        Raises:
            ScoringFailed: see `score`.
            NotKnown: see `score`.
        """
        self._build_unless("search", known)
        fresh = self._answer("search", rung, seed, known)
        places = self._rungs[rung]
        column = np.full(sum(len(member.ids) for member in self._roles["search"].members), np.nan)
        with lm_eval_conditions():
            for kept, member in self._part(places):
                if not kept:
                    continue
                score = score_member(member)
                key = (self._plan.metric, self._plan.filter)
                numbers = scalars(score.values.get(key, ()))
                if numbers is not None:
                    column[[kept[at] for at in score.documents.get(key, ())]] = numbers
        _keep(known, [fresh])
        found: Array = column[list(places)]
        return found

    def score_so_far(self, rung: int | None = None) -> ObjectiveScore:
        """The objective over the search documents answered until a rung; None = over all of them."""
        if rung is None:
            return self._scored(self._roles["search"].members)
        places = sorted(place for part in self._rungs[: rung + 1] for place in part)
        return self._scored([member for _, member in self._part(places)])

    def _part(self, places: Sequence[int]) -> list[tuple[list[int], Member]]:
        """The tasks with only these search documents, and which ones each has."""
        found, start = [], 0
        for member in self._roles["search"].members:
            kept = [place for place in places if start <= place < start + len(member.ids)]
            at = [place - start for place in kept]
            golds = None if member.golds is None else [member.golds[place] for place in at]
            ids, groups = tuple(member.ids[place] for place in at), [member.groups[place] for place in at]
            found.append((kept, Member(member.opened, ids, groups, golds)))
            start += len(member.ids)
        return found

    def _scored(self, members: Sequence[Member]) -> ObjectiveScore:
        with lm_eval_conditions():
            return self._combine(members, [score_member(member) for member in members])

    def _build_unless(self, role: SplitName, known: KnownAnswers | None, places: tuple[int, ...] | None = None) -> None:
        """Make the requests of a role, unless engines would be tried on weights that are nobody's."""
        is_ready = role in self._roles and (places is None or places in self._choices)
        if not is_ready and known is not None and known.only and not known.may_prepare:
            raise NotKnown
        self.build(role)

    def _answer(self, role: SplitName, part: int, seed: int, known: KnownAnswers | None) -> _Fresh:
        """Look the answers to one part of a role up, or ask the live model."""
        built = self._roles[role]

        def key() -> PartKey:
            if part not in built.keys:
                built.keys[part] = self._key_of(role, built.prepared[part])
            return built.keys[part]

        documents = len(self._rungs[part]) if role == "search" and self._rungs else self._num_documents(role)
        return self._ask(built.prepared[part], seed, known, key, documents)

    def _ask(
        self, parts: list[PreparedRequests], seed: int, known: KnownAnswers | None, key_of: Callable[[], PartKey],
        documents: int,
    ) -> _Fresh:  # fmt: skip
        """Look answers up, or ask the live model."""
        for prepared in parts:
            for request in prepared.requests:
                request.resps, request.filtered_resps = [], {}
        key: PartKey = {}
        found: list[list[Any]] | None = None
        if known is not None:
            key = key_of()
            key = {**key, "seed": seed} if key["is_sampled"] else key
            found = known.find(key, lambda kept: read_answers(kept, parts), documents)
        answers = found if found is not None else [self._scorer.score(prepared, seed) for prepared in parts]
        for prepared, mine in zip(parts, answers, strict=True):
            for request, answer in zip(prepared.requests, mine, strict=True):
                _refuse_non_finite(answer)
                request.resps.append(answer)
        return (key, answers) if known is not None and found is None else None

    def _key_of(self, role: SplitName, parts: list[PreparedRequests]) -> PartKey:
        splits = [(member.name, member.splits[role]) for member in self._plan.members]
        return part_key(self._plan, splits, parts, self._scorer, self._batch_size)

    def _num_documents(self, role: SplitName) -> int:
        return sum(len(member.ids) for member in self._roles[role].members)

    def _combine(self, members: Sequence[Member], scores: Sequence[MemberScore]) -> ObjectiveScore:
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

    def _means(self, members: Sequence[Member], scores: Sequence[MemberScore]) -> dict[str, float]:
        """The metric of each task, and its other metrics that are means."""
        key, metrics = (self._plan.metric, self._plan.filter), {}
        for member, score in zip(members, scores, strict=True):
            if key not in score.values:
                known = ", ".join(",".join(pair) for pair in score.values)
                message = f"task {member.name!r} gave no {','.join(key)} for this model (only {known})"
                raise ScoringFailed(FailureKind.EXCEPTION, message)
            for pair, items in score.values.items():
                if pair == key or (is_mean(member.opened.task, pair[0]) and scalars(items) is not None):
                    metrics[f"{member.name}/{','.join(pair)}"] = aggregate(member, pair[0], items)
        return metrics

    def _table(
        self, members: Sequence[Member], scores: Sequence[MemberScore], key: MetricKey, shares: Array
    ) -> DocumentScores | None:
        """Per-document values; a group's carry the member and the weight of each document in the objective."""
        columns = [scalars(score.values[key]) for score in scores]
        if any(column is None for column in columns):
            return None
        grouped = len(self._plan.members) > 1
        ids = tuple(
            f"{member.name}/{member.ids[place]}" if grouped else member.ids[place]
            for member, score in zip(members, scores, strict=True)
            for place in score.documents[key]
        )
        extra = extra_columns(scores, key)
        if grouped:
            sizes = [len(score.documents[key]) for score in scores]
            extra["member"] = np.repeat(np.arange(len(sizes), dtype=np.float64), sizes)
            extra["weight"] = np.repeat(shares / np.array(sizes), sizes)
        if not all(is_mean(member.opened.task, key[0]) for member in members):
            extra["corpus_metric"] = np.ones(len(ids))
        return DocumentScores(
            self._config.name, ids, np.concatenate([column for column in columns if column is not None]), extra
        )


def _keep(known: KnownAnswers | None, fresh: Sequence[_Fresh]) -> None:
    """Remember what was computed, now that it could be scored."""
    for part in fresh:
        if known is not None and part is not None:
            known.keep(part[0], pack_answers(part[1]))


def _refuse_non_finite(answer: Any) -> None:
    number = answer[0] if isinstance(answer, tuple) else answer
    if isinstance(number, float) and not math.isfinite(number):
        raise ScoringFailed(FailureKind.NON_FINITE, "the model gives log-probabilities that are not finite")
