"""The honest finish: baselines beside the search, the winner chosen on validation, reported on held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from evomerge.experiment.baselines import baseline_key, experiment_baselines
from evomerge.experiment.estimation import Estimation
from evomerge.experiment.load import Experiment
from evomerge.experiment.objectives import Judge
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.search_loop import candidate_key, full_job
from evomerge.experiment.split_scales import anchor_models, split_scales
from evomerge.experiment.summary import build_summary, write_summary
from evomerge.recipes.recipe import Recipe
from evomerge.runtime.executor import Executor, Job
from evomerge.search.front import feasible_front, largest_subset
from evomerge.store.events import Evaluated
from evomerge.terms import SplitName, derive_seed


class Interrupted(Exception):
    """A person asked to stop."""


def baseline_jobs(loaded: Experiment, done: Mapping[str, object]) -> Iterator[Job]:
    """Baselines on the search documents that have no outcome yet."""
    for name in _baselines(loaded):
        if baseline_key(name, "search") not in done:
            yield baseline_job(loaded, name)


def baseline_job(loaded: Experiment, name: str, split: SplitName = "search") -> Job:
    """A baseline on the documents of a split."""
    seed = derive_seed(loaded.config.seed, "baseline", name)
    return Job(baseline_key(name, split), experiment_baselines(loaded)[name], split, seed)


def score_jobs(
    phase: str,
    jobs: Iterable[Job],
    recorder: RunRecorder,
    executor: Executor,
    stop_requested: Callable[[], bool],
) -> None:
    """Run the jobs that have no outcome yet.

    Raises:
        Interrupted: a person asked to stop.
    """
    waiting = {job.key: job for job in jobs if job.key not in recorder.outcomes}
    pending = executor.num_pending
    if not waiting and not pending:
        return
    recorder.start_phase(phase, len(waiting) + pending, executor)
    for job in waiting.values():
        executor.submit(job)
    while executor.num_pending:
        if stop_requested():
            raise Interrupted
        for outcome in executor.wait(1.0):
            recorder.outcome(outcome)


def _baselines(loaded: Experiment) -> dict[str, Recipe]:
    return experiment_baselines(loaded) if loaded.config.finish.baselines else {}


class Finish:
    """Scores what is left to score after the search and writes the summary.

    Args:
        loaded: the experiment.
        recorder: holds every outcome so far; records the new ones.
        executor: where jobs run.
        stop_requested: polled.
        idle_jobs: baselines that the search has not started.
        judge: makes one number of several objectives.
        estimation: where candidates were estimated; those with the best estimates are completed first.
    """

    def __init__(
        self,
        loaded: Experiment,
        recorder: RunRecorder,
        executor: Executor,
        stop_requested: Callable[[], bool],
        idle_jobs: Iterator[Job],
        judge: Judge,
        *,
        estimation: Estimation | None = None,
    ) -> None:
        self.loaded = loaded
        self.recorder = recorder
        self.executor = executor
        self.stop_requested = stop_requested
        self.idle_jobs = idle_jobs
        self.judge = judge
        self.estimation = estimation
        self.baselines = _baselines(loaded)

    def run(self, reason: str) -> dict[str, Any] | None:
        """Baselines on search documents, finalists on validation, winner and baselines on held-out documents.

        Args:
            reason: why the search ended.

        Returns:
            What summary.json holds; None when interrupted, then a resume goes on here.
        """
        anchors = anchor_models(self.loaded, self.loaded.rules.normalise)
        try:
            self._score("baselines", self.idle_jobs)
            self._complete_estimated()
            finalists = self._finalists()
            if self._has("validation") and len(finalists) > 1:
                jobs = [baseline_job(self.loaded, name, "validation") for name in anchors]
                self._score("validation", [*jobs, *(self._job("validation", number) for number in finalists)])
            winner = self._winner(finalists)
            if self._has("held_out") and self.loaded.config.finish.held_out:
                reported = finalists if self._many_objectives else [winner] if winner is not None else []
                jobs = [self._job("held_out", number) for number in reported]
                names = dict.fromkeys([*self.baselines, *anchors])
                self._score("held-out", [*jobs, *(baseline_job(self.loaded, name, "held_out") for name in names)])
        except Interrupted:
            return None
        summary = build_summary(self.loaded, self.recorder, self.judge, list(self.baselines), finalists, winner, reason)
        write_summary(self.recorder.run_dir, summary)
        return summary

    @property
    def _many_objectives(self) -> bool:
        return self.loaded.problem().num_objectives > 1

    def _has(self, split: SplitName) -> bool:
        return all(split in config.roles for config in self.loaded.fitness)

    def _job(self, split: SplitName, number: int) -> Job:
        recipe = self.recorder.decode(self.recorder.progress.candidates[number].genotype)
        seed = derive_seed(self.loaded.config.seed, "candidate", number)
        return Job(f"{split}:{candidate_key(number)}", recipe, split, seed)

    def _complete_estimated(self) -> None:
        """Score the best by estimate on all search documents, so that finalists are chosen among complete ones."""
        if self.estimation is None:
            return
        settings, progress = self.loaded.config.finish, self.recorder.progress
        numbers = self.estimation.final(progress, settings.front_size if self._many_objectives else settings.top_k)
        seed, space = self.loaded.config.seed, self.loaded.space
        assert space is not None
        self._score("completing", [full_job(progress, space, self.estimation, seed, number) for number in numbers])
        self.recorder.checkpoint(progress.closed - 1)

    def _finalists(self) -> list[int]:
        """The top k by scalar search fitness, equal recipes once; of a Pareto search the front.

        Where candidates keep all constraints, only those. A front of more than ``finish.front_size`` members is cut to
        the top k and those that add most hypervolume.
        """
        outcomes, settings = self.recorder.progress.outcomes, self.loaded.config.finish
        scored = [key for key in sorted(outcomes) if outcomes[key].evaluation.ok]
        fitness = {key: outcomes[key].evaluation.fitness for key in scored}
        missed = {key: self.recorder.violation(fitness[key]) for key in scored}
        if self._many_objectives and scored:
            kept = feasible_front(list(fitness.values()), list(missed.values()))
            scored = [key for key, member in zip(scored, kept) if member]
        scored.sort(key=lambda key: (missed[key], -self.recorder.scalarise(fitness[key])[0]))
        if scored and missed[scored[0]] == 0:  # validation must not bring back what misses a constraint
            scored = [key for key in scored if missed[key] == 0]
        distinct: dict[str, int] = {}
        for key in scored:
            distinct.setdefault(self.recorder.progress.candidates[key].recipe_id, key)
        finalists = list(distinct.values())
        if not self._many_objectives:
            return finalists[: settings.top_k]
        rows = [fitness[key] for key in finalists]
        chosen = largest_subset(rows, settings.front_size, range(min(settings.top_k, len(rows)))) if rows else []
        return [finalists[row] for row in chosen]

    def _winner(self, finalists: list[int]) -> int | None:
        """The finalist with the best validation score; without validation documents the best of the search."""
        outcomes, validated = self.recorder.outcomes, []
        scales = split_scales(self.loaded, outcomes, "validation", self.recorder.scales).values
        for number in finalists:
            event = outcomes.get(f"validation:{candidate_key(number)}")
            if isinstance(event, Evaluated):
                validated.append((self.judge.scalarise(event.fitness, scales)[0], -number))
        if validated:
            return -max(validated)[1]
        return finalists[0] if finalists else None

    def _score(self, phase: str, jobs: Iterable[Job]) -> None:
        score_jobs(phase, jobs, self.recorder, self.executor, self.stop_requested)
