"""Does EvoGM with its published settings beat random search on a quadratic? Counts seeds.

python scripts/check_evogm.py [--seeds 10]

Ten coefficients in [-1, 1], the best values uniform in [-0.8, 0.8], 160 evaluations each: a published search of two
rounds with three iterations. About 10 CPU seconds for each seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.terms import Gene

GENES = tuple(Gene(f"g{at}", low=-1.0, high=1.0, initial=0.1) for at in range(10))
EVALUATIONS = 160


def best_found(name: str, seed: int, settings: Mapping[str, Any]) -> float:
    """The best value (0 is the optimum) of one search."""
    optimizer = build_optimizer(name, Problem(GENES, 1, seed, evaluations=EVALUATIONS), settings)
    target = np.random.default_rng(100 + seed).uniform(-0.8, 0.8, len(GENES))
    values: list[float] = []
    while len(values) < EVALUATIONS:
        asked = [optimizer.ask() for _ in range(min(optimizer.population_size, EVALUATIONS - len(values)))]
        told = [Result(one.index, one.genotype, (-float(np.sum((one.genotype - target) ** 2)),)) for one in asked]
        values += [one.fitness[0] for one in told if one.fitness]
        optimizer.tell(told)
    return max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    wins = 0
    for seed in seeds:
        evogm, random = best_found("evogm", seed, {}), best_found("random", seed, {})
        wins += evogm > random
        print(f"seed {seed}: evogm {evogm:.2f}, random {random:.2f}", flush=True)
    print(f"evogm is better on {wins} of {len(seeds)} seeds")


if __name__ == "__main__":
    main()
