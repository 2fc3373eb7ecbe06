"""Writes tests/golden/optimizers.json: what every optimizer proposes under a fixed sequence of tells.

Run it only when the proposals are meant to change, and say why in the commit:
`python scripts/refresh_golden_optimizers.py`.
"""

import json
from pathlib import Path

import numpy as np

from evomerge.search.base import Problem, Proposal, Result
from evomerge.search.catalogue import SPECS, build_optimizer
from evomerge.search.seed_gram import CellGram
from evomerge.terms import Gene, GeneKind

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "optimizers.json"
REAL = tuple(Gene(f"r{i}", low=-1.0, high=2.0, initial=0.25 * i) for i in range(3))
MIXED = (*REAL, Gene("block", GeneKind.INTEGER, 0, 6, 2), Gene("method", GeneKind.CATEGORY, choices=("a", "b", "c")))
SMALL = {"num_initial_random": 3, "population_size": 6, "kernels": 2, "kernel_population": 4}
OWN = {
    "map": {"num_design": 10, "surrogate_generations": 5},
    "bayesian_map": {"num_design": 13, "surrogate_generations": 5},
    "nested_map": {"pair_points": 7, "surrogate_generations": 5},
    "evogm": {"width": 8, "training_steps": 20},
}
# Fitting a Gaussian process or a network, or searching a fitted surrogate, ends elsewhere on other processors, so only
# the start is pinned.
GENERATIONS = {"gp": 1, "map": 2, "bayesian_map": 2, "nested_map": 2, "evogm": 1}


def proposals(name: str) -> list[list[list[float]]]:
    """The first three genotypes of each of three generations."""
    spec = SPECS[name]
    genes = MIXED if spec.gene_kinds == frozenset(GeneKind) else REAL
    known = {setting.name for setting in spec.settings}
    settings = {key: value for key, value in SMALL.items() if key in known}
    problem = Problem(genes, spec.min_objectives, seed=11, evaluations=1000)
    if spec.merges_seeds:
        seeds = CellGram.of_vectors(np.random.default_rng(11).standard_normal((3, 40)))
        problem = Problem((), spec.min_objectives, seed=11, seeds=seeds)
    optimizer = build_optimizer(name, problem, settings | OWN.get(name, {}))
    kept = []
    for _ in range(GENERATIONS.get(name, 3)):
        asked = [optimizer.ask() for _ in range(optimizer.population_size)]
        kept.append([proposal.genotype.tolist() for proposal in asked[:3]])
        optimizer.tell([result(p, spec.min_objectives) for p in asked])
    return kept


def result(proposal: Proposal, num_objectives: int) -> Result:
    """Fitness, and for those that want them scores of twenty documents."""
    value = fitness(proposal, num_objectives)
    scores = np.random.default_rng([3, proposal.index]).integers(0, 2, 20).astype(float)
    return Result(proposal.index, proposal.genotype, value, document_scores=None if value is None else scores)


def fitness(proposal: Proposal, num_objectives: int) -> tuple[float, ...] | None:
    """Distance from a point, another one for each objective; every seventh candidate fails."""
    if proposal.index % 7 == 5:
        return None
    return tuple(-float(np.sum(np.abs(proposal.genotype - 0.6 - 0.5 * m))) for m in range(num_objectives))


def main() -> None:
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    golden = {name: proposals(name) for name in sorted(SPECS)}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{GOLDEN}: {len(golden)} optimizers")


if __name__ == "__main__":
    main()
