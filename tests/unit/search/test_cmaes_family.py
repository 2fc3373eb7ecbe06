"""The CMA family: published defaults, repair at the walls, late results, restarts, noise."""

import math

import numpy as np
import pytest

from evomerge.search.base import Optimizer, Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.search.cmaes_family import CmaesFamily
from evomerge.search.gene_box import reflect
from evomerge.terms import Array, Gene, GeneKind

FAMILY = ["cma_es", "sep_cma", "catcma", "xnes"]


def unit_genes(count: int, initial: float = 0.5) -> tuple[Gene, ...]:
    return tuple(Gene(f"g{i}", low=0.0, high=1.0, initial=initial) for i in range(count))


def build(name: str, genes: tuple[Gene, ...], *, evaluations: int | None = None, **settings: object) -> CmaesFamily:
    optimizer = build_optimizer(name, Problem(genes, 1, seed=1, evaluations=evaluations), settings)
    assert isinstance(optimizer, CmaesFamily)
    return optimizer


def generation(optimizer: Optimizer, fitness: float | None = None, target: Array | None = None) -> list[Array]:
    """One generation, told a constant fitness or the negated squared distance to a target; returns the genotypes."""
    proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
    results = [
        Result(p.index, p.genotype, (fitness if target is None else -float(np.sum((p.genotype - target) ** 2)),))
        for p in proposals
    ]
    optimizer.tell(results)
    return [proposal.genotype for proposal in proposals]


def search(seed: int, evaluations: int) -> list[tuple[float, list[float]]]:
    """The published setting of parameter-space merging on a quadratic: 6 genes, defaults."""
    target = np.random.default_rng(seed).uniform(0.05, 0.95, 6)
    problem = Problem(unit_genes(6), 1, seed=seed, evaluations=evaluations)
    optimizer = build_optimizer("cma_es", problem)
    assert optimizer.population_size == 9
    found = []
    while optimizer.num_asked + 9 <= evaluations:
        for genotype in generation(optimizer, target=target):
            found.append((float(np.linalg.norm(genotype - target)), genotype.tolist()))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_published_setting_finds_a_quadratic_optimum(seed: int) -> None:
    """Akiba et al. 2024: mean 0.5, sigma 1/6, population 9; the best must come within 1e-4."""
    assert min(search(seed, 1000))[0] < 1e-4


def test_the_same_seed_gives_the_same_bits() -> None:
    assert search(4, 180) == search(4, 180)


@pytest.mark.parametrize("name", FAMILY)
def test_first_generation_has_the_published_mean_and_spread(name: str) -> None:
    genes = tuple(Gene(f"g{i}", low=-2.0, high=4.0, initial=1.3) for i in range(4))
    optimizer = build(name, genes)
    drawn = np.array([optimizer.ask().genotype for _ in range(400)])
    np.testing.assert_allclose(drawn.mean(axis=0), 1.3, atol=0.2)
    np.testing.assert_allclose(drawn.std(axis=0), 1.0, atol=0.1)  # a sixth of the range


@pytest.mark.parametrize("name", FAMILY)
def test_an_optimum_in_a_corner_is_reached_by_mirroring(name: str) -> None:
    optimizer = build(name, unit_genes(3), restarts=False)
    for _ in range(70):
        last = generation(optimizer, target=np.array([0.0, 1.0, 1.0]))
    assert np.min(np.linalg.norm(np.array(last) - [0.0, 1.0, 1.0], axis=1)) < 2e-3


def test_walls_cost_one_draw_for_each_ask() -> None:
    """An optimum far outside keeps most draws beyond the walls; the library is still asked once for each candidate."""
    optimizer = build("cma_es", unit_genes(20, initial=1.0), sigma=1.0)
    library = optimizer._library
    drawn = []
    original = library._sample_solution
    library._sample_solution = lambda: drawn.append(original()) or drawn[-1]
    asked = [optimizer.ask().genotype for _ in range(10)]
    assert len(drawn) == 10
    assert np.mean(np.abs(np.array(drawn) - 0.5) > 0.5) > 0.5
    np.testing.assert_allclose(asked, [reflect(raw) for raw in drawn], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_what_was_evaluated_counts_not_what_was_proposed(name: str) -> None:
    """The distribution moves as if it had drawn the told genotypes: here, all mirrored at the centre."""
    as_drawn, mirrored = (build(name, unit_genes(2), population_size=6) for _ in range(2))
    for optimizer, sign in ((as_drawn, 1.0), (mirrored, -1.0)):
        proposals = [optimizer.ask() for _ in range(6)]
        told = [0.5 + sign * (p.genotype - 0.5) for p in proposals]
        optimizer.tell([Result(p.index, x, (float(p.genotype[0]),)) for p, x in zip(proposals, told)])
    centres = [
        np.mean([optimizer.ask().genotype - 0.5 for _ in range(300)], axis=0) for optimizer in (as_drawn, mirrored)
    ]
    assert np.linalg.norm(centres[0]) > 0.05
    np.testing.assert_allclose(centres[0], -centres[1], atol=0.04)


def test_learning_rate_adaptation_follows_the_noise() -> None:
    for noisy in (False, True):
        problem = Problem(unit_genes(3), 1, seed=0, noisy=noisy)
        assert build_optimizer("cma_es", problem).lr_adapt is noisy  # type: ignore[attr-defined]
        assert build_optimizer("cma_es", problem, {"lr_adapt": not noisy}).lr_adapt is not noisy  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FAMILY)
def test_restarts_when_fitness_is_flat_and_draws_elsewhere(name: str) -> None:
    optimizer = build(name, unit_genes(2), population_size=6)
    before = np.array(generation(optimizer, fitness=0.5))
    for _ in range(60):
        generation(optimizer, fitness=0.5)
    assert optimizer.num_restarts >= 1
    assert optimizer.population_size == 6
    assert optimizer.stop_reason() is None
    assert not np.array_equal(before, np.array(generation(optimizer, fitness=0.5)))


def test_population_doubles_at_restarts_when_wanted() -> None:
    optimizer = build("cma_es", unit_genes(2), population_size=4, double_population=True)
    while optimizer.num_restarts < 2:
        assert optimizer.tell_size == optimizer.population_size == 4 * 2**optimizer.num_restarts
        generation(optimizer, fitness=0.5)
    assert optimizer.tell_size == 16


def test_no_restart_without_budget() -> None:
    optimizer = build("cma_es", unit_genes(2), population_size=4, evaluations=40)
    for _ in range(60):
        generation(optimizer, fitness=0.5)
    assert optimizer.num_restarts == 0


@pytest.mark.parametrize("name", FAMILY)
def test_without_restarts_convergence_is_a_reason_to_stop(name: str) -> None:
    optimizer = build(name, unit_genes(2), population_size=6, restarts=False)
    for _ in range(60):
        generation(optimizer, fitness=0.5)
    assert optimizer.num_restarts == 0
    assert optimizer.stop_reason() == "the search distribution has converged"


def test_results_from_before_a_restart_are_accepted_and_forgotten() -> None:
    """Late results fill a batch of tell_size, but the new distribution waits for a population of its own."""
    late, clean = (build("cma_es", unit_genes(2), population_size=4) for _ in range(2))
    old = [late.ask() for _ in range(3)]
    for optimizer in (late, clean):
        while optimizer.num_restarts == 0:
            generation(optimizer, fitness=0.5)
    fresh = [late.ask() for _ in range(5)]
    # three late results and one fresh: nothing is learned yet
    late.tell([Result(p.index, p.genotype, (9.0,)) for p in [*old, fresh[0]]])
    with pytest.raises(ValueError, match="was told before"):
        late.tell([Result(p.index, p.genotype, (9.0,)) for p in [old[0], *fresh[1:4]]])
    late.tell([Result(p.index, p.genotype, (-float(p.genotype[0]),)) for p in fresh[1:]])
    assert late.num_restarts == 1
    assert late._library.generation == 1
    # the batch was fresh 0 to 3; fresh 4 waits for the next
    assert len(late._buffer) == 1


def test_stale_results_of_the_same_distribution_count() -> None:
    optimizer = build("cma_es", unit_genes(2), population_size=4)
    early = [optimizer.ask() for _ in range(8)]
    optimizer.tell([Result(p.index, p.genotype, (float(p.genotype[0]),)) for p in early[:4]])
    optimizer.tell([Result(p.index, p.genotype, (float(p.genotype[0]),)) for p in early[4:]])
    assert optimizer._library.generation == 2


def test_failures_rank_last() -> None:
    """Failing above one half pushes the search below it, though nothing else tells the candidates apart."""
    optimizer = build("cma_es", unit_genes(1), population_size=8)
    for _ in range(10):
        proposals = [optimizer.ask() for _ in range(8)]
        optimizer.tell([Result(p.index, p.genotype, None if p.genotype[0] > 0.5 else (1.0,)) for p in proposals])
    assert np.mean([optimizer.ask().genotype[0] < 0.5 for _ in range(40)]) > 0.8


@pytest.mark.parametrize("name", FAMILY)
def test_a_generation_of_failures_leaves_the_distribution_alone(name: str) -> None:
    failed, idle = (build(name, unit_genes(2), population_size=4) for _ in range(2))
    proposals = [failed.ask() for _ in range(4)]
    failed.tell([Result(p.index, p.genotype, None) for p in proposals])
    for _ in range(4):
        idle.ask()
    assert failed.ask().genotype.tolist() == idle.ask().genotype.tolist()


def test_a_broken_distribution_restarts_even_with_restarts_off() -> None:
    optimizer = build("cma_es", unit_genes(2), population_size=4, restarts=False)
    optimizer._library._mean[:] = math.nan
    assert np.all(np.isfinite(optimizer.ask().genotype))
    assert optimizer.num_restarts == 1


def test_mixed_genes_find_the_right_choices() -> None:
    genes = (
        Gene("share", low=0.0, high=2.0, initial=1.0),
        Gene("block", GeneKind.INTEGER, 0, 20, 3),
        Gene("flag", GeneKind.INTEGER, 0, 1, 0),
        Gene("method", GeneKind.CATEGORY, choices=("a", "b", "c", "d"), initial=0),
        Gene("fixed", GeneKind.CATEGORY, choices=("only",), initial=0),
    )
    optimizer = build("catcma", genes)

    def fitness(x: Array) -> float:
        return -float((x[0] - 0.3) ** 2 + 0.01 * (x[1] - 14) ** 2 + (x[2] != 1) + (x[3] != 2))

    best: tuple[float, Array] = (-math.inf, np.zeros(5))
    for _ in range(60):
        proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
        results = [Result(p.index, p.genotype, (fitness(p.genotype),)) for p in proposals]
        best = max(best, *((fitness(p.genotype), p.genotype) for p in proposals), key=lambda pair: pair[0])
        optimizer.tell(results)
    assert best[1][1:].tolist() == [14, 1, 2, 0]
    assert best[1][0] == pytest.approx(0.3, abs=0.05)


def test_a_recorded_mixed_genotype_is_told_in_the_librarys_form() -> None:
    genes = (
        Gene("share", low=0.0, high=2.0, initial=1.0),
        Gene("block", GeneKind.INTEGER, 0, 4, 3),
        Gene("method", GeneKind.CATEGORY, choices=("a", "b"), initial=0),
        Gene("other", GeneKind.CATEGORY, choices=("a", "b", "c"), initial=0),
    )
    solution = build("catcma", genes)._raw_of(np.array([0.5, 1.0, 1.0, 2.0]))
    assert solution._v_raw.tolist() == [0.25, 0.25]
    assert solution.c.tolist() == [[False, True, False], [False, False, True]]
