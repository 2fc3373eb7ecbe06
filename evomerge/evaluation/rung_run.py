"""One candidate's run through the rungs: score a rung, look whether it is behind, go on or stop.

Whoever scores the rungs (an evaluator, a recorded landscape) only hands over numbers, so all of them decide alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.evaluation.racing import Race, Verdict, running_score, verdict
from evomerge.evaluation.rungs import RungLayout
from evomerge.terms import Array, Objective, Rung, Stop

logger = logging.getLogger(__name__)

ScoreRung = Callable[[int], Sequence[Array]]


@dataclass(frozen=True)
class RungsRun:
    """What came out.

    Attributes:
        last: the last rung scored.
        is_complete: whether all documents were scored, which an audited candidate's are although it was stopped.
        rungs: the scores on the way, the last rung of the layout left out.
        stop: set where the candidate was behind.
    """

    last: int = 0
    is_complete: bool = True
    rungs: tuple[Rung, ...] = ()
    stop: Stop | None = None


def run_rungs(score: ScoreRung, layout: RungLayout, objectives: Sequence[Objective], race: Race | None) -> RungsRun:
    """Score rung after rung until the candidate is behind or all documents are scored.

    Args:
        score: the values of a rung: for each objective those of the rung's documents in the rung's order, or ``(1,)``,
            the same at every rung, where it is scored whole. Called with 0, 1, ...
        layout: the run's rungs.
        objectives: M.
        race: what the candidate has to keep up with; None = score all.
    """
    columns = [np.full(1 if found is None else len(found.strata), np.nan) for found in layout.objectives]
    rungs: list[Rung] = []
    stop: Stop | None = None
    for rung in range(layout.num_rungs):
        try:
            values = score(rung)
        except Exception:
            if stop is None:
                raise
            # It was told to stop before; that the audit failed afterwards must not change what it is told as.
            logger.warning("a stopped candidate failed while it was audited", exc_info=True)
            return RungsRun(rung - 1, False, tuple(rungs), stop)
        for column, found, new in zip(columns, layout.objectives, values, strict=True):
            column[slice(None) if found is None else found.rungs[rung]] = new
        if rung == layout.num_rungs - 1:
            break
        if stop is None:
            rungs += _on_the_way(layout, objectives, columns, rung)
            behind = None if race is None else verdict(race, layout, columns, rung)
            stop = None if behind is None else _stop(behind, layout, rung)
        if stop is not None and not (race and race.audit):
            return RungsRun(rung, False, tuple(rungs), stop)
    return RungsRun(layout.num_rungs - 1, True, tuple(rungs), stop)


def _on_the_way(layout: RungLayout, objectives: Sequence[Objective], columns: Sequence[Array], rung: int) -> list[Rung]:
    """The scores so far, none where a document has no number."""
    scores = [running_score(found, column, rung) for found, column in zip(layout.objectives, columns, strict=True)]
    if not np.isfinite(scores).all():
        return []
    natural = zip(objectives, scores, strict=True)
    fitness = tuple((score if objective.higher_is_better else -score) + 0.0 for objective, score in natural)
    return [Rung(layout.documents[rung], fitness)]


def _stop(found: Verdict, layout: RungLayout, rung: int) -> Stop:
    return Stop(layout.documents[rung], layout.documents[-1], found.against, found.difference, found.upper)
