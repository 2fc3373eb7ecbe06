"""The evaluator: bound once to a live model, it scores whatever weights the model holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.errors import UserError
from evomerge.evaluation.cost_fitness import CostFitness, CostMeter
from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.failures import WorkerBroken, failure_of
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.known_answers import KnownAnswers
from evomerge.evaluation.racing import Race
from evomerge.evaluation.rung_run import RungsRun, run_rungs
from evomerge.evaluation.rungs import RungSettings, lay_rungs
from evomerge.evaluation.scoring_parts import CandidateScoring, LmEvalPart, check_reads_text
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.evaluation.text_engine import EngineClock, TextEngine
from evomerge.terms import (
    DocumentChoice,
    Evaluation,
    Objective,
    Seconds,
    SplitName,
)

if TYPE_CHECKING:
    from evomerge.evaluation.forward_clock import ForwardClock
    from evomerge.evaluation.python_fitness import PythonFitness

logger = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Scores the live model.

    One evaluator serves one model in one thread. ``bind`` prepares everything that no weight changes; ``evaluate``
    reads the weights as they are now, leaves them alone, and never raises for what a merge or a task did: it returns
    an evaluation with a failure. The same weights, split and seed give the same evaluation.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, in the order of `Evaluation.fitness`."""
        ...

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Splits that every fitness has documents for."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for people: which engines score, and why none faster."""
        ...

    def bind(self, model: Any, tokenizer: Any, cost: CostMeter | None = None) -> None:
        """Use this model from now on and prepare the search split.

        Args:
            model: the live model.
            tokenizer: its tokenizer.
            cost: counts what the live model costs now, at a context length; needed for ``cost`` fitnesses.

        Raises:
            UserError: the tasks cannot be built, or do not fit the model or its tokenizer.
        """
        ...

    def set_batch_size(self, batch_size: int) -> None:
        """Lay the requests out anew, for example after running out of memory."""
        ...

    def evaluate(
        self,
        split: SplitName,
        seed: int = 0,
        race: Race | None = None,
        documents: DocumentChoice | None = None,
        known: KnownAnswers | None = None,
    ) -> Evaluation:
        """Score the model's present weights on a split.

        Args:
            split: whose documents.
            seed: for whatever draws random numbers.
            race: what the model has to keep up with on the search documents of a racing run; None = score all.
            documents: which search documents to score of each objective; the evaluation is then only a `Part`, without
                a fitness. None = all.
            known: what is known of these weights' answers; takes note of what is computed. None = nothing is.

        Raises:
            UserError: a fitness has no documents for this split.
            NotKnown: something is not known, and nothing may be computed.
        """
        ...


@dataclass(frozen=True)
class EvaluatorSettings:
    """How to score, apart from what to score.

    Attributes:
        batch_size: rows of one forward pass for every fitness, None = each one's own.
        exact: score everything through lm-eval's own loops.
        exact_splits: score these splits through lm-eval's own loops.
        pass_tokens: most tokens of one forward pass, None = what suits the device.
        import_paths: folders put on ``sys.path`` for ``python:`` fitness functions.
        rungs: how the search documents are cut, None = not at all.
        engine: generates all texts in place of the bound model, which then needs no weights; None = the model does.
    """

    batch_size: int | None = None
    exact: bool = False
    exact_splits: tuple[SplitName, ...] = ()
    pass_tokens: int | None = None
    import_paths: tuple[str, ...] = ()
    rungs: RungSettings | None = None
    engine: TextEngine | None = None


def build_evaluator(
    configs: Sequence[FitnessConfig | Mapping[str, Any]],
    plan: DocumentPlan | Mapping[str, Any],
    settings: EvaluatorSettings | None = None,
) -> Evaluator:
    """An evaluator for these fitnesses on the planned documents.

    Args:
        configs: fitness configs, or their ``model_dump()``.
        plan: what `plan_documents` gave, or its JSON data.
        settings: default: each fitness's own.

    Raises:
        UserError: a Python fitness cannot be imported.
    """
    parsed = [entry if isinstance(entry, FitnessConfig) else FitnessConfig.model_validate(entry) for entry in configs]
    documents = plan if isinstance(plan, DocumentPlan) else DocumentPlan.from_json(plan)
    return FitnessEvaluator(parsed, documents, settings or EvaluatorSettings())


class FitnessEvaluator:
    """All fitnesses of an experiment, one after the other. See `Evaluator` for the contract."""

    def __init__(self, configs: Sequence[FitnessConfig], plan: DocumentPlan, settings: EvaluatorSettings) -> None:
        from evomerge.evaluation.python_fitness import PythonFitness

        self._configs = tuple(configs)
        self._settings = settings
        self._batch_size = settings.batch_size
        self._model: Any = None
        self._tokenizer: Any = None
        self._scorer: Any = None
        self._parts: list[PythonFitness | CostFitness | LmEvalPart] = []
        self._layout = None if settings.rungs is None else lay_rungs(self._configs, plan, settings.rungs)
        for config in self._configs:
            if config.cost is not None:
                self._parts.append(CostFitness(config))
            elif config.python is not None:
                self._parts.append(PythonFitness(config, plan.of(config.name), settings.import_paths))
            else:
                self._parts.append(LmEvalPart(config, plan.of(config.name), self._rungs_of(len(self.objectives))))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """See `Evaluator.objectives`."""
        return tuple(objective for part in self._parts for objective in part.objectives)

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """See `Evaluator.splits`."""
        everywhere: tuple[SplitName, ...] = ("search", "validation", "held_out")
        listed = [config.roles for config in self._configs if config.documents is not None]
        return tuple(role for role in everywhere if all(role in roles for roles in listed))

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Evaluator.notes`."""
        engines = self._scorer.notes if self._scorer is not None else {}
        return tuple(f"{kind} scored by engine {engine}" for kind, engine in engines.items())

    def _rungs_of(self, objective: int) -> tuple[tuple[int, ...], ...]:
        """What is scored together of an objective's search documents; empty where all is."""
        found = None if self._layout is None else self._layout.objectives[objective]
        return () if found is None else tuple(tuple(rung.tolist()) for rung in found.rungs)

    def bind(self, model: Any, tokenizer: Any, cost: CostMeter | None = None) -> None:
        """See `Evaluator.bind`."""
        self._model, self._tokenizer, self._scorer = model, tokenizer, None
        for part in self._parts:
            if isinstance(part, CostFitness):
                part.use(cost)
        self._rebuild()

    def set_batch_size(self, batch_size: int) -> None:
        """See `Evaluator.set_batch_size`."""
        self._batch_size = batch_size
        if self._model is not None:
            self._rebuild()

    def _rebuild(self) -> None:
        tasks = [config.name for config, part in zip(self._configs, self._parts) if isinstance(part, LmEvalPart)]
        if tasks:
            self._scorer = self._build_scorer(tasks)
        for part in self._parts:
            if isinstance(part, LmEvalPart):
                part.use(self._scorer, self._batch_size, self._settings.exact_splits)
            elif not isinstance(part, CostFitness):
                part.use(self._batch_size)
            part.bind(self._model, self._tokenizer)

    def _build_scorer(self, tasks: Sequence[str]) -> Any:
        from evomerge.evaluation.lm_eval_engine import EngineScorer
        from evomerge.evaluation.lm_eval_scorer import PreparedScorer

        settings = self._settings
        if settings.engine is not None:
            return EngineScorer(self._model, self._tokenizer, settings.engine)
        check_reads_text(self._model, self._tokenizer, tasks)
        # Other sizes change nothing about which engines suit; the weights may be a broken candidate's by now.
        chooser = self._scorer.chooser if self._scorer is not None else None
        return PreparedScorer(
            self._model, self._tokenizer, self._batch_size, settings.exact, settings.pass_tokens, chooser
        )

    def _clock(self) -> ForwardClock | EngineClock:
        from evomerge.evaluation.forward_clock import ForwardClock

        return ForwardClock(self._model) if self._settings.engine is None else EngineClock(self._settings.engine)

    def evaluate(
        self,
        split: SplitName,
        seed: int = 0,
        race: Race | None = None,
        documents: DocumentChoice | None = None,
        known: KnownAnswers | None = None,
    ) -> Evaluation:
        """See `Evaluator.evaluate`."""
        assert self._model is not None, "bind() comes before evaluate()"
        if split not in self.splits:
            lacking = [config.name for config in self._configs if config.documents and split not in config.roles]
            raise UserError(f"fitness {lacking[0]!r} has no {split} documents")
        import torch

        started = time.perf_counter()
        scoring = CandidateScoring(tuple(zip(self._configs, self._parts, strict=True)), split, seed, known)
        with torch.no_grad(), self._clock() as clock:
            try:
                if documents is not None:
                    part = scoring.chosen(documents, self.objectives)
                    spent = _seconds(started, clock.seconds)
                    return replace(part, seconds=spent, known_documents=0 if known is None else known.documents)
                if split == "search" and self._layout is not None:
                    ran = run_rungs(scoring.rung, self._layout, self.objectives, race)
                    scores = scoring.finished(ran)
                else:
                    ran, scores = RungsRun(), scoring.everything()
            except (UserError, WorkerBroken):
                raise
            except Exception as error:  # whatever a merge or a task did is this candidate's failure
                logger.debug("fitness %s failed", scoring.name, exc_info=True)
                failure = failure_of(error, f"fitness {scoring.name}, {split}")
                return Evaluation(failure=failure, seconds=_seconds(started, clock.seconds))
        evaluation = Evaluation(
            document_scores=tuple(score.table for score in scores if score.table is not None),
            seconds=_seconds(started, clock.seconds),
            rungs=ran.rungs,
            known_documents=0 if known is None else known.documents,
        )
        if ran.stop is not None:
            stop = replace(ran.stop, audit=self._fitness(scores)) if ran.is_complete else ran.stop
            return replace(evaluation, stop=stop)
        metrics = {name: value for score in scores for name, value in score.metrics.items()}
        return replace(evaluation, fitness=self._fitness(scores), metrics=metrics)

    def _fitness(self, scores: Sequence[ObjectiveScore]) -> tuple[float, ...]:
        signs = [1.0 if objective.higher_is_better else -1.0 for objective in self.objectives]
        return tuple(sign * score.value + 0.0 for sign, score in zip(signs, scores, strict=True))


def _seconds(started: float, forward: float) -> Seconds:
    return Seconds(forward=forward, metric=max(0.0, time.perf_counter() - started - forward))
