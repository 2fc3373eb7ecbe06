"""What the events of a run add up to. A pure function of the log; resume, front and reports start here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from evomerge.errors import UserError
from evomerge.store.estimation_events import Completing, Estimated, EstimationFitted
from evomerge.store.events import (
    Asked,
    Calibrated,
    Ended,
    Evaluated,
    Event,
    Failed,
    GenerationClosed,
    Resumed,
    RunFinished,
    RunStarted,
    Started,
    Stopped,
    Told,
    WarmStarted,
)
from evomerge.terms import Array


@dataclass(frozen=True)
class CandidateRecord:
    """One asked candidate and what became of it; ``outcome`` is None while it is pending."""

    asked: Asked
    outcome: Ended | None

    @property
    def id(self) -> int:
        """The candidate's id."""
        return self.asked.candidate

    @property
    def fitness(self) -> tuple[float, ...] | None:
        """``(M,)`` maximised, or None when pending, failed, stopped or only estimated."""
        return self.outcome.fitness if isinstance(self.outcome, Evaluated) else None

    @property
    def violation(self) -> float:
        """By how much its constraints are missed in sum; zero where all are kept or there are none."""
        return self.outcome.violation if isinstance(self.outcome, Evaluated) else 0.0


@dataclass(frozen=True)
class RunState:
    """The run as its log tells it.

    Attributes:
        started: the first event, None for an empty log.
        candidates: every asked candidate; position = id.
        outcomes: the outcome of every finished evaluation by key, in order of completion; candidates and others. A
            candidate that was estimated and completed later is there as complete.
        estimated: every estimate by candidate, in order of completion, also of those completed later.
        fits: what estimates were computed from, in order.
        completions: which estimated candidates were to be completed, in order.
        told: candidate ids of each tell, in order.
        generations: the closed generations, in order.
        sessions: one for the start and one for each resume: Unix seconds of its first and last sign of life.
        calibrated: what fitness is measured against, None where nothing is.
        warm_start: what was taken over from another run, or None.
        finished: the last event when the run ended on purpose and was not resumed since.
    """

    started: RunStarted | None
    candidates: tuple[CandidateRecord, ...]
    outcomes: dict[str, Ended]
    told: tuple[tuple[int, ...], ...]
    generations: tuple[GenerationClosed, ...]
    sessions: tuple[tuple[float, float], ...]
    finished: RunFinished | None
    calibrated: Calibrated | None = None
    warm_start: WarmStarted | None = None
    estimated: dict[int, Estimated] = field(default_factory=dict)
    fits: tuple[EstimationFitted, ...] = ()
    completions: tuple[Completing, ...] = ()

    @cached_property
    def pending(self) -> tuple[CandidateRecord, ...]:
        """Candidates asked that have no outcome yet, in ask order."""
        return tuple(record for record in self.candidates if record.outcome is None)

    @cached_property
    def stopped(self) -> tuple[Stopped, ...]:
        """Every candidate that was stopped because it was behind, in order of completion."""
        return tuple(outcome for outcome in self.outcomes.values() if isinstance(outcome, Stopped))

    @cached_property
    def failures(self) -> tuple[Failed, ...]:
        """Every failed evaluation, in order of completion."""
        return tuple(outcome for outcome in self.outcomes.values() if isinstance(outcome, Failed))

    @property
    def num_evaluations(self) -> int:
        """Search evaluations that count against the budget, failed and stopped ones included."""
        return len(self.candidates) - len(self.pending)

    @property
    def elapsed_seconds(self) -> float:
        """Wall time of all sessions together, without the pauses between them."""
        return sum(max(0.0, last - first) for first, last in self.sessions)

    def scored(self) -> tuple[tuple[CandidateRecord, ...], Array]:
        """Candidates that have a fitness, in id order, and their fitness ``(C, M)``."""
        records = tuple(record for record in self.candidates if record.fitness is not None)
        num_objectives = len(self.started.objectives) if self.started else 0
        fitness = np.array([record.fitness for record in records], dtype=np.float64)
        return records, fitness.reshape(len(records), num_objectives)

    def ranked(self, weights: Sequence[float] | None = None, count: int | None = None) -> tuple[CandidateRecord, ...]:
        """Candidates by weighted sum of told fitness, best first; of equal ones the earlier asked first.

        Those that keep all constraints come before those that do not, which are sorted by how much they miss.

        Args:
            weights: ``(M,)``; None takes the objectives' own.
            count: how many to return, None for all.
        """
        records, fitness = self.scored()
        if not records:
            return ()
        assert self.started is not None
        if weights is None:
            weights = [objective.weight for objective in self.started.objectives]
        if len(weights) != fitness.shape[1]:
            raise ValueError(f"{len(weights)} weights for {fitness.shape[1]} objectives")
        if self.calibrated is not None:
            fitness = fitness / np.asarray(self.calibrated.scales)
        values = fitness @ np.asarray(weights, dtype=np.float64)
        missed = np.array([record.violation for record in records], dtype=np.float64)
        order = np.lexsort((-values, missed))
        return tuple(records[index] for index in order[:count])

    def best(self, weights: Sequence[float] | None = None) -> CandidateRecord | None:
        """The first of ``ranked``, None while nothing has a fitness."""
        ranked = self.ranked(weights, count=1)
        return ranked[0] if ranked else None


def read_state(events: Iterable[Event]) -> RunState:
    """Add up the events of one log.

    Raises:
        UserError: the events contradict each other; the message numbers the line.
    """
    builder = _Builder()
    for number, event in enumerate(events, start=1):
        problem = builder.add(event)
        if problem:
            raise UserError(f"events.jsonl: line {number} {problem}. The log is damaged; restore it from a copy.")
    return builder.state()


class _Builder:
    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.asked: list[Asked] = []
        self.outcomes: dict[str, Ended] = {}
        self.by_candidate: dict[int, Ended] = {}
        self.told: list[tuple[int, ...]] = []
        self.told_ids: set[int] = set()
        self.generations: list[GenerationClosed] = []
        self.sessions: list[tuple[float, float]] = []
        self.finished: RunFinished | None = None
        self.calibrated: Calibrated | None = None
        self.warm_start: WarmStarted | None = None
        self.estimated: dict[int, Estimated] = {}
        self.fits: list[EstimationFitted] = []
        self.completions: list[Completing] = []

    def add(self, event: Event) -> str | None:
        """Take one event; a sentence when it does not fit the ones before."""
        if isinstance(event, RunStarted):
            if self.started is not None:
                return "starts the run a second time"
            self.started = event
            self.sessions.append((event.time, event.time))
            return None
        if self.started is None:
            return "comes before the start of the run"
        if isinstance(event, Calibrated):
            return self._calibrate(event)
        if isinstance(event, WarmStarted):
            return self._warm_start(event)
        if isinstance(event, Asked):
            return self._ask(event)
        if isinstance(event, Ended):
            return self._finish(event)
        if isinstance(event, Told):
            return self._tell(event)
        if isinstance(event, Resumed):
            self.finished = None
            self.sessions.append((event.time, event.time))
            return None
        self._alive(event.time)
        if isinstance(event, GenerationClosed):
            self.generations.append(event)
        elif isinstance(event, RunFinished):
            self.finished = event
        elif isinstance(event, EstimationFitted):
            self.fits.append(event)
        elif isinstance(event, Completing):
            self.completions.append(event)
        else:
            assert isinstance(event, Started)
        return None

    def _calibrate(self, event: Calibrated) -> str | None:
        if self.calibrated is not None or self.asked:
            return "fixes what fitness is measured against a second time, or after candidates were asked"
        self.calibrated = event
        return None

    def _warm_start(self, event: WarmStarted) -> str | None:
        assert self.started is not None
        if self.asked or self.warm_start is not None:
            return "takes over another run's evaluations too late"
        genes, objectives = len(self.started.genes), len(self.started.objectives)
        lengths = [*((len(row), genes) for row in event.genotypes), *((len(row), objectives) for row in event.fitness)]
        if len(event.genotypes) != len(event.fitness) or any(length != right for length, right in lengths):
            return "takes over evaluations of other genes or objectives"
        self.warm_start = event
        return None

    def _ask(self, event: Asked) -> str | None:
        if event.candidate != len(self.asked):
            return f"asks candidate {event.candidate}, expected {len(self.asked)}"
        self.asked.append(event)
        return None

    def _finish(self, event: Ended) -> str | None:
        assert self.started is not None
        if event.key in self.outcomes:
            return f"gives a second outcome for {event.key!r}"
        if isinstance(event, Evaluated) and len(event.fitness) != len(self.started.objectives):
            return f"gives {event.key!r} {len(event.fitness)} values for {len(self.started.objectives)} objectives"
        if event.candidate is not None:
            if not 0 <= event.candidate < len(self.asked):
                return f"gives an outcome for candidate {event.candidate}, which was never asked"
            before = self.by_candidate.get(event.candidate)
            if before is not None and not (isinstance(before, Estimated) and isinstance(event, Evaluated)):
                return f"gives a second outcome for candidate {event.candidate}"
            self.by_candidate[event.candidate] = event
        if isinstance(event, Estimated):
            self.estimated[event.candidate] = event
        # One that is completed comes last: its place is the time when it got a fitness.
        self.outcomes.pop(event.name if isinstance(event, Evaluated) else event.key, None)
        self.outcomes[event.name if isinstance(event, Evaluated) else event.key] = event
        self._alive(event.finished)
        return None

    def _tell(self, event: Told) -> str | None:
        for candidate in event.candidates:
            if candidate not in self.by_candidate:
                return f"tells candidate {candidate}, which has no outcome"
            if candidate in self.told_ids:
                return f"tells candidate {candidate} a second time"
            self.told_ids.add(candidate)
        self.told.append(event.candidates)
        return None

    def _alive(self, time: float) -> None:
        first, last = self.sessions[-1]
        self.sessions[-1] = (first, max(last, time))

    def state(self) -> RunState:
        return RunState(
            started=self.started,
            candidates=tuple(CandidateRecord(asked, self.by_candidate.get(asked.candidate)) for asked in self.asked),
            outcomes=self.outcomes,
            told=tuple(self.told),
            generations=tuple(self.generations),
            sessions=tuple(self.sessions),
            finished=self.finished,
            calibrated=self.calibrated,
            warm_start=self.warm_start,
            estimated=self.estimated,
            fits=tuple(self.fits),
            completions=tuple(self.completions),
        )
