"""Writes everything that happens in a run: log first, then front, projection and the progress view."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from evomerge.experiment.racing_ranks import Scalariser
from evomerge.experiment.replay import with_estimate
from evomerge.experiment.search_loop import Progress, candidate_id, completed_id, no_constraints
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.recipe_yaml import format_recipe
from evomerge.reports.progress import Clock, ProgressView
from evomerge.runtime.executor import Executor, Outcome
from evomerge.search.front import feasible_front, hypervolume
from evomerge.store.estimation_events import Estimated
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Ended, Evaluated, Event, Failed, GenerationClosed, RunStarted, Stopped, Told
from evomerge.store.front_file import Front, FrontEntry, write_best_recipe, write_front
from evomerge.store.live_projection import LiveProjection
from evomerge.store.run_dir import RunDir
from evomerge.terms import Array, Candidate, HopCounts

SEARCH = "search"  # the phase that counts candidates


def first_objective(fitness: tuple[float, ...]) -> tuple[float, ...]:
    """What a fitness is compared by until something else is said."""
    return fitness[:1]


class RunRecorder:
    """The one writer of a run directory.

    Args:
        run_dir: locked by this process.
        log: its event log.
        projection: the Optuna study, None = none is written.
        decode: genotype to recipe.
        started: the run's first event, with objectives and reference point.
        view: what a person sees.
        progress: the search's state, read for the front; may be given later, with ``judge_by``.
        scalarise: fitness ``(M,)`` to one number, for "best".
        constrain: fitness ``(M,)`` to constraint values, zero or less where kept.
    """

    def __init__(
        self,
        run_dir: RunDir,
        log: EventLog,
        projection: LiveProjection | None,
        *,
        decode: Callable[[Array], Recipe],
        started: RunStarted,
        view: ProgressView,
        progress: Progress | None = None,
        scalarise: Scalariser = first_objective,
        constrain: Scalariser = no_constraints,
    ) -> None:
        self.run_dir = run_dir
        self.log = log
        self.scores = run_dir.score_store()
        self.projection = projection
        self.progress = progress or Progress()
        self.decode = decode
        self.scalarise = scalarise
        self.constrain = constrain
        self.objectives = started.objectives
        self.reference_point = started.reference_point
        self.constraints = started.constraints
        self.scales = (1.0,) * len(started.objectives)
        self.outcomes: dict[str, Ended] = {}
        self.view = view
        self.clock = Clock(SEARCH, None, 1)
        self._executor: Executor | None = None
        self._announced = 0
        self._hops = HopCounts()
        self._best: int | None = None
        self._best_value = -math.inf
        self._best_rank = (-math.inf, -math.inf)

    def start_phase(self, name: str, total: int | None, executor: Executor, done: int = 0) -> None:
        """Count the next outcomes for this phase of the run.

        Args:
            name: for the progress view.
            total: outcomes of the phase, None when only time limits it.
            executor: where its jobs run.
            done: outcomes of the phase that earlier sessions recorded.
        """
        self._note_hops()
        self._executor = executor
        self.clock = Clock(name, total, executor.num_workers, done)
        if self._best is not None:
            self.clock.note_best(self._best_value, f"candidate {self._best}")
        self.view.show(self.clock.standing)

    def judge_by(
        self,
        progress: Progress,
        scalarise: Scalariser,
        constrain: Scalariser,
        scales: tuple[float, ...] | None = None,
    ) -> None:
        """Compare candidates like this from now on; what earlier sessions recorded is in ``progress``.

        Args:
            progress: the search's state.
            scalarise: raw fitness ``(M,)`` to one number.
            constrain: raw fitness ``(M,)`` to constraint values.
            scales: ``(M,)``, by what ``scalarise`` divides raw fitness; None = nothing.
        """
        self.progress, self.scalarise, self.constrain = progress, scalarise, constrain
        self.scales = scales or self.scales
        for key, outcome in progress.outcomes.items():
            if outcome.evaluation.ok:
                self._keep_best(key, outcome.evaluation.fitness)

    @property
    def num_failed(self) -> int:
        """Evaluations that failed."""
        return sum(isinstance(event, Failed) for event in self.outcomes.values())

    def asked(self, candidates: list[Candidate]) -> None:
        """New candidates, in one durable write."""
        events: list[Event] = [Asked.of(candidate) for candidate in candidates]
        self.log.append(*events)

    def outcome(self, outcome: Outcome) -> None:
        """A finished job: its per-document scores, then its event, then the projection and the view."""
        event = self._event(outcome)
        self.log.append(event)
        self.outcomes[event.name if isinstance(event, Evaluated) else event.key] = event
        self._hops += outcome.evaluation.hops
        number = candidate_id(outcome.job.key)
        if self.projection is not None:
            asked = None if event.candidate is None else Asked.of(self.progress.candidates[event.candidate])
            self.projection.add(event, asked)
        if event.candidate is not None and outcome.evaluation.ok:
            self._keep_best(event.candidate, outcome.evaluation.fitness)
            if number is None:  # completed after it was estimated
                before = self.progress.outcomes[event.candidate]
                self.progress.outcomes[event.candidate] = with_estimate(outcome, before)
        self._announce_workers()
        busy = 0 if self._executor is None else min(self._executor.num_pending, self._executor.num_workers)
        is_extra = self.clock.standing.phase == SEARCH and number is None  # a baseline for an idle worker
        self.view.show(self.clock.standing if is_extra else self.clock.count(outcome.evaluation, busy=busy))
        if outcome.evaluation.failure is not None:
            failure = outcome.evaluation.failure
            self.view.note(f"{outcome.job.key} failed ({failure.kind.value}): {failure.message}")

    def told(self, candidate_ids: list[int]) -> None:
        """The optimizer learns from these next."""
        self.log.append(Told(tuple(candidate_ids)))

    def generation_closed(self, generation: int) -> None:
        """Checkpoint the front and the best recipe, then log that the generation is closed."""
        self.scores.sync()
        volume = self.checkpoint(generation)
        finished = len(self.progress.outcomes)
        self.log.append(GenerationClosed(generation, time.time(), finished, self._best, volume))

    def checkpoint(self, generation: int) -> float | None:
        """Rewrite front.json and best/recipe.yaml.

        Args:
            generation: the last closed one.

        Returns:
            The hypervolume of the front, None without a reference point.
        """
        outcomes = self.progress.outcomes
        scored = [key for key in sorted(outcomes) if outcomes[key].evaluation.ok]
        if not scored:
            return None
        fitness = np.array([outcomes[key].evaluation.fitness for key in scored])
        missed = np.array([self.violation(outcomes[key].evaluation.fitness) for key in scored])
        members = [key for key, kept in zip(scored, feasible_front(fitness, missed)) if kept]
        members.sort(key=lambda key: -self.scalarise(outcomes[key].evaluation.fitness)[0])
        volume = hypervolume(fitness[missed == 0], self.reference_point) if self.reference_point else None
        entries = tuple(self._front_entry(key) for key in members)
        front = Front(
            self.objectives,
            entries,
            generation,
            len(outcomes),
            self._best,
            volume,
            self.reference_point,
            self.constraints,
        )
        write_front(self.run_dir, front)
        assert self._best is not None
        best = self.progress.candidates[self._best]
        about = (f"candidate {best.id}, generation {best.generation}, search fitness {self._best_value:.6g}",)
        write_best_recipe(self.run_dir, format_recipe(self.decode(best.genotype)), about)
        self.clock.note_front(len(members))
        return volume

    def replayed(self, outcomes: dict[str, Ended]) -> None:
        """Take in what earlier sessions recorded."""
        self.outcomes.update(outcomes)
        self.judge_by(self.progress, self.scalarise, self.constrain)

    @property
    def best(self) -> int | None:
        """Id of the candidate with the best scalar search fitness; of equal ones the earliest asked.

        One that keeps all constraints is better than one that does not.
        """
        return self._best

    def violation(self, fitness: tuple[float, ...]) -> float:
        """By how much a raw fitness misses the constraints in sum; zero where all are kept."""
        return math.fsum(max(0.0, value) for value in self.constrain(fitness))

    def _keep_best(self, number: int, fitness: tuple[float, ...]) -> None:
        value = self.scalarise(fitness)[0]
        rank = (-self.violation(fitness), value)
        earlier = rank == self._best_rank and self._best is not None and number < self._best
        if rank > self._best_rank or earlier:
            self._best, self._best_value, self._best_rank = number, value, rank
            self.clock.note_best(value, f"candidate {number}")

    def _note_hops(self) -> None:
        """Say what the phase that ends saved by beginning routes where earlier ones with the same first hops were."""
        if self._hops.skipped:
            self.view.note(
                f"prefix cache: {self._hops.share_skipped:.0%} of the hops of {self.clock.standing.phase} skipped"
            )
        self._hops = HopCounts()

    def _announce_workers(self) -> None:
        """Say once what each new worker is and what it holds in memory."""
        reports = () if self._executor is None else self._executor.reports
        for report in reports[self._announced :]:
            self.view.note(f"worker {report.worker} ready in {report.start_seconds:.1f} s: {report.memory_plan}")
            for note in report.notes:
                self.view.note(f"worker {report.worker}: {note}")
        self._announced = max(self._announced, len(reports))

    def _front_entry(self, key: int) -> FrontEntry:
        evaluation = self.progress.outcomes[key].evaluation
        candidate = self.progress.candidates[key]
        recipe = format_recipe(self.decode(candidate.genotype))
        missed = self.constrain(evaluation.fitness)
        return FrontEntry(
            key, candidate.recipe_id, candidate.generation, evaluation.fitness, evaluation.metrics, recipe, missed
        )

    def _event(self, outcome: Outcome) -> Ended:
        evaluation, job = outcome.evaluation, outcome.job
        number = candidate_id(job.key)
        about: dict[str, Any] = {
            "worker": outcome.worker, "started": outcome.started, "finished": outcome.finished,
            "attempts": outcome.attempts,
            "recipe_id": "" if number is not None or completed_id(job.key) is not None else job.recipe.recipe_id,
        }  # fmt: skip
        if evaluation.failure is not None:
            failure = evaluation.failure
            return Failed(job.key, number, job.split, failure.kind, failure.message, **about)
        about |= {"known_documents": evaluation.known_documents, "is_recalled": evaluation.is_recalled}
        reference = self.scores.save(job.key, evaluation.document_scores) if evaluation.document_scores else None
        if evaluation.stop is not None:
            assert number is not None, "only candidates are raced"
            return Stopped(job.key, number, evaluation.stop, evaluation.rungs, evaluation.seconds, reference, **about)
        if evaluation.estimate is not None:
            assert number is not None, "only candidates are estimated"
            return Estimated(
                job.key, number, evaluation.estimate, evaluation.metrics, evaluation.seconds, reference, **about
            )
        missed = self.constrain(evaluation.fitness) if job.split == SEARCH else ()
        candidate = completed_id(job.key) if number is None else number
        return Evaluated(
            job.key, candidate, job.split, evaluation.fitness, evaluation.metrics, evaluation.seconds, reference,
            constraints=missed, rungs=evaluation.rungs, **about,
        )  # fmt: skip
