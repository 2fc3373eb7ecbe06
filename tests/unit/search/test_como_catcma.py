"""COMO-CatCMA: the library's algorithm where nothing fails; failures, wide pools, breakdowns where it has no answer."""

import math
from typing import Any

import cmaes
import numpy as np
import pytest

from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import build_optimizer, validate_optimizer
from evomerge.search.cma_mixed import MixedCoordinates
from evomerge.search.como_catcma import ComoCatCma
from evomerge.terms import Gene, GeneKind, derive_seed

GENES = tuple(Gene(f"g{i}") for i in range(3))
SEED = 8
SETTINGS = {"kernels": 3, "kernel_population": 5, "sigma": 0.02}


def build(reference: tuple[float, ...] = (), **settings: Any) -> ComoCatCma:
    problem = Problem(GENES, 2, SEED, evaluations=1000, reference_point=reference)
    built = build_optimizer("como_catcma", problem, {**SETTINGS, **settings})
    assert isinstance(built, ComoCatCma)
    return built


def objectives(x: np.ndarray) -> tuple[float, float]:
    return -float(np.sum((x - 0.4) ** 2)), -float(np.sum((x - 0.6) ** 2))


@pytest.mark.parametrize("reference", [(), (-0.5, -0.5)])
def test_asks_are_those_of_the_library(reference: tuple[float, ...]) -> None:
    """Same kernels, same seed; the middle of the box, so that nothing is mirrored."""
    mixed = MixedCoordinates(Problem(GENES, 2, SEED))
    means = [np.full(3, 0.5)]
    for index in (1, 2):
        means.append(np.random.default_rng(derive_seed(SEED, "como_catcma", "mean", index, 0)).random(3))
    library = cmaes.COMOCatCMAwM(
        x_space=[[-np.inf, np.inf]] * 3,
        kernels=[mixed.build(mean, 0.02, 5, 0) for mean in means],
        reference_point=[-value for value in reference] or None,
        seed=derive_seed(SEED, "como_catcma") % 2**32,
    )
    optimizer = build(reference)
    num_asked = 0
    for _ in range(25):
        solutions = list(library.ask_iter())
        proposals = [optimizer.ask() for _ in solutions]
        for solution, proposal in zip(solutions, proposals):
            if np.all((solution.x >= 0) & (solution.x <= 1)):
                np.testing.assert_allclose(proposal.genotype, solution.x, rtol=0, atol=1e-12)
                num_asked += 1
        values = [objectives(proposal.genotype) for proposal in proposals]
        library.tell([(solution, [-a, -b]) for solution, (a, b) in zip(solutions, values)])
        optimizer.tell([Result(p.index, p.genotype, value) for p, value in zip(proposals, values)])
    assert num_asked > 100


def test_wide_pools_draw_ahead_and_learn_the_same() -> None:
    """Genotypes of a kernel do not depend on how many candidates are out at once."""

    def run(width: int) -> set[bytes]:
        optimizer, seen, flying = build((-1.0, -1.0)), [], []
        while len(seen) < 180:
            while len(flying) < width:
                flying.append(optimizer.ask())
            proposal = flying.pop(0)
            seen.append(proposal.genotype.tobytes())
            optimizer.tell([Result(proposal.index, proposal.genotype, objectives(proposal.genotype))])
        return set(seen[:60])

    assert len(run(1) & run(9)) > 40


def test_more_candidates_than_there_are_draws() -> None:
    optimizer = build()
    proposals = [optimizer.ask() for _ in range(40)]  # 3 kernels of 5, 2 incumbents, the rest is surplus
    optimizer.tell([Result(p.index, p.genotype, objectives(p.genotype)) for p in proposals])
    assert len({p.genotype.tobytes() for p in proposals}) == 40
    assert [optimizer.ask().index for _ in range(6)] == list(range(40, 46))


def test_failures_move_neither_reference_nor_front() -> None:
    optimizer = build()
    for _ in range(60):
        proposal = optimizer.ask()
        fitness = None if proposal.index % 3 == 0 else objectives(proposal.genotype)
        optimizer.tell([Result(proposal.index, proposal.genotype, fitness)])
    assert all(math.isfinite(value) for row in optimizer._seen for value in row)
    known = [kernel.incumbent for kernel in optimizer._kernels]
    assert all(one is None or len(one) == 2 for one in known)


def test_a_kernel_that_breaks_down_starts_again() -> None:
    optimizer = build()
    for kernel in optimizer._kernels:
        kernel.library._mean[:] = np.nan
    for _ in range(80):
        proposal = optimizer.ask()
        assert np.all(np.isfinite(proposal.genotype))
        optimizer.tell([Result(proposal.index, proposal.genotype, objectives(proposal.genotype))])
    assert all(kernel.epoch == 1 for kernel in optimizer._kernels)


def test_three_objectives_are_refused_with_what_takes_them() -> None:
    genes = (*GENES, Gene("c", GeneKind.CATEGORY, choices=("a", "b")))
    [(key, message)] = validate_optimizer("como_catcma", {}, Problem(genes, 3, 0, 100))
    assert key == "optimizer.name"
    assert "como_catcma handles exactly 2 objectives, got 3" in message
    assert "cma_pareto" in message
    assert "map_elites" in message
    [(key, message)] = validate_optimizer("map_elites", {"quality": 2}, Problem(genes, 2, 0, 100))
    assert (key, message) == ("optimizer.quality", "expected the number of an objective, from 0 to 1, got 2")
