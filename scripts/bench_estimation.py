"""What estimating fitness saves and what it costs: a search with and without it, at equal document budgets.

python scripts/bench_estimation.py [LANDSCAPE...] [--seeds 10] [--evaluations 200] [--documents 40]
    [--estimators p_irt gp_irt mean] [--shares 0.3 0.5]

Landscapes: ``logistic`` (scripts/bench_racing.py) and those of scripts/landscapes.py. Every search is the real loop,
optimizer and estimation (fits, completions, drift guard); only the model's answers come from the landscape. All
searches score equally many documents, the completion of the last ``--top`` candidates included. Printed for each
variant: candidates; documents of a candidate, completions included; final truth without estimation (the truth of the
best complete candidate on all documents of the landscape, mean over seeds), the difference with it; root mean square
of estimate minus full score, for candidates sampled at random and for leaders; widenings of the choice, and searches
that ended with all documents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bench_racing import LogisticLandscape, _planned

from evomerge.evaluation.estimated_fitness import EstimationLayout, lay_out
from evomerge.experiment.config import EstimationConfig
from evomerge.experiment.estimation import EstimatingExecutor, Estimation, EstimationPlan
from evomerge.experiment.leaders import Ranking
from evomerge.experiment.replay import with_estimate
from evomerge.experiment.search_loop import Limits, Progress, SearchLoop, candidate_id, completed_id, full_job
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.runtime.executor import Job, Outcome
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.store.estimation_events import Estimated
from evomerge.store.events import Evaluated, Event
from evomerge.terms import Array, Candidate, DocumentScores, Evaluation, Objective, Part, derive_seed

FULL = "none"


@dataclass
class Bench:
    """One search: executor, recorder, decoder and score store in one, all in memory."""

    landscape: Any
    documents: list[Any]
    layout: EstimationLayout
    progress: Progress = field(default_factory=Progress)
    outcomes: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    spent: int = 0
    num_workers: int = 1
    reports: tuple[Any, ...] = ()
    _queue: list[Job] = field(default_factory=list)
    _tables: dict[str, tuple[DocumentScores, ...]] = field(default_factory=dict)

    def decode(self, genotype: Array) -> Recipe:
        rules = tuple(Rule(float(value), expert=f"e{at}") for at, value in enumerate(genotype))
        experts = tuple((f"e{at}", Source(f"m{at}")) for at in range(len(genotype)))
        return Recipe(Merge("linear", experts, None, (("coefficient", rules),)))

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
        number = completed_id(job.key) if candidate_id(job.key) is None else candidate_id(job.key)
        assert number is not None
        genotype = self.progress.candidates[number].genotype
        rows = [self.landscape.scores(genotype, task, chosen) for task, chosen in enumerate(self.documents)]
        places = [range(len(row)) for row in rows] if job.documents is None else [kept or () for kept in job.documents]
        self.spent += sum(map(len, places))
        tables = tuple(
            DocumentScores(objective.name, tuple(str(place) for place in kept), row[list(kept)])
            for objective, row, kept in zip(self.layout.objectives, rows, places)
        )
        if job.documents is not None:
            return Evaluation((), tables, part=Part(job.documents, (None,) * len(rows)))
        return Evaluation(tuple(float(row.mean()) for row in rows), tables)

    def outcome(self, outcome: Outcome) -> None:
        evaluation, key = outcome.evaluation, outcome.job.key
        self._tables[key] = evaluation.document_scores
        number = candidate_id(key)
        if not evaluation.ok:
            assert evaluation.estimate is not None
            assert number is not None
            self.outcomes[key] = Estimated(key, number, evaluation.estimate, scores_ref=key)
            return
        if number is None:
            number = completed_id(key)
            assert number is not None
            self.progress.outcomes[number] = with_estimate(outcome, self.progress.outcomes[number])
        self.outcomes[f"c{number}"] = Evaluated(key, number, "search", evaluation.fitness, scores_ref=key)

    @property
    def truth(self) -> float:
        """Truth of the best complete candidate."""
        done = {key: one.evaluation.fitness for key, one in self.progress.outcomes.items() if one.evaluation.ok}
        best = max(sorted(done), key=lambda key: float(np.mean(done[key])))
        return float(np.mean(self.landscape.truth(self.progress.candidates[best].genotype)))

    def errors(self, sampled: bool) -> list[float]:
        """Estimate minus full score of the completed."""
        chosen = [one for event in self.events for one in getattr(event, "sampled" if sampled else "leaders", ())]
        found = [self.progress.outcomes[number].evaluation for number in chosen]
        return [float(np.mean(one.estimate.fitness) - np.mean(one.fitness)) for one in found if one.estimate and one.ok]


def run_search(landscape: Any, seed: int, options: argparse.Namespace, config: EstimationConfig | None) -> Bench:
    """One search."""
    documents = [
        landscape.subset(task, min(options.documents, available), seed)
        for task, available in enumerate(landscape.num_documents)
    ]
    objectives = tuple(Objective(name) for name in landscape.tasks)
    bench = Bench(landscape, documents, lay_out(*_planned(landscape.tasks, documents), objectives))
    problem = Problem(landscape.genes, 1, derive_seed(seed, "optimizer"), options.evaluations, noisy=True)
    optimizer = build_optimizer(options.optimizer, problem, {})
    told = lambda fitness: (float(np.mean(fitness)),)  # noqa: E731
    total = bench.layout.num_documents
    budget = options.evaluations * total
    estimation, executor = None, bench
    if config is not None:
        count = round(config.documents * total)
        budget -= options.top * (total - count)
        plan = EstimationPlan(config, bench.layout, count, (), (), seed, "bench")
        ranking = Ranking(lambda fitness: told(fitness)[0], told, lambda fitness: 0.0, many=False)
        estimation = Estimation(plan, bench, bench.outcomes, ranking=ranking, log=bench.events.append)  # type: ignore[arg-type]
        executor = EstimatingExecutor(bench, estimation.settle)  # type: ignore[assignment]
    loop = SearchLoop(
        optimizer, bench, executor, bench, progress=bench.progress, limits=Limits(None, None), seed=seed,
        scalarise=told, stop_requested=lambda: bench.spent >= budget, idle_jobs=iter(()), estimator=estimation,
    )  # fmt: skip
    loop.run("generational")
    if estimation is not None:
        bench._queue.clear()  # what was submitted beyond the budget
        for number in estimation.final(bench.progress, options.top):
            executor.submit(full_job(bench.progress, bench, estimation, seed, number))
        while executor.num_pending:
            bench.outcome(executor.wait(0.0)[0])
    return bench


def compare(
    name: str, landscape: Any, options: argparse.Namespace, variants: Mapping[str, EstimationConfig | None]
) -> None:
    """Print one row for each variant."""
    full: list[float] = []
    for label, config in variants.items():
        began = time.perf_counter()
        searches = [run_search(landscape, seed, options, config) for seed in range(options.seeds)]
        truth = np.array([search.truth for search in searches])
        full = full or truth.tolist()
        away = truth - full
        error = away.std(ddof=1) / np.sqrt(len(away)) if len(away) > 1 else float("nan")
        count = float(np.mean([len(search.progress.outcomes) for search in searches]))
        each = sum(search.spent for search in searches) / (count * len(searches))
        sizes = [[one for search in searches for one in search.errors(kind)] for kind in (True, False)]
        rmse = [f"{np.sqrt(np.mean(np.square(one))):.4f}" if one else "-" for one in sizes]
        fits = [[event for event in search.events if hasattr(event, "is_widened")] for search in searches]
        wide = np.mean([sum(event.is_widened for event in one) for one in fits])
        off = sum(bool(one) and one[-1].is_off for one in fits)
        print(
            f"| {name} | {label} | {count:.0f} | {each:.1f} | {np.mean(full):.4f} | {away.mean():+.4f} ± {error:.4f} | "
            f"{rmse[0]} | {rmse[1]} | {wide:.1f} | {off} of {len(searches)} | {time.perf_counter() - began:.0f} s |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landscapes", nargs="*", default=["logistic"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=200, help="whose documents are the budget")
    parser.add_argument("--documents", type=int, default=40, help="of each task")
    parser.add_argument("--optimizer", default="cma_es")
    parser.add_argument("--estimators", nargs="+", default=["p_irt", "gp_irt", "mean"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--top", type=int, default=5, help="candidates completed at the end")
    parser.add_argument("--full-every", type=int, default=5)
    parser.add_argument("--no-guard", action="store_true", help="never widen")
    options = parser.parse_args()
    columns = (
        "landscape", "estimation", "candidates", "documents of each", "final truth without", "difference with",
        "error, sampled", "error, leaders", "widenings", "off at the end", "time",
    )  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    variants: dict[str, EstimationConfig | None] = {FULL: None}
    for estimator in options.estimators:
        for share in options.shares:
            given = {"estimator": estimator, "documents": share, "full_every": options.full_every}
            given |= {"drift": "off"} if options.no_guard else {}
            variants[f"{estimator}, {share:g} of documents"] = EstimationConfig.model_validate(given)
    for name in options.landscapes:
        if name == "logistic":
            compare(name, LogisticLandscape(), options, variants)
        else:
            from landscapes import load_landscape

            compare(name, load_landscape(name), options, variants)


if __name__ == "__main__":
    main()
