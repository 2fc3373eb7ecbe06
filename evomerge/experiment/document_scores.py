"""Telling an optimizer the scores of single documents: they are read from where the run keeps them, also on replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evomerge.errors import UserError
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.search_loop import candidate_key
from evomerge.search.base import Optimizer, Proposal, Result
from evomerge.search.catalogue import SPECS
from evomerge.store.events import Evaluated
from evomerge.terms import Array


def with_document_scores(name: str, optimizer: Optimizer, recorder: RunRecorder) -> Optimizer:
    """The optimizer, with ``Result.document_scores`` added to what it is told where it uses them.

    Args:
        name: of the optimizer.
        optimizer: freshly built.
        recorder: knows the run's outcomes, those of earlier sessions among them.
    """
    return _ToldDocumentScores(optimizer, recorder) if SPECS[name].uses_document_scores else optimizer


class _ToldDocumentScores(Optimizer):
    """An optimizer whose results get the documents' scores of all objectives, one objective after the other."""

    def __init__(self, inner: Optimizer, recorder: RunRecorder) -> None:
        super().__init__(inner.problem)
        self._inner, self._recorder = inner, recorder

    @property
    def population_size(self) -> int:
        """The optimizer's."""
        return self._inner.population_size

    @property
    def tell_size(self) -> int:
        """The optimizer's."""
        return self._inner.tell_size

    def ask(self) -> Proposal:
        """The optimizer's next proposal."""
        self.num_asked += 1
        return self._inner.ask()

    def tell(self, results: Sequence[Result]) -> None:
        """Pass results on.

        Raises:
            UserError: a fitness has no scores of single documents, or they are negative.
        """
        self._inner.tell(
            [
                result if result.fitness is None else replace(result, document_scores=self._scores(result.index))
                for result in results
            ]
        )

    def stop_reason(self) -> str | None:
        """The optimizer's."""
        return self._inner.stop_reason()

    def _scores(self, number: int) -> Array:
        key = candidate_key(number)
        event = self._recorder.outcomes[key]
        assert isinstance(event, Evaluated)
        tables = () if event.scores_ref is None else self._recorder.scores.load(event.scores_ref)
        by_objective = {table.objective: table.values for table in tables}
        rows = []
        for objective in self._recorder.objectives:
            values = by_objective.get(objective.name)
            if values is None:
                raise UserError(
                    f"fitness {objective.name}: it gave candidate {number} one score and none for single documents, "
                    "which the optimizer compares models by. Let its function return one number for each document."
                )
            if not np.all(np.isfinite(values)) or np.any(values < 0):
                raise UserError(
                    f"fitness {objective.name}: scores of single documents must be finite and 0 or more for this "
                    f"optimizer, candidate {number} has {float(np.nanmin(values)):g}. Use a metric such as accuracy."
                )
            rows.append(np.asarray(values, dtype=np.float64))
        return np.concatenate(rows)
