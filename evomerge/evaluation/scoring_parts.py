"""What scores one candidate: its way through the fitnesses, whole, rung by rung, or on chosen documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.errors import InvalidInput, Problem
from evomerge.evaluation.cost_fitness import CostFitness
from evomerge.evaluation.documents import FitnessPlan
from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.known_answers import KnownAnswers
from evomerge.evaluation.rung_run import RungsRun
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.terms import (
    Array,
    DocumentChoice,
    DocumentScores,
    Evaluation,
    FailureKind,
    Objective,
    Part,
    SplitName,
)

if TYPE_CHECKING:
    from evomerge.evaluation.python_fitness import PythonFitness


@dataclass
class CandidateScoring:
    """One candidate's way through the fitnesses.

    Attributes:
        parts: each fitness and what scores it.
        split: whose documents.
        seed: for whatever draws random numbers.
        known: what is known of its answers.
        name: the fitness at work, for messages.
    """

    parts: Sequence[tuple[FitnessConfig, PythonFitness | CostFitness | LmEvalPart]]
    split: SplitName
    seed: int
    known: KnownAnswers | None = None
    name: str = ""
    whole: dict[str, list[ObjectiveScore]] = field(default_factory=dict)

    def everything(self) -> list[ObjectiveScore]:
        """All documents of all fitnesses."""
        return [score for config, part in self.parts for score in self._whole(config, part)]

    def rung(self, rung: int) -> list[Array]:
        """Values of the documents of a rung, for each objective; ``(1,)`` of one that is scored whole."""
        columns: list[Array] = []
        for config, part in self.parts:
            if isinstance(part, LmEvalPart) and part.is_raced:
                self.name = config.name
                columns.append(part.score_rung(rung, self.seed, self.known))
                continue
            if rung == 0:
                self.whole[config.name] = self._whole(config, part)
            columns += [np.array([score.value]) for score in self.whole[config.name]]
        return columns

    def chosen(self, documents: DocumentChoice, objectives: Sequence[Objective]) -> Evaluation:
        """Some documents of the objectives that are scored by documents, everything of the others."""
        tables: list[DocumentScores] = []
        metrics: dict[str, float] = {}
        whole: list[float | None] = []
        for config, part in self.parts:
            places = documents[len(whole)]
            if places is None:
                scores = self._whole(config, part)
                named = zip(objectives[len(whole) :], scores)
                whole += [objective.natural(score.value) + 0.0 for objective, score in named]
                tables += [score.table for score in scores if score.table is not None]
                metrics |= {name: value for score in scores for name, value in score.metrics.items()}
                continue
            whole += [None] * len(part.objectives)
            if places and isinstance(part, LmEvalPart):
                self.name = config.name
                table, means = part.score_chosen(places, self.seed, self.known)
                tables.append(table)
                metrics |= means
        return Evaluation((), tuple(tables), metrics, part=Part(documents, tuple(whole)))

    def finished(self, ran: RungsRun) -> list[ObjectiveScore]:
        """The scores over all rungs that were scored."""
        scores: list[ObjectiveScore] = []
        for config, part in self.parts:
            self.name = config.name
            if isinstance(part, LmEvalPart) and part.is_raced:
                scores += _finite([part.score_so_far(None if ran.is_complete else ran.last)])
            else:
                scores += self.whole[config.name]
        return scores

    def _whole(self, config: FitnessConfig, part: PythonFitness | CostFitness | LmEvalPart) -> list[ObjectiveScore]:
        self.name = config.name
        return _finite(part.score(self.split, self.seed, self.known))


class LmEvalPart:
    """One lm-eval fitness."""

    def __init__(self, config: FitnessConfig, plan: FitnessPlan, rungs: tuple[tuple[int, ...], ...] = ()) -> None:
        self._config = config
        self._plan = plan
        self._rungs = rungs
        self._bank: Any = None
        self.objectives = (Objective(config.name, plan.higher_is_better, config.weight),)

    def use(self, scorer: Any, batch_size: int | None, exact_splits: Sequence[SplitName]) -> None:
        """Score through this scorer from now on."""
        from evomerge.evaluation.task_bank import TaskBank

        self._bank = TaskBank(self._config, self._plan, scorer, batch_size, exact_roles=exact_splits, rungs=self._rungs)

    def bind(self, model: Any, tokenizer: Any) -> None:
        """Prepare the search split."""
        self._bank.build("search")

    def score(self, role: SplitName, seed: int, known: KnownAnswers | None = None) -> list[ObjectiveScore]:
        """The objective's score."""
        return [self._bank.score(role, seed, known)]

    def score_chosen(
        self, places: tuple[int, ...], seed: int, known: KnownAnswers | None = None
    ) -> tuple[DocumentScores, dict[str, float]]:
        """Table and metrics of some search documents."""
        found: tuple[DocumentScores, dict[str, float]] = self._bank.score_chosen(places, seed, known)
        return found

    @property
    def is_raced(self) -> bool:
        """Whether its search documents are scored rung by rung."""
        return bool(self._rungs)

    def score_rung(self, rung: int, seed: int, known: KnownAnswers | None = None) -> Array:
        """Values of a rung's documents, in the rung's order."""
        values: Array = self._bank.score_rung(rung, seed, known)
        return values

    def score_so_far(self, rung: int | None) -> ObjectiveScore:
        """The objective's score over the rungs scored; None = over all documents."""
        score: ObjectiveScore = self._bank.score_so_far(rung)
        return score


def check_reads_text(model: Any, tokenizer: Any, tasks: Sequence[str]) -> None:
    """Refuse lm-eval tasks for what is no language model.

    Raises:
        InvalidInput: the model has no tokenizer, or nothing that predicts tokens.
    """
    lacks = [] if tokenizer is not None else ["has no tokenizer beside it"]
    if model.get_output_embeddings() is None and not model.can_generate():
        lacks.append("does not predict tokens")
    if lacks:
        message = (
            f"an lm-eval task needs a language model with its tokenizer; this {type(model).__name__} "
            f"{' and '.join(lacks)}. Score it with a `python:` fitness (docs/fitness.md)"
        )
        raise InvalidInput([Problem(f"fitness {name}", message) for name in tasks])


def _finite(scores: list[ObjectiveScore]) -> list[ObjectiveScore]:
    for score in scores:
        if score.value != score.value or score.value in (float("inf"), float("-inf")):
            raise ScoringFailed(FailureKind.NON_FINITE, f"{score.name} is {score.value}")
    return scores
