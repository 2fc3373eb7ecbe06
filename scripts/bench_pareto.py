"""Optimizers for several objectives, without models: time of the controller, and hypervolume against evaluations.

python scripts/bench_pareto.py [--only NAME ...] [--skip-time] [--skip-quality] [--skip-zoo] [--seeds 0 1 2]
                               [--evaluations 100 300] [--genes 8] [--landscape zoo3 micro9] [--objectives 2 3]
                               [--zoo-seeds 5] [--jobs 1]

Time: CPU seconds of one ask and its tell over a whole search of 1,000 trials, 64 genes, 3 objectives (2 where an
optimizer takes no more). Quality: share of the whole front's hypervolume, mean over seeds, generations as in a run.
Zoo: the same on recorded landscapes (scripts/landscapes.py), 2 and 3 objectives. A search sees half of the documents,
others for each seed; the hypervolume is that of all documents, of the candidates that looked non-dominated. Then MAP
with few evaluations beside NSGA-II with ten times as many.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from bench_search import half, shown
from landscape_search import Case, Entry, band, best_value, checkpoints, compare, why_not
from pareto_problems import ParetoProblem, pareto_problems

from evomerge.search.base import Optimizer, Problem, Result
from evomerge.search.catalogue import SPECS, build_optimizer, validate_optimizer
from evomerge.search.front import hypervolume
from evomerge.terms import Array, Gene

NAMES = [name for name, spec in SPECS.items() if spec.multi_objective]
SLOW = {"gp": 30, "tpe": 200}  # trials that are timed, where 1,000 would take very long
ZOO_BUDGETS = {"zoo3": (20, 40, 80), "micro9": (60, 120, 240)}
MAP_BUDGETS = {"zoo3": (20, 30, 40), "micro9": (70, 100)}
MAP_NAMES = ("map", "bayesian_map", "nested_map")


def search(optimizer: Optimizer, problem: ParetoProblem, evaluations: int) -> tuple[Array, list[float]]:
    """Fitness ``(C, M)`` of all candidates, and seconds of ask and tell for each."""
    rows: list[tuple[float, ...]] = []
    seconds: list[float] = []
    while len(rows) < evaluations:
        proposals = []
        for _ in range(min(optimizer.population_size, evaluations - len(rows))):
            began = time.process_time()
            proposals.append(optimizer.ask())
            seconds.append(time.process_time() - began)
        results = [Result(p.index, p.genotype, problem.fitness(p.genotype)) for p in proposals]
        rows += [result.fitness for result in results if result.fitness]
        if len(results) >= optimizer.tell_size:
            began = time.process_time()
            optimizer.tell(results)
            share = (time.process_time() - began) / len(results)
            seconds[-len(results) :] = [one + share for one in seconds[-len(results) :]]
    return np.array(rows), seconds


def build(name: str, problem: ParetoProblem, seed: int, evaluations: int, **settings: Any) -> Optimizer:
    genes = tuple(Gene(f"g{i}") for i in range(problem.num_genes))
    asked = Problem(genes, problem.num_objectives, seed, evaluations, workers=4, reference_point=problem.reference)
    return build_optimizer(name, asked, settings)


def fits(name: str, problem: ParetoProblem) -> bool:
    genes = tuple(Gene(f"g{i}") for i in range(problem.num_genes))
    return not validate_optimizer(name, {}, Problem(genes, problem.num_objectives, 0, 10_000))


def show_times(names: list[str], num_genes: int = 64) -> None:
    print(f"\n| optimizer | objectives | trials | mean ms | last 100, ms | worst, ms |\n{'|---' * 6}|")
    for name in names:
        problem = pareto_problems(num_genes)["dtlz2"]
        if not fits(name, problem):
            problem = pareto_problems(num_genes)["zdt1"]
        trials = SLOW.get(name, 1000)
        _, seconds = search(build(name, problem, 0, trials), problem, trials)
        cells = [1000 * value for value in (statistics.fmean(seconds), statistics.fmean(seconds[-100:]), max(seconds))]
        print(f"| {name} | {problem.num_objectives} | {trials} | " + " | ".join(f"{c:.1f}" for c in cells) + " |")


def show_quality(names: list[str], seeds: list[int], evaluations: list[int], num_genes: int) -> None:
    problems = pareto_problems(num_genes)
    columns = [f"{name} {count}" for name in problems for count in evaluations]
    print(f"\n| optimizer | {' | '.join(columns)} |\n{'|---' * (1 + len(columns))}|")
    for name in names:
        cells = []
        for problem in problems.values():
            if not fits(name, problem):
                cells += ["-"] * len(evaluations)
                continue
            found: list[list[float]] = []
            for seed in seeds:
                rows, _ = search(build(name, problem, seed, max(evaluations)), problem, max(evaluations))
                found.append([hypervolume(rows[:count], problem.reference) / problem.best for count in evaluations])
            cells += [f"{statistics.fmean(column):.3f}" for column in zip(*found)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def show_zoo(names: list[str], landscape: str, objectives: int, seeds: int, jobs: int) -> None:
    """Share of the best known hypervolume after parts of one budget."""
    budgets = ZOO_BUDGETS.get(landscape, ZOO_BUDGETS["micro9"])
    case = Case(landscape, max(budgets), objectives, half(landscape))
    able = [name for name in names if why_not(Entry(name), case) is None]
    curves = compare([Entry(name) for name in able], case, range(seeds), jobs)
    best = max(best_value(landscape, objectives), *(float(rows.max()) for rows in curves.values()))
    at = [int(np.searchsorted(checkpoints(max(budgets), objectives), count)) for count in budgets]
    print(f"\n{landscape}, {objectives} objectives, {case.documents} documents seen, best known hypervolume {best:.4f}")
    print(f"\n| optimizer | {' | '.join(f'after {count}' for count in budgets)} |\n{'|---' * (1 + len(budgets))}|")
    for name in sorted(able, key=lambda name: -float(curves[name][:, -1].mean())):
        cells = [shown(band(curves[name][:, index] / best)) for index in at]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def show_map(landscape: str, objectives: int, seeds: int, jobs: int) -> None:
    """MAP's hypervolume beside NSGA-II's with the same budget and with ten times as much."""
    budgets = MAP_BUDGETS.get(landscape, MAP_BUDGETS["micro9"])
    print(f"\n| {landscape}, {objectives} objectives | evaluations | hypervolume | share of NSGA-II x10's mean "
          f"| share of its best |\n{'|---' * 5}|")  # fmt: skip
    for budget in budgets:
        case = Case(landscape, budget, objectives, half(landscape))
        entries = [Entry(name) for name in (*MAP_NAMES, "nsga2", "sobol") if why_not(Entry(name), case) is None]
        much = Entry("nsga2", factor=10)
        curves = compare([*entries, much], case, range(seeds), jobs)
        last = {label: rows[:, -1] for label, rows in curves.items()}
        rival = last[much.label]
        for label, values in last.items():
            cells = [shown(band(values), 4), shown(band(values / rival.mean())), shown(band(values / rival.max()))]
            count = budget * (much.factor if label == much.label else 1)
            print(f"| {label} | {count} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--evaluations", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--genes", type=int, default=8)
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--skip-quality", action="store_true")
    parser.add_argument("--skip-zoo", action="store_true")
    parser.add_argument("--landscape", nargs="+", default=["zoo3", "micro9"])
    parser.add_argument("--objectives", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--zoo-seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if not options.skip_time:
        show_times(options.only)
    if not options.skip_quality:
        show_quality(options.only, options.seeds, sorted(options.evaluations), options.genes)
    if options.skip_zoo:
        return
    names = [name for name in options.only if name not in SLOW]
    for landscape in options.landscape:
        for objectives in options.objectives:
            show_zoo(names, landscape, objectives, options.zoo_seeds, options.jobs)
            show_map(landscape, objectives, options.zoo_seeds, options.jobs)


if __name__ == "__main__":
    main()
