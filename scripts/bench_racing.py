"""What racing saves and what it costs: CMA-ES with and without it, on recorded landscapes and on a made-up one.

python scripts/bench_racing.py [LANDSCAPE...] [--seeds 10] [--evaluations 200] [--documents 40] [--rules betting ...]

Landscapes: ``logistic``, made up here, and those of scripts/landscapes.py. Every search is the real loop, optimizer,
planner and rungs; only the model's answers come from the landscape. All searches score equally many
documents. Printed for each rule: how many times fewer documents a candidate costs, how many times fewer are needed to
reach what the search without racing found in the end (the truth of the best candidate so far, mean over seeds), final
truth without racing, the difference with it and after as many candidates instead of documents, candidates stopped,
and false stops, for which every stopped candidate is scored to the end (not counted as cost): its fitness on all search
documents is better than that of the candidate it was behind.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan, MemberPlan, SplitPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.rung_run import run_rungs
from evomerge.evaluation.rungs import RungLayout, RungSettings, lay_rungs
from evomerge.experiment.config import RacingConfig
from evomerge.experiment.racing import RacePlan, RacePlanner
from evomerge.experiment.search_loop import Limits, Progress, SearchLoop, candidate_id
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runtime.executor import Job, Outcome
from evomerge.search.base import Problem
from evomerge.search.catalogue import SPECS, build_optimizer
from evomerge.store.events import Evaluated
from evomerge.terms import Array, Candidate, DocumentScores, Evaluation, Gene, Objective, derive_seed

FULL = "none"


class LogisticLandscape:
    """Tasks whose documents are right with a probability that falls with the distance from the task's own optimum.

    Each document has a threshold and a slope of its own along the genes, so neighbouring genotypes are right on mostly
    the same documents, as merges of the same models are.
    """

    def __init__(self, num_genes: int = 6, num_tasks: int = 4, num_documents: int = 1000, seed: int = 0) -> None:
        rng = np.random.default_rng(derive_seed("logistic landscape", seed))
        self.genes = tuple(Gene(f"coefficient/e{at}", low=0.0, high=1.5, initial=0.7) for at in range(num_genes))
        self.tasks = tuple(f"task{at}" for at in range(num_tasks))
        self.num_documents = (num_documents,) * num_tasks
        middle = rng.uniform(0.3, 1.0, num_genes)
        self._optima = middle + rng.normal(0.0, 0.2, (num_tasks, num_genes))
        self._thresholds = rng.logistic(0.0, 0.7, (num_tasks, num_documents))
        self._slopes = rng.normal(0.0, 0.6, (num_tasks, num_documents, num_genes))

    def scores(self, genotype: Array, task: int, documents: Any = None) -> Array:
        """Scores of a genotype on documents of a task."""
        away = np.asarray(genotype) - self._optima[task]
        level = 2.0 - 4.0 * float(away @ away) + self._slopes[task] @ away
        row = (level > self._thresholds[task]).astype(np.float64)
        return row if documents is None else row[documents]

    def truth(self, genotype: Array) -> tuple[float, ...]:
        """Mean scores over all documents."""
        return tuple(float(self.scores(genotype, task).mean()) for task in range(len(self.tasks)))

    def subset(self, task: int, count: int, seed: int) -> Any:
        """Some documents of a task."""
        rng = np.random.default_rng(derive_seed("logistic documents", task, seed))
        return rng.permutation(self.num_documents[task])[:count]


@dataclass
class Bench:
    """One search: executor, recorder, decoder and score store in one, all in memory."""

    landscape: Any
    documents: Sequence[Any]
    layout: RungLayout
    objectives: tuple[Objective, ...]
    progress: Progress = field(default_factory=Progress)
    outcomes: dict[str, Any] = field(default_factory=dict)
    spent: int = 0
    best: float = -np.inf
    truth: float = np.nan
    stops: int = 0
    false_stops: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    num_workers: int = 1
    reports: tuple[Any, ...] = ()
    _queue: list[Job] = field(default_factory=list)
    _tables: dict[str, tuple[DocumentScores, ...]] = field(default_factory=dict)

    def decode(self, genotype: Array) -> Recipe:
        return Recipe(Source("nothing"))

    def load(self, ref: str) -> tuple[DocumentScores, ...]:
        return self._tables[ref]

    def asked(self, candidates: list[Candidate]) -> None: ...

    def told(self, candidate_ids: list[int]) -> None: ...

    def generation_closed(self, generation: int) -> None: ...

    def close(self) -> None: ...

    @property
    def num_pending(self) -> int:
        return len(self._queue)

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        if not self._queue:
            return []
        job = self._queue.pop(0)
        return [Outcome(job, self._evaluate(job), 0, 1, 0.0, 0.0)]

    def _evaluate(self, job: Job) -> Evaluation:
        number = candidate_id(job.key)
        assert number is not None
        genotype = self.progress.candidates[number].genotype
        rows = [self.landscape.scores(genotype, task, chosen) for task, chosen in enumerate(self.documents)]
        race = None if job.race is None else replace(job.race, audit=True)
        columns = list(zip(rows, self.layout.objectives, strict=True))
        ran = run_rungs(
            lambda rung: [row[found.rungs[rung]] for row, found in columns if found], self.layout, self.objectives, race
        )
        fitness = tuple(float(row.mean()) for row in rows)
        if ran.stop is not None:
            return Evaluation(rungs=ran.rungs, stop=replace(ran.stop, audit=fitness))
        tables = tuple(
            DocumentScores(one.name, tuple(map(str, range(len(row)))), row) for one, row in zip(self.objectives, rows)
        )
        return Evaluation(fitness, tables, rungs=ran.rungs)

    def outcome(self, outcome: Outcome) -> None:
        evaluation, key = outcome.evaluation, outcome.job.key
        if evaluation.stop is not None:
            stop = evaluation.stop
            self.spent += stop.documents
            self.stops += 1
            other = self.progress.outcomes[stop.against].evaluation.fitness
            self.false_stops += np.mean(stop.audit) > np.mean(other)
        else:
            self.spent += self.layout.documents[-1]
            self._tables[key] = evaluation.document_scores
            self.outcomes[key] = Evaluated(key, candidate_id(key), "search", evaluation.fitness, scores_ref=key)
            if (value := float(np.mean(evaluation.fitness))) > self.best:
                self.best = value
                genotype = self.progress.candidates[int(key[1:])].genotype
                self.truth = float(np.mean(self.landscape.truth(genotype)))
        self.curve.append((self.spent, self.truth))


def run_search(landscape: Any, seed: int, options: argparse.Namespace, racing: RacingConfig | None) -> Bench:
    """One search."""
    documents = [
        landscape.subset(task, min(options.documents, available), seed)
        for task, available in enumerate(landscape.num_documents)
    ]
    config = racing or RacingConfig()
    total = sum(map(len, documents))
    first = config.first if config.first != "auto" else max(config.min_documents, round(0.1 * total))
    settings = RungSettings(config.rungs, int(first), config.sizes, derive_seed(seed, "rungs"))
    layout = lay_rungs(*_planned(landscape.tasks, documents), settings)
    objectives = tuple(Objective(name) for name in landscape.tasks)
    bench = Bench(landscape, documents, layout, objectives)
    problem = Problem(landscape.genes, 1, derive_seed(seed, "optimizer"), options.evaluations, noisy=True)
    optimizer = build_optimizer(options.optimizer, problem, getattr(options, "settings", {}))
    told = lambda fitness: (float(np.mean(fitness)),)  # noqa: E731
    share = SPECS[options.optimizer].race_place if options.place is None else options.place
    place = max(1, round(share * optimizer.population_size))
    budget = options.evaluations * layout.documents[-1]
    shares = (1.0 / len(objectives),) * len(objectives)
    plan = RacePlan(config, layout, objectives, shares, False, place, seed)
    planner = RacePlanner(plan, bench, bench.outcomes, told)  # type: ignore[arg-type]
    loop = SearchLoop(
        optimizer, bench, bench, bench, progress=bench.progress, limits=Limits(None, None), seed=seed,
        scalarise=told, stop_requested=lambda: bench.spent >= budget, idle_jobs=iter(()),
        racer=None if racing is None else planner,
    )  # fmt: skip
    loop.run("generational")
    return bench


def _planned(tasks: Sequence[str], documents: Sequence[Any]) -> tuple[list[FitnessConfig], DocumentPlan]:
    configs, plans = [], []
    for name, chosen in zip(tasks, documents):
        roles = {"search": {"split": "search"}}
        configs.append(FitnessConfig.model_validate({"name": name, "task": name, "documents": roles}))
        ids = tuple(map(str, range(len(chosen))))
        plans.append(FitnessPlan(name, (MemberPlan(name, {"search": SplitPlan("", tuple(map(int, ids)), ids, ids)}),)))
    return configs, DocumentPlan(tuple(plans))


def documents_to_reach(searches: Sequence[Bench], level: float) -> float:
    """Documents after which the mean over seeds of the best candidate's truth stays at a level; nan = never."""
    grid = np.unique([spent for search in searches for spent, _ in search.curve])
    means = np.zeros(len(grid))
    for search in searches:
        spent, truth = np.array(search.curve).T
        means += truth[np.clip(np.searchsorted(spent, grid, side="right") - 1, 0, None)] / len(searches)
    below = np.flatnonzero(means < level - 1e-9)
    at = below[-1] + 1 if len(below) else 0
    return float(grid[at]) if at < len(grid) else float("nan")


def compare(
    name: str, landscape: Any, options: argparse.Namespace, variants: Mapping[str, RacingConfig | None]
) -> None:
    """Print one row for each variant."""
    found: dict[str, list[Bench]] = {}
    for label, config in variants.items():
        began = time.perf_counter()
        found[label] = [run_search(landscape, seed, options, config) for seed in range(options.seeds)]
        full = found[FULL]
        final = float(np.mean([search.truth for search in full]))
        searches = found[label]
        each, each_full = (np.mean([s.spent / len(s.curve) for s in some]) for some in (searches, full))
        stops = sum(search.stops for search in searches)
        wrong = sum(search.false_stops for search in searches)
        reach = [documents_to_reach(some, final - options.tolerance) for some in (full, searches)]
        truth = np.array([search.truth for search in searches]) - np.array([search.truth for search in full])
        alike = [s.curve[min(options.evaluations, len(s.curve)) - 1][1] for s in searches]
        same = np.mean(alike) - final
        error = truth.std(ddof=1) / np.sqrt(len(truth)) if len(truth) > 1 else float("nan")
        print(
            f"| {name} | {label} | {each_full / each:.2f} | {reach[0] / reach[1]:.2f} | {final:.4f} | "
            f"{truth.mean():+.4f} ± {error:.4f} | {same:+.4f} | {stops / sum(len(s.curve) for s in searches):.0%} | "
            f"{wrong / max(1, stops):.2%} | {time.perf_counter() - began:.0f} s |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landscapes", nargs="*", default=["logistic"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--documents", type=int, default=40, help="of each task")
    parser.add_argument("--place", type=float, help="race against this place, in populations, not the optimizer's")
    parser.add_argument("--optimizer", default="cma_es")
    parser.add_argument("--rules", nargs="+", default=["betting", "wilcoxon", "halving"])
    parser.add_argument("--levels", nargs="+", type=float, default=[])
    parser.add_argument("--rungs", type=int, nargs="+", default=[8])
    parser.add_argument("--sizes", nargs="+", default=["geometric"])
    parser.add_argument(
        "--tolerance", type=float, default=0.001, help="below the final truth that counts as reaching it"
    )
    options = parser.parse_args()
    columns = (
        "landscape", "racing", "documents of a candidate", "documents to the final truth", "final truth without",
        "difference with", "with as many candidates", "stopped", "of these false", "time",
    )  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    variants: dict[str, RacingConfig | None] = {FULL: None}
    for rule in options.rules:
        for level in options.levels or ["auto"]:
            for rungs in options.rungs:
                for sizes in options.sizes:
                    config = RacingConfig(rule=rule, level=level, rungs=rungs, sizes=sizes)
                    variants[f"{rule} {config.error_rate:g}, {rungs} {sizes} rungs"] = config
    for name in options.landscapes:
        if name == "logistic":
            compare(name, LogisticLandscape(), options, variants)
        else:
            from landscapes import load_landscape

            compare(name, load_landscape(name), options, variants)


if __name__ == "__main__":
    main()
