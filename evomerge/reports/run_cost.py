"""What a run cost, by evaluation and by worker, and what failed in it. From the event log's state only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.reports.run_history import run_clock
from evomerge.store.estimation_events import Estimated
from evomerge.store.events import Evaluated, Stopped
from evomerge.store.run_state import RunState
from evomerge.terms import Seconds


@dataclass(frozen=True)
class EvaluationCost:
    """Seconds of one scored candidate; ``evaluations`` counts finished candidates, it among them."""

    candidate: int
    evaluations: int
    seconds: Seconds


@dataclass(frozen=True)
class PhaseCost:
    """Seconds of all evaluations of one kind, in sum."""

    name: str
    count: int
    seconds: Seconds


@dataclass(frozen=True)
class RunCost:
    """What a run cost.

    Attributes:
        candidates: in order of completion.
        phases: search, baselines, validation, held-out; what there was of them.
        wall_seconds: of all sessions.
        workers: how many different workers answered.
        occupied_seconds: worker seconds between the start and the end of evaluations, failed ones included.
        recalled: evaluations that came out of the evaluation cache; they are in none of the above.
    """

    candidates: tuple[EvaluationCost, ...]
    phases: tuple[PhaseCost, ...]
    wall_seconds: float
    workers: int
    occupied_seconds: float
    recalled: int = 0

    @property
    def idle_seconds(self) -> float:
        """Worker seconds outside evaluations: start-up, waiting for the rest of a generation, the driver's work."""
        return max(0.0, self.workers * self.wall_seconds - self.occupied_seconds)


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one kind in one phase: how often, what the first one said, and whose they were."""

    kind: str
    phase: str
    count: int
    message: str
    keys: tuple[str, ...]


def read_cost(state: RunState) -> RunCost:
    """Add up the seconds of a run's evaluations."""
    clock = run_clock(state.sessions) if state.sessions else None
    candidates: list[EvaluationCost] = []
    sums: dict[str, list[Seconds]] = {}
    workers: set[int] = set()
    occupied, finished, recalled = 0.0, 0, 0
    for key, outcome in state.outcomes.items():
        finished += outcome.candidate is not None
        if clock is not None and outcome.finished > 0:
            workers.add(outcome.worker)
            occupied += max(0.0, clock(outcome.finished) - clock(outcome.started))
        if not isinstance(outcome, Evaluated | Stopped | Estimated):
            continue
        if outcome.is_recalled:
            recalled += 1
            continue
        if outcome.candidate is not None:
            candidates.append(EvaluationCost(outcome.candidate, finished, outcome.seconds))
        sums.setdefault(phase_of(key, outcome.split), []).append(outcome.seconds)
    phases = tuple(PhaseCost(name, len(found), total(found)) for name, found in sums.items())
    return RunCost(tuple(candidates), phases, state.elapsed_seconds, len(workers), occupied, recalled)


def total(seconds: Sequence[Seconds]) -> Seconds:
    """The sum, part by part."""
    return Seconds(*(sum(getattr(item, part) for item in seconds) for part in ("merge", "forward", "metric", "wait")))


def phase_of(key: str, split: str) -> str:
    """To which part of a run an evaluation belongs: ``search``, ``baselines``, ``validation`` or ``held-out``."""
    if split != "search":
        return split.replace("_", "-")
    return "baselines" if key.startswith("baseline:") else "search"


def read_failures(state: RunState) -> tuple[FailureGroup, ...]:
    """The failures of a run by kind and phase, the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for failure in state.failures:
        place = (failure.kind.value, phase_of(failure.key, failure.split))
        groups.setdefault(place, []).append((failure.key, failure.message))
    found = [
        FailureGroup(kind, phase, len(items), items[0][1], tuple(key for key, _ in items))
        for (kind, phase), items in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: -group.count))
