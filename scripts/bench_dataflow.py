"""What routes cost: switching to one, running one beside the plain model, and what shared first hops save.

python scripts/bench_dataflow.py [--base zoo:smollm2-135m] [--expert zoo:math-en] [--documents 20] [--threads 1]

Prints Markdown rows for docs/benchmarks.md. Ratios compare numbers of this one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from evomerge.engine.live_model import LiveModel
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.evaluation.likelihood_pass import PassSize
from evomerge.evaluation.request_plans import as_document, plan_loglikelihood, run_loglikelihood
from evomerge.recipes.recipe import Hop, Recipe, Source, route_through
from evomerge.runtime.executor import Job, WorkerPlan
from evomerge.runtime.worker import Worker

FITNESS = ("zoo_capitals", "zoo_math_en")


def timed(call: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    return timed_both(call)[0]


def timed_both(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of one call; the latter tell more where others use the machine too."""
    began, cores = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - cores


def route(models: dict[str, Source], hops: list[Hop]) -> Recipe:
    """A route whose ends are the base's."""
    return Recipe(route_through(models, hops, "base"))


def live_model(models: dict[str, Source], prefix_cache_bytes: int | None) -> LiveModel:
    """A live model of the base with a lane for the expert."""
    experts = [("expert", models["expert"])]
    return LiveModel(models["base"], experts, "float32", "cpu", prefix_cache_bytes=prefix_cache_bytes)


def edited_routes(models: dict[str, Source], depth: int, count: int, seed: int = 0) -> list[Recipe]:
    """The first population of a search over block sequences: the base with one to three random edits each.

    An edit drops a hop, repeats one, or takes the block of the expert; sorted as a search submits them.
    """
    rng = np.random.default_rng(seed)
    paths = []
    for _ in range(count):
        path = [("base", block) for block in range(depth)]
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(path)))
            kind = int(rng.integers(3))
            if kind == 0:
                del path[place]
            elif kind == 1:
                path.insert(place, path[place])
            else:
                path[place] = ("expert", path[place][1])
        paths.append(path)
    return [route(models, [Hop(*hop) for hop in path]) for path in sorted(paths)]


def shared_share(recipes: list[Recipe]) -> float:
    """Part of all hops that some other route of the population has run on the same input."""
    paths = [recipe.model.hops for recipe in recipes]  # type: ignore[union-attr]
    distinct = {path[: end + 1] for path in paths for end in range(len(path))}
    return 1 - len(distinct) / sum(map(len, paths))


def bench_switch(live: LiveModel, models: dict[str, Source], depth: int) -> None:
    """Milliseconds from one route of 60 hops to another, all lanes being filled."""
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(20):
        pairs = zip(rng.choice(sorted(models), 60), rng.integers(depth, size=60))
        drawn.append(route(models, [Hop(str(name), int(block)) for name, block in pairs]))
    every = route(models, [Hop(name, block) for name in models for block in range(depth)])
    print(f"| lanes filled the first time, {2 * depth} blocks | {live.apply(every):.2f} s | |")
    seconds = [live.apply(recipe) for _ in range(3) for recipe in drawn]
    first, later = seconds[:20], seconds[20:]
    print(f"| switch to another route of 60 hops, median and worst | {1000 * statistics.median(later):.1f}, "
          f"{1000 * max(later):.1f} ms | 10 ms |")  # fmt: skip
    print(f"| the same while shells are still being made, median and worst | {1000 * statistics.median(first):.1f}, "
          f"{1000 * max(first):.1f} ms | 10 ms |")  # fmt: skip


@torch.no_grad()
def bench_forward(live: LiveModel, models: dict[str, Source], depth: int, rounds: int) -> None:
    """An identity route against the plain model, in turn."""
    ids = torch.randint(10, 1000, (4, 64), generator=torch.Generator().manual_seed(0))
    identity = route(models, [Hop("base", block) for block in range(depth)])
    order = (("plain", Recipe(models["base"])), ("route", identity))
    walls: dict[str, list[float]] = {"plain": [], "route": []}
    cores: dict[str, list[float]] = {"plain": [], "route": []}
    for number in range(rounds):
        for name, recipe in order if number % 2 else order[::-1]:
            live.apply(recipe)
            live.model(input_ids=ids, use_cache=False)
            wall, cpu = timed_both(lambda: live.model(input_ids=ids, use_cache=False))
            walls[name].append(wall)
            cores[name].append(cpu)
    ratios = [statistics.median(found["route"]) / statistics.median(found["plain"]) for found in (walls, cores)]
    print(f"| forward pass of an identity route divided by the plain model's, medians of {rounds}: wall, CPU "
          f"| {ratios[0]:.3f}, {ratios[1]:.3f} | 1.02 |")  # fmt: skip


def bench_likelihoods(models: dict[str, Source], recipes: list[Recipe], num_rows: int) -> None:
    """Log-likelihoods of a population with and without the prefix cache."""
    words = torch.randint(10, 1000, (num_rows, 64), generator=torch.Generator().manual_seed(2)).tolist()
    requests = [(row[:60], row[60:]) for row in words]
    seconds, answers, share = {}, {}, 0.0
    for size in (0, None):
        live = live_model(models, size)
        block = tuple(as_document([request], row, 2048) for row, request in enumerate(requests))
        plan = plan_loglikelihood([block], "head_skip", PassSize.of(live.device, None), live.device)
        live.apply(recipes[-1])  # fills lanes
        run_loglikelihood(live.model, plan)
        live.apply(Recipe(models["base"]))
        live.take_hop_counts()
        answers[size] = []

        def score(live: LiveModel = live, plan: Any = plan, size: int | None = size) -> None:
            for recipe in recipes:
                live.apply(recipe)
                answers[size].append(run_loglikelihood(live.model, plan))

        seconds[size] = timed_both(score)
        share = live.take_hop_counts().share_skipped
    assert answers[0] == answers[None]
    print_saving(f"log-likelihoods of {num_rows} rows of 64 tokens", len(recipes), seconds, share)


def bench_generation(models: dict[str, Source], recipes: list[Recipe], documents: int, threads: int) -> None:
    """Generated answers of a population with and without the prefix cache, through the worker."""
    configs = load_fitness([{"preset": name, "documents": {"search": {"limit": documents}}} for name in FITNESS])
    plan = plan_documents(configs)
    seconds, fitness, share = {}, {}, 0.0
    for size in (0, None):
        worker = Worker(
            WorkerPlan(
                base=models["base"], experts=(("expert", models["expert"]),),
                fitness=tuple(config.model_dump(mode="json") for config in configs), documents=plan.to_json(),
                threads=threads, lanes=1, prefix_cache_bytes=size,
            )
        )  # fmt: skip
        worker.run(Job("warm", recipes[-1]))
        worker.run(Job("plain", Recipe(models["base"])))
        done = []

        def score(worker: Worker = worker, done: list[Any] = done) -> None:
            done.extend(worker.run(Job(str(number), recipe)) for number, recipe in enumerate(recipes))

        seconds[size] = timed_both(score)
        fitness[size] = [evaluation.fitness for evaluation in done]
        hops = sum((evaluation.hops for evaluation in done[1:]), done[0].hops)
        share = hops.share_skipped
    assert fitness[0] == fitness[None]
    print_saving(f"generation, {len(FITNESS)} tasks of {documents} documents", len(recipes), seconds, share)


def print_saving(what: str, count: int, seconds: dict[int | None, tuple[float, float]], share: float) -> None:
    """One row."""
    (wall, cpu), (wall_with, cpu_with) = seconds[0], seconds[None]
    print(f"| {what}, {count} candidates: without and with prefix cache | {wall:.1f}, {wall_with:.1f} s "
          f"= {wall / wall_with:.2f}x; CPU {cpu:.1f}, {cpu_with:.1f} s = {cpu / cpu_with:.2f}x; "
          f"{share:.0%} of hops skipped | 1.5x |")  # fmt: skip


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="zoo:smollm2-135m")
    parser.add_argument("--expert", default="zoo:math-en")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=["switch", "forward", "likelihoods", "generation"])
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    torch.set_num_threads(options.threads)
    models = {"base": Source(options.base), "expert": Source(options.expert)}
    live = live_model(models, 0)
    depth = live.architecture.num_blocks
    if "switch" in options.parts:
        bench_switch(live, models, depth)
    if "forward" in options.parts:
        bench_forward(live, models, depth, options.rounds)
    print(f"| {live.memory_plan} |")
    del live
    recipes = edited_routes(models, depth, options.candidates)
    drawn = [shared_share(edited_routes(models, depth, options.candidates, seed)) for seed in range(100)]
    print(f"| hops that the population shares, and the mean of 100 such populations | {drawn[0]:.0%}, "
          f"{statistics.mean(drawn):.0%} | |")  # fmt: skip
    if "likelihoods" in options.parts:
        bench_likelihoods(models, recipes, options.rows)
    if "generation" in options.parts:
        bench_generation(models, recipes, options.documents, options.threads)


if __name__ == "__main__":
    main()
