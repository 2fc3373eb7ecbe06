"""From a log back to a running search: the optimizer sees the same asks and tells again, in the same order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from evomerge.experiment.racing_ranks import Scalariser
from evomerge.experiment.search_loop import Progress, candidate_key, no_constraints, tell
from evomerge.recipes.recipe import Recipe
from evomerge.runtime.executor import Job, Outcome
from evomerge.search.base import Optimizer
from evomerge.store.estimation_events import Estimated
from evomerge.store.events import Asked, Ended, Evaluated, Event, GenerationClosed, Stopped, Told, WarmStarted
from evomerge.terms import Array, Evaluation, Failure

LOG = logging.getLogger(__name__)


def replay(
    events: Sequence[Event],
    optimizer: Optimizer,
    decode: Callable[[Array], Recipe],
    scalarise: Scalariser,
    constrain: Scalariser = no_constraints,
) -> tuple[Progress, bool]:
    """Bring a fresh optimizer to where the log ends.

    On other hardware the optimizer may compute other bits; then what was really evaluated is told, and the run goes on
    from there.

    Args:
        events: the whole log.
        optimizer: freshly built as for the first session.
        decode: genotype to recipe.
        scalarise: what the optimizer is told of a fitness.
        constrain: its constraint values.

    Returns:
        The search's progress, and whether the optimizer proposed exactly what the log holds.
    """
    progress = Progress()
    exact = True
    for event in events:
        if isinstance(event, Asked):
            proposal = optimizer.ask()
            candidate = event.as_candidate()
            if not np.array_equal(proposal.genotype, candidate.genotype):
                exact = False
            progress.add(candidate)
        elif isinstance(event, Ended) and event.candidate is not None:
            candidate = progress.candidates[event.candidate]
            outcome = outcome_of(event, decode(candidate.genotype))
            progress.outcomes[candidate.id] = with_estimate(outcome, progress.outcomes.get(candidate.id))
        elif isinstance(event, WarmStarted):
            know(optimizer, event, scalarise)
        elif isinstance(event, Told):
            tell(optimizer, progress, event.candidates, scalarise, constrain)
        elif isinstance(event, GenerationClosed):
            progress.closed = event.generation + 1
    if not exact:
        LOG.warning("the optimizer computes other bits here than where the run began; going on with what was evaluated")
    return progress, exact


def know(optimizer: Optimizer, event: WarmStarted, scalarise: Scalariser) -> None:
    """Tell a fresh optimizer the evaluations taken over from another run."""
    genotypes = np.array(event.genotypes, dtype=np.float64)
    optimizer.know(genotypes, np.array([scalarise(row) for row in event.fitness], dtype=np.float64))


def with_estimate(complete: Outcome, before: Outcome | None) -> Outcome:
    """A completed candidate's outcome; what its optimizer is told stays the estimate it had."""
    if before is None:
        return complete
    return replace(complete, evaluation=replace(complete.evaluation, estimate=before.evaluation.estimate))


def outcome_of(event: Ended, recipe: Recipe) -> Outcome:
    """The outcome an event recorded, without its per-document scores."""
    if isinstance(event, Evaluated):
        evaluation = Evaluation(event.fitness, (), event.metrics, event.seconds, rungs=event.rungs)
    elif isinstance(event, Stopped):
        evaluation = Evaluation(seconds=event.seconds, rungs=event.rungs, stop=event.stop)
    elif isinstance(event, Estimated):
        evaluation = Evaluation(seconds=event.seconds, estimate=event.estimate)
    else:
        evaluation = Evaluation(failure=Failure(event.kind, event.message))
    key = event.key if event.candidate is None else candidate_key(event.candidate)
    job = Job(key, recipe)
    return Outcome(job, evaluation, event.worker, event.attempts, event.started, event.finished)
