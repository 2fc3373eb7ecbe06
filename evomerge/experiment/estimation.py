"""Estimation in a search: who is scored on which documents, what that says of all, and when it is checked.

The fit in force changes between generations only. It depends on complete scores of the log, and its documents are in
the log, so a resumed run estimates as the first one did; estimates that were made are in the log anyway.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.errors import UserError
from evomerge.evaluation.anchor_documents import DocumentSubset
from evomerge.evaluation.estimated_fitness import (
    MIN_MODELS,
    EstimationLayout,
    FittedTask,
    NotEstimable,
    choose_subsets,
    fit_tasks,
)
from evomerge.experiment.completed_scores import completed_evaluation
from evomerge.experiment.config import EstimationConfig
from evomerge.experiment.estimation_checks import Compared, objective_drift
from evomerge.experiment.leaders import Ranking, leading, sample
from evomerge.experiment.search_loop import Progress, candidate_key, completed_id, full_key
from evomerge.runtime.executor import Executor, Job, Outcome, WorkerReport
from evomerge.store.estimation_events import Completing, Estimated, EstimationFitted, ObjectiveDrift, TaskSubset
from evomerge.store.events import Ended, Evaluated, Event
from evomerge.store.score_store import ScoreStore
from evomerge.terms import Array, Candidate, DocumentChoice, Estimate, Evaluation, Failure, FailureKind

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EstimationPlan:
    """What is the same for all fits of a run.

    Attributes:
        config: what the user asked for.
        layout: what is estimated.
        count: documents to begin with, over all tasks.
        baselines: keys of the baselines' search evaluations, in order.
        experts: those of the experts among them.
        seed: of anchors and samples.
        where: the experiment's file, for messages.
    """

    config: EstimationConfig
    layout: EstimationLayout
    count: int
    baselines: tuple[str, ...]
    experts: tuple[str, ...]
    seed: int
    where: str


class Estimation:
    """The one who fits, estimates, and chooses whom to complete.

    Args:
        plan: what is the same for all fits.
        scores: per-document scores of the run.
        outcomes: of the run by key; grows while it goes on.
        ranking: compares candidates.
        log: writes an event, durable when it returns.
        note: tells a person something once.
    """

    def __init__(
        self,
        plan: EstimationPlan,
        scores: ScoreStore,
        outcomes: Mapping[str, Ended],
        *,
        ranking: Ranking,
        log: Callable[[Event], None],
        note: Callable[[str], None] = LOG.info,
    ) -> None:
        self.plan = plan
        self._scores, self._outcomes, self._ranking = scores, outcomes, ranking
        self._log, self._note = log, note
        self._fits: list[EstimationFitted] = []
        self._completions: list[Completing] = []
        self._fitted: list[FittedTask] = []
        self._choice: DocumentChoice | None = None
        self._columns: dict[str, list[Array]] = {}

    def restore(self, fits: Sequence[EstimationFitted], completions: Sequence[Completing]) -> None:
        """Go on where a log ends."""
        self._fits, self._completions = list(fits), list(completions)
        if self._fits:
            self._use(self._fits[-1])

    @property
    def fit(self) -> EstimationFitted | None:
        """The fit in force, None before the first."""
        return self._fits[-1] if self._fits else None

    def documents(self, candidate: Candidate) -> DocumentChoice | None:
        """What a candidate that is asked now is scored on; None = everything."""
        return self._choice

    def settle(self, outcome: Outcome) -> Outcome:
        """An outcome as it is recorded: a part becomes an estimate, or a complete evaluation."""
        evaluation = outcome.evaluation
        if evaluation.part is None:
            return outcome
        number = completed_id(outcome.job.key)
        try:
            settled = self._estimated(evaluation) if number is None else self._completed(number, evaluation)
        except NotEstimable as error:
            settled = Evaluation(seconds=evaluation.seconds, failure=Failure(FailureKind.NON_FINITE, str(error)))
        return replace(outcome, evaluation=settled)

    def waiting(self, progress: Progress) -> list[int] | None:
        """Whom to complete before the search goes on; empty = only the fit is due, None = nothing is.

        Args:
            progress: between two generations.
        """
        fit = self.fit
        if fit is None:
            is_due = progress.closed >= self.plan.config.full_generations
            return [] if is_due and len(self._model_keys()) >= self._num_needed else None
        if fit.is_off or progress.closed - fit.generation < self.plan.config.full_every:
            return None
        last = self._completions[-1] if self._completions else None
        if last is None or last.is_final or last.generation != progress.closed:
            last = self._complete(progress, self.plan.config.leaders, is_final=False)
        return self._lacking(last)

    def final(self, progress: Progress, count: int) -> list[int]:
        """Whom to complete at the end of the search: the ``count`` candidates with the best estimates."""
        if self.fit is None:
            return []
        last = self._completions[-1] if self._completions else None
        if last is None or not last.is_final or last.num_asked != len(progress.candidates):
            last = self._complete(progress, count, is_final=True)
        return self._lacking(last)

    def rest(self, number: int) -> DocumentChoice:
        """What an estimated candidate lacks."""
        event = self._outcomes[candidate_key(number)]
        assert isinstance(event, Estimated)
        return self.plan.layout.rest(self._choice_of(event.estimate.fit))

    def refit(self, progress: Progress) -> None:
        """Compare estimates with what is known by now, choose documents, and fit."""
        before, keys = self.fit, tuple(self._model_keys())
        drift = self._drift(progress) if before is not None else ()
        is_widened = any(found.is_drifting for found in drift)
        subsets = self._subsets(keys, self._next_count(before)) if before is None or is_widened else before.subsets
        number = 0 if before is None else before.fit + 1
        event = EstimationFitted(number, progress.closed, subsets, keys, time.time(), drift, is_widened)
        self._log(event)
        self._fits.append(event)
        self._use(event)
        self._tell(event, before)

    def check(self) -> None:
        """Refuse baselines whose scores cannot be estimated from, before the first candidate.

        Raises:
            UserError: scores outside [0, 1], or documents without a score.
        """
        for key in self._model_keys():
            self._model(key)

    @property
    def _num_needed(self) -> int:
        return 0 if self.plan.config.estimator == "mean" else MIN_MODELS

    def _model_keys(self) -> list[str]:
        """Complete search evaluations: baselines in their order, then candidates by id."""
        found = [key for key in self.plan.baselines if isinstance(self._outcomes.get(key), Evaluated)]
        events = (event for event in self._outcomes.values() if isinstance(event, Evaluated))
        numbers = sorted(event.candidate for event in events if event.candidate is not None)
        return found + [candidate_key(number) for number in numbers]

    def _model(self, key: str) -> list[Array]:
        if key not in self._columns:
            event = self._outcomes[key]
            assert isinstance(event, Evaluated)
            try:
                tables = self._scores.load(event.scores_ref) if event.scores_ref else ()
                self._columns[key] = self.plan.layout.columns(tables)
            except NotEstimable as error:
                raise UserError(
                    f"{self.plan.where}: estimation: {error} ({key}). Estimators take a score from 0 to 1 of every "
                    "document; use a metric that gives one, or drop `estimation`."
                ) from None
        return self._columns[key]

    def _subsets(self, keys: Sequence[str], count: int) -> tuple[TaskSubset, ...]:
        layout, config = self.plan.layout, self.plan.config
        models = {key: self._model(key) for key in keys}
        found = choose_subsets(layout, models, count, config.estimator, self.plan.seed)
        return tuple(
            TaskSubset(task.name, tuple(one.indices.tolist()), tuple(one.weights.tolist()), task.size)
            for task, one in zip(layout.tasks, found, strict=True)
        )

    def _next_count(self, before: EstimationFitted | None) -> int:
        if before is None:
            return self.plan.count
        drift = self.plan.config.drift
        assert drift != "off"
        return min(before.num_all, max(before.num_documents + 1, math.ceil(drift.growth * before.num_documents)))

    def _use(self, event: EstimationFitted) -> None:
        """Estimate by this fit from now on."""
        if event.is_off:
            self._choice, self._fitted = None, []
            return
        self._choice = self._choice_of(event.fit)
        models = {key: self._model(key) for key in event.models}
        experts = [key for key in self.plan.experts if key in models]
        subsets = [_subset(one) for one in event.subsets]
        self._fitted = fit_tasks(subsets, models, self.plan.config.estimator, experts)

    def _choice_of(self, fit: int) -> DocumentChoice:
        return self.plan.layout.choice([_subset(one) for one in self._fits[fit].subsets])

    def _estimated(self, evaluation: Evaluation) -> Evaluation:
        fit, layout, part = self.fit, self.plan.layout, evaluation.part
        assert fit is not None
        assert part is not None
        columns = layout.columns(evaluation.document_scores, part.documents)
        found = [task.estimate(self.plan.config.estimator, column) for task, column in zip(self._fitted, columns)]
        values = np.array([one.values[0] for one in found])
        errors = np.array([one.standard_errors[0] for one in found])
        fitness, standard_errors = layout.of_objectives(values, errors)
        known = tuple(whole if value is None else value for value, whole in zip(fitness, part.whole, strict=True))
        assert all(value is not None for value in known)
        estimate = Estimate(
            fit.num_documents + layout.whole_documents, fit.num_all + layout.whole_documents,
            tuple(float(value) for value in known if value is not None), tuple(standard_errors), fit.fit,
        )  # fmt: skip
        own = {task.metric.split("/", 1)[0] for task in layout.tasks}
        metrics = {name: value for name, value in evaluation.metrics.items() if name.split("/", 1)[0] not in own}
        return replace(evaluation, metrics=metrics, estimate=estimate, part=None)

    def _completed(self, number: int, evaluation: Evaluation) -> Evaluation:
        before = self._outcomes[candidate_key(number)]
        assert isinstance(before, Estimated)
        first = self._scores.load(before.scores_ref) if before.scores_ref else ()
        completed = completed_evaluation(self.plan.layout, before, first, evaluation)
        self.plan.layout.columns(completed.document_scores)
        return completed

    def _complete(self, progress: Progress, count: int, *, is_final: bool) -> Completing:
        """Decide whom to complete, and write it down."""
        told = [key for key in sorted(progress.told) if isinstance(self._outcomes[candidate_key(key)], Estimated)]
        estimates = {key: _estimate(progress, key) for key in told}
        assert self.fit is not None
        fresh = [key for key in told if estimates[key].fit == self.fit.fit]
        sampled = () if is_final else sample(fresh, self.plan.config.sampled, self.plan.seed)
        recipes = {key: candidate.recipe_id for key, candidate in progress.candidates.items()}
        complete = {recipes[key] for key, outcome in progress.outcomes.items() if outcome.evaluation.ok}
        complete |= {recipes[key] for key in sampled}
        rest = {key: estimates[key].fitness for key in told if recipes[key] not in complete}
        leaders = leading(rest, recipes, count, self._ranking)
        asked = len(progress.candidates)
        event = Completing(progress.closed, leaders, sampled, asked, time.time(), is_final)
        self._log(event)
        self._completions.append(event)
        return event

    def _lacking(self, completing: Completing) -> list[int]:
        return [
            number
            for number in (*completing.leaders, *completing.sampled)
            if isinstance(self._outcomes[candidate_key(number)], Estimated) and full_key(number) not in self._outcomes
        ]

    def _drift(self, progress: Progress) -> tuple[ObjectiveDrift, ...]:
        """How estimates on the documents in force compare with the full scores known by now."""
        config, since = self.plan.config.drift, self._fits[-1].fit
        if config == "off":
            return ()
        while since > 0 and self._fits[since - 1].subsets == self._fits[since].subsets:
            since -= 1
        compared: list[Compared] = []
        for completing in self._completions:
            for number in (*completing.leaders, *completing.sampled):
                event = self._outcomes[candidate_key(number)]
                estimate = _estimate(progress, number)
                if isinstance(event, Evaluated) and estimate.fit >= since:
                    compared.append(Compared(estimate, event.fitness, number in completing.sampled))
        layout = self.plan.layout
        return tuple(
            objective_drift(objective.name, at, compared, config)
            for at, (objective, ids) in enumerate(zip(layout.objectives, layout.document_ids, strict=True))
            if ids is not None
        )

    def _tell(self, event: EstimationFitted, before: EstimationFitted | None) -> None:
        text = f"{event.num_documents} of {event.num_all} documents"
        if before is None:
            self._note(f"estimation: fitted to {len(event.models)} models; candidates are scored on {text}")
        if event.is_widened:
            names = ", ".join(found.objective for found in event.drift if found.is_drifting)
            much = "estimation is off" if event.is_off else f"from {_count(before)} to {text}"
            self._note(f"estimation: estimates of {names} drift from full scores; {much}")


class EstimatingExecutor:
    """An executor whose outcomes of chosen documents come out as estimates or complete evaluations.

    Args:
        executor: where jobs run.
        settle: see `Estimation.settle`.
    """

    def __init__(self, executor: Executor, settle: Callable[[Outcome], Outcome]) -> None:
        self._executor = executor
        self._settle = settle

    @property
    def num_workers(self) -> int:
        """See `Executor`."""
        return self._executor.num_workers

    @property
    def num_pending(self) -> int:
        """See `Executor`."""
        return self._executor.num_pending

    @property
    def reports(self) -> tuple[WorkerReport, ...]:
        """See `Executor`."""
        return self._executor.reports

    def submit(self, job: Job) -> None:
        """See `Executor`."""
        self._executor.submit(job)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """See `Executor`."""
        return [self._settle(outcome) for outcome in self._executor.wait(timeout_seconds)]

    def close(self) -> None:
        """See `Executor`."""
        self._executor.close()


def _subset(found: TaskSubset) -> DocumentSubset:
    indices = np.array(found.documents, dtype=np.int64)
    return DocumentSubset(indices, np.array(found.weights, dtype=np.float64), found.num_documents)


def _estimate(progress: Progress, key: int) -> Estimate:
    estimate = progress.outcomes[key].evaluation.estimate
    assert estimate is not None
    return estimate


def _count(before: EstimationFitted | None) -> int:
    return 0 if before is None else before.num_documents
