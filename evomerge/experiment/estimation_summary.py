"""What estimating saved in a run, and how right the estimates were, as far as completed candidates show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from evomerge.store.events import Evaluated
from evomerge.store.run_state import RunState


def estimation_summary(
    state: RunState, estimator: str, one_number: Callable[[tuple[float, ...]], float]
) -> dict[str, Any]:
    """The numbers of an estimating run.

    Args:
        state: the run.
        estimator: its estimator.
        one_number: of a fitness ``(M,)``, what candidates are compared by.

    Returns:
        Candidates estimated and completed later; documents scored of all candidates that did not fail, those there
        would have been without, and their mean per candidate (None before anyone was estimated); fits, widenings, the
        documents in force at the end. ``errors``: estimate against full score of completed candidates, for those drawn
        without looking at estimates (``sampled``) and for the best by estimate (``leaders``), which are too high on
        average: number, root mean square and mean of the difference in the one number.
    """
    complete = {
        event.candidate: event
        for event in state.outcomes.values()
        if isinstance(event, Evaluated) and event.candidate is not None
    }
    completed = [number for number in state.estimated if number in complete]
    estimates = {number: event.estimate for number, event in state.estimated.items()}
    total = next((estimate.total for estimate in estimates.values()), None)
    scored = sum(one.documents for number, one in estimates.items() if number not in complete)
    count = len(complete) + len(estimates) - len(completed)
    sampled = {number for completing in state.completions for number in completing.sampled}
    leaders = {number for completing in state.completions for number in completing.leaders}

    def errors(chosen: set[int]) -> dict[str, Any]:
        found = [
            one_number(estimates[number].fitness) - one_number(complete[number].fitness)
            for number in completed
            if number in chosen
        ]
        size = math.sqrt(math.fsum(error**2 for error in found) / len(found)) if found else None
        return {"candidates": len(found), "rmse": size, "bias": math.fsum(found) / len(found) if found else None}

    return {
        "estimator": estimator,
        "estimated": len(estimates),
        "completed": len(completed),
        "documents_scored": None if total is None else total * len(complete) + scored,
        "documents_without": None if total is None else total * count,
        "documents_per_candidate": None if total is None else (total * len(complete) + scored) / count,
        "fits": len(state.fits),
        "widenings": sum(fit.is_widened for fit in state.fits),
        "subset": state.fits[-1].num_documents if state.fits else None,
        "is_off": bool(state.fits) and state.fits[-1].is_off,
        "errors": {"sampled": errors(sampled), "leaders": errors(leaders)},
    }
