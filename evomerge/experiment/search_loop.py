"""The search itself: ask, submit, record, tell, until the budget is spent. Knows no files and no models.

Two modes. Generational: a whole population is asked, all of it evaluated, then told in ask order; the sequence of
candidates depends on nothing but the seed. Steady state: workers are kept busy; results are told as soon as the
optimizer accepts a batch, and the log of tell batches makes the sequence replayable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from evomerge.evaluation.racing import Race
from evomerge.experiment.racing_ranks import Scalariser, told_results
from evomerge.recipes.recipe import Recipe, Route
from evomerge.runtime.executor import Executor, Job, Outcome
from evomerge.search.base import Optimizer, Proposal, SearchExhausted
from evomerge.terms import Array, Candidate, DocumentChoice, derive_seed


def no_constraints(fitness: tuple[float, ...]) -> tuple[float, ...]:
    """What a fitness misses of no constraints at all."""
    return ()


class Decoder(Protocol):
    """The part of a search space the loop needs."""

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a genotype."""
        ...


@dataclass(frozen=True)
class RaceEntry:
    """What a new candidate has to keep up with; see `Candidate`."""

    against: tuple[int, ...] = ()
    thresholds: tuple[float | None, ...] = ()


class Racer(Protocol):
    """Decides who races against whom; see `evomerge.experiment.racing`."""

    def entry(self, progress: Progress) -> RaceEntry:
        """For candidates that are asked now."""
        ...

    def race(self, candidate: Candidate) -> Race | None:
        """For a candidate's job."""
        ...


class Estimator(Protocol):
    """Decides which documents candidates are scored on; see `evomerge.experiment.estimation`."""

    def documents(self, candidate: Candidate) -> DocumentChoice | None:
        """For a candidate's job; None = all."""
        ...

    def waiting(self, progress: Progress) -> list[int] | None:
        """Between generations, whom to complete; empty = only the fit is due, None = nothing."""
        ...

    def rest(self, number: int) -> DocumentChoice:
        """What an estimated candidate lacks."""
        ...

    def refit(self, progress: Progress) -> None:
        """Fit anew; everything due is complete."""
        ...


class Recorder(Protocol):
    """Where the loop writes what happened, before it acts on it."""

    def asked(self, candidates: list[Candidate]) -> None:
        """New candidates, durable when this returns."""

    def outcome(self, outcome: Outcome) -> None:
        """A finished job, durable when this returns."""

    def told(self, candidate_ids: list[int]) -> None:
        """The optimizer learns from these next, in this order."""

    def generation_closed(self, generation: int) -> None:
        """A generation is complete: checkpoint front and best."""


@dataclass
class Progress:
    """What is known of the search so far; rebuilt from the log on resume.

    Attributes:
        candidates: by id, in ask order.
        outcomes: by candidate id, for those evaluated or failed.
        told: ids the optimizer has learned from.
        closed: number of closed generations.
        elapsed_seconds: wall time of earlier sessions of this run.
        generations: candidate ids of each generation.
    """

    candidates: dict[int, Candidate] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)
    closed: int = 0
    elapsed_seconds: float = 0.0
    generations: list[list[int]] = field(default_factory=list)

    def add(self, candidate: Candidate) -> None:
        """Take in a new candidate."""
        self.candidates[candidate.id] = candidate
        while len(self.generations) <= candidate.generation:
            self.generations.append([])
        self.generations[candidate.generation].append(candidate.id)

    def next_generation(self, population_size: int) -> int:
        """The generation the next candidate belongs to: the last one until it is full."""
        full = not self.generations or len(self.generations[-1]) >= population_size
        return len(self.generations) if full else len(self.generations) - 1

    @property
    def unfinished(self) -> list[Candidate]:
        """Candidates asked but without an outcome, in ask order."""
        return [candidate for key, candidate in self.candidates.items() if key not in self.outcomes]

    @property
    def untold(self) -> list[int]:
        """Ids with an outcome that the optimizer has not seen, in ask order."""
        return [key for key in self.candidates if key in self.outcomes and key not in self.told]


@dataclass(frozen=True)
class Limits:
    """When to stop: evaluations asked in total, wall seconds over all sessions."""

    evaluations: int | None
    wall_seconds: float | None


class SearchLoop:
    """Runs one search to its end or to an interruption.

    Args:
        optimizer: already replayed up to ``progress``.
        space: decodes genotypes.
        executor: where jobs run.
        recorder: written before anything is acted on.
        progress: the state to go on from; updated in place.
        limits: budget.
        seed: run seed, from which every candidate's seed derives.
        scalarise: fitness ``(M,)`` to what the optimizer is told.
        constrain: fitness ``(M,)`` to constraint values, zero or less where kept.
        stop_requested: polled; True ends the loop at once.
        idle_jobs: extra jobs (baselines) that fill workers with nothing else to do.
        racer: stops candidates that are behind; None = nobody is stopped.
        estimator: has candidates scored on some documents; None = on all.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        space: Decoder,
        executor: Executor,
        recorder: Recorder,
        *,
        progress: Progress,
        limits: Limits,
        seed: int,
        scalarise: Scalariser,
        stop_requested: Callable[[], bool],
        idle_jobs: Iterator[Job],
        constrain: Scalariser = no_constraints,
        racer: Racer | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.space = space
        self.executor = executor
        self.recorder = recorder
        self.progress = progress
        self.limits = limits
        self.seed = seed
        self.scalarise = scalarise
        self.stop_requested = stop_requested
        self.idle_jobs = idle_jobs
        self.constrain = constrain
        self.racer = racer
        self.estimator = estimator
        self._completing: set[int] = set()
        self._recipes: dict[int, Recipe] = {}
        self._started = time.monotonic()
        self._exhausted = False

    def run(self, mode: str) -> str:
        """Search until a limit is reached.

        Returns:
            Why it ended: ``evaluations``, ``wall_time``, ``exhausted``, ``interrupted`` or the optimizer's own reason.
        """
        self._submit(self.progress.unfinished)
        step = self._steady_step if mode == "steady_state" else self._generation_step
        while True:
            if self.stop_requested():
                return "interrupted"
            reason = self._end_reason()
            if reason and not self.progress.unfinished:
                self._tell_complete_batches()
                self._close_generations(final=True)
                return reason
            if reason is None and self._estimation_step():
                continue
            step(may_ask=reason is None)

    def _end_reason(self) -> str | None:
        asked = len(self.progress.candidates)
        if self.limits.evaluations is not None and asked >= self.limits.evaluations:
            return "evaluations"
        elapsed = self.progress.elapsed_seconds + time.monotonic() - self._started
        if self.limits.wall_seconds is not None and elapsed >= self.limits.wall_seconds:
            return "wall_time"
        return "exhausted" if self._exhausted else self.optimizer.stop_reason()

    def _generation_step(self, may_ask: bool) -> None:
        """Fill the open generation, or wait for it; tell and close it when it is complete."""
        population = self.optimizer.population_size
        open_ids = [key for key in self.progress.candidates if key not in self.progress.told]
        if may_ask and len(open_ids) < population:
            self._ask(population - len(open_ids))
        if self.progress.unfinished:
            self._collect()
        if not self.progress.unfinished:
            self._tell_complete_batches()
            self._close_generations()

    def _estimation_step(self) -> bool:
        """Complete who is due between generations, then fit; whether there was anything to do."""
        if self.estimator is None or len(self.progress.told) < len(self.progress.candidates):
            return False
        waiting = self.estimator.waiting(self.progress)
        if waiting is None:
            return False
        if not waiting:
            self.estimator.refit(self.progress)
            return True
        for number in waiting:
            if number not in self._completing:
                self._completing.add(number)
                self.executor.submit(full_job(self.progress, self.space, self.estimator, self.seed, number))
        self._collect()
        return True

    def _steady_step(self, may_ask: bool) -> None:
        """Ask while workers are free; tell whatever batches are complete."""
        free = self.executor.num_workers - self.executor.num_pending
        if may_ask and free > 0:
            self._ask(free)
        self._collect()
        self._tell_complete_batches()
        self._close_generations()

    def _ask(self, count: int) -> None:
        if self.limits.evaluations is not None:
            count = min(count, self.limits.evaluations - len(self.progress.candidates))
        fresh: list[Candidate] = []
        entry = RaceEntry() if self.racer is None else self.racer.entry(self.progress)
        for _ in range(count):
            try:
                proposal = self.optimizer.ask()
            except SearchExhausted:
                self._exhausted = True
                break
            fresh.append(self._candidate(proposal, entry))
            self.progress.add(fresh[-1])
        if fresh:
            self.recorder.asked(fresh)
        self._submit(fresh)

    def _candidate(self, proposal: Proposal, entry: RaceEntry) -> Candidate:
        recipe = self.space.decode(proposal.genotype)
        self._recipes[proposal.index] = recipe
        generation = self.progress.next_generation(self.optimizer.population_size)
        genotype = np.array(proposal.genotype, dtype=np.float64)
        return Candidate(
            proposal.index, genotype, recipe.recipe_id, generation, proposal.parent_indices, proposal.note,
            entry.against, entry.thresholds,
        )  # fmt: skip

    def _submit(self, candidates: Sequence[Candidate]) -> None:
        """Hand candidates to the workers; routes that begin alike one after the other, so that they share that work."""
        jobs = []
        for candidate in candidates:
            recipe = self._recipes.pop(candidate.id, None) or self.space.decode(candidate.genotype)
            seed = derive_seed(self.seed, "candidate", candidate.id)
            race = None if self.racer is None else self.racer.race(candidate)
            documents = None if self.estimator is None else self.estimator.documents(candidate)
            jobs.append(Job(candidate_key(candidate.id), recipe, "search", seed, race, documents))
        for job in sorted(jobs, key=_route_order):
            self.executor.submit(job)

    def _collect(self) -> None:
        """Take what has arrived within a second; give idle workers the extra jobs."""
        while self.executor.num_pending < self.executor.num_workers:
            job = next(self.idle_jobs, None)
            if job is None:
                break
            self.executor.submit(job)
        for outcome in self.executor.wait(1.0):
            self.recorder.outcome(outcome)
            key = candidate_id(outcome.job.key)
            if key is not None:
                self.progress.outcomes[key] = outcome

    def _tell_complete_batches(self) -> None:
        while untold := self.progress.untold:
            # Read anew for each batch: a restart may change it.
            size = self.optimizer.tell_size
            if len(untold) < size:
                return
            self._tell(untold if size == 1 else untold[:size])

    def _tell(self, ids: list[int]) -> None:
        """Record a batch as told, then let the optimizer learn from it."""
        self.recorder.told(ids)
        tell(self.optimizer, self.progress, ids, self.scalarise, self.constrain)

    def _close_generations(self, final: bool = False) -> None:
        """Checkpoint every generation that is full (or the last one of the run) and finished."""
        generations = self.progress.generations
        while self.progress.closed < len(generations):
            members = generations[self.progress.closed]
            is_last = self.progress.closed == len(generations) - 1
            full = not is_last or len(members) >= self.optimizer.population_size
            if not (full or final) or any(key not in self.progress.outcomes for key in members):
                return
            self.recorder.generation_closed(self.progress.closed)
            self.progress.closed += 1


def tell(
    optimizer: Optimizer,
    progress: Progress,
    ids: Sequence[int],
    scalarise: Scalariser,
    constrain: Scalariser = no_constraints,
) -> None:
    """Let the optimizer learn from a batch of finished candidates, in this order."""
    evaluations = {key: outcome.evaluation for key, outcome in progress.outcomes.items()}
    optimizer.tell(told_results(ids, progress.candidates, evaluations, scalarise, constrain))
    progress.told.update(ids)


def _route_order(job: Job) -> tuple[tuple[str, int, float], ...]:
    """Sorts routes by their hops; all other recipes are equal, and stay as they are."""
    route = job.recipe.model
    if not isinstance(route, Route):
        return ()
    return ((route.ends, 0, 0.0), *((hop.model, hop.block, hop.scale) for hop in route.hops))


def full_job(progress: Progress, space: Decoder, estimator: Estimator, seed: int, number: int) -> Job:
    """Scores the documents that an estimated candidate lacks."""
    recipe = space.decode(progress.candidates[number].genotype)
    candidate_seed = derive_seed(seed, "candidate", number)
    return Job(full_key(number), recipe, "search", candidate_seed, documents=estimator.rest(number))


def candidate_key(candidate_id: int) -> str:
    """Job key of a candidate's search evaluation."""
    return f"c{candidate_id}"


def full_key(candidate_id: int) -> str:
    """Job key of the documents that an estimated candidate lacked."""
    return f"full:{candidate_key(candidate_id)}"


def completed_id(key: str) -> int | None:
    """Candidate of a job key of `full_key`, None for other jobs."""
    return candidate_id(key.removeprefix("full:")) if key.startswith("full:") else None


def candidate_id(key: str) -> int | None:
    """Candidate of a job key, None for other jobs."""
    return int(key[1:]) if key[:1] == "c" and key[1:].isdigit() else None
