"""What racing saved in a run, and how often it was wrong, as far as the audit shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evomerge.store.events import Evaluated, Stopped
from evomerge.store.run_state import RunState


def racing_summary(
    state: RunState, rule: str, many: bool, one_number: Callable[[tuple[float, ...]], float]
) -> dict[str, Any]:
    """The numbers of a racing run.

    Args:
        state: the run.
        rule: its rule.
        many: whether the optimizer sees all objectives.
        one_number: of a fitness ``(M,)``, what candidates are compared by where it does not.

    Returns:
        Candidates stopped; documents scored and documents there would have been without racing, of candidates that did
        not fail (None before anyone was stopped); candidates audited, and of these the false stops: on all documents
        better than the one they were behind, with several objectives better in at least one of them.
    """
    stopped = state.stopped
    complete = [
        event for event in state.outcomes.values() if isinstance(event, Evaluated) and event.candidate is not None
    ]
    fitness = {event.candidate: event.fitness for event in complete}
    total = stopped[0].stop.total if stopped else 0
    audited = [event for event in stopped if event.stop.audit]

    def is_false(event: Stopped) -> bool:
        mine, theirs = event.stop.audit, fitness[event.stop.against]
        return any(a > b for a, b in zip(mine, theirs)) if many else one_number(mine) > one_number(theirs)

    return {
        "rule": rule,
        "stopped": len(stopped),
        "documents_scored": total * len(complete) + sum(event.stop.scored for event in stopped) if total else None,
        "documents_without": total * (len(complete) + len(stopped)) if total else None,
        "audited": len(audited),
        "false_stops": sum(map(is_false, audited)),
    }
