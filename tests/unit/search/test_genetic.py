"""The genetic algorithm's lists: what edits and crossover may give, and whether a planted order is found."""

from itertools import pairwise

import numpy as np
import pytest

from evomerge.search.base import Optimizer, Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.search.front import crowding_distances, non_dominated
from evomerge.search.gene_lists import GeneList, Items, cross, edit, find_lists, random_items
from evomerge.terms import Gene, GeneKind

BLOCKS = 6
ORDER = tuple(range(BLOCKS))
SHUFFLED = (3, 5, 0, 4, 1, 2)


def route_genes(places: int = 9, start: Items = SHUFFLED) -> tuple[Gene, ...]:
    choices = (*(f"m.{block}" for block in range(BLOCKS)), "nothing")
    held = (*start, *[BLOCKS] * (places - len(start)))
    return tuple(
        Gene(f"hop.{at}", GeneKind.CATEGORY, choices=choices, initial=held[at], sequence="hops") for at in range(places)
    )


def edit_distance(one: Items, other: Items) -> int:
    row = list(range(len(other) + 1))
    for i, left in enumerate(one):
        diagonal, row[0] = row[0], i + 1
        for j, right in enumerate(other):
            diagonal, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, diagonal + (left != right))
    return row[-1]


def search(optimizer: Optimizer, budget: int) -> tuple[list[np.ndarray], list[tuple[int, ...]], int | None]:
    """Genotypes and parents, and after how many evaluations the planted order was found."""
    the_list = find_lists(optimizer.problem.genes)[0]
    genotypes, parents = [], []
    while optimizer.num_asked < budget:
        results = []
        for proposal in [optimizer.ask() for _ in range(optimizer.population_size)]:
            genotypes.append(proposal.genotype)
            parents.append(proposal.parent_indices)
            items = the_list.items(proposal.genotype)
            if items == ORDER:
                return genotypes, parents, len(genotypes)
            results.append(Result(proposal.index, proposal.genotype, (-float(edit_distance(items, ORDER)),)))
        optimizer.tell(results)
    return genotypes, parents, None


def test_edits_and_crossover_stay_in_the_list() -> None:
    rng = np.random.default_rng(0)
    the_list = GeneList(places=(4, 5, 6, 7), num_choices=3)
    lengths, distances = set(), []
    for _ in range(3000):
        one, other = random_items(the_list, rng), random_items(the_list, rng)
        changed, child = edit(one, the_list, rng), cross(one, other, the_list, rng)
        for items in (changed, child):
            assert len(items) <= 4
            assert all(0 <= choice < 3 for choice in items)
        assert set(child) <= set(one) | set(other)
        lengths.add(len(child))
        distances.append(edit_distance(one, changed))
    assert lengths == {0, 1, 2, 3, 4}
    assert np.mean(np.array(distances) <= 2) > 0.9  # small edits


def test_crossover_cuts_where_parents_are_alike() -> None:
    rng = np.random.default_rng(1)
    the_list = GeneList(tuple(range(12)), 10)
    first, second = (0, 1, 2, 3, 4), (9, 9, 0, 1, 2, 3, 4)
    followers = {
        pair for _ in range(300) for child in [cross(first, second, the_list, rng)] for pair in pairwise(child)
    }
    assert followers - {(9, 9), (9, 0)} == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_places_of_two_lists_may_stand_between_other_genes() -> None:
    genes = (
        Gene("a.0", GeneKind.CATEGORY, choices=("x", "-"), sequence="a", initial=1),
        Gene("scale"),
        Gene("b.0", GeneKind.CATEGORY, choices=("y", "z", "-"), sequence="b", initial=0),
        Gene("a.1", GeneKind.CATEGORY, choices=("x", "-"), sequence="a", initial=0),
    )
    assert find_lists(genes) == (GeneList((0, 3), 1), GeneList((2,), 2))
    optimizer = build_optimizer("ga", Problem(genes, 1, seed=3, evaluations=100))
    assert optimizer.ask().genotype.tolist() == [0.0, 0.5, 0.0, 1.0]
    odd = (genes[0], Gene("a.2", GeneKind.CATEGORY, choices=("w", "-"), sequence="a"))
    with pytest.raises(ValueError, match="list 'a'"):
        find_lists(odd)


def test_finds_a_planted_order_that_random_search_does_not() -> None:
    budget = 400
    ga = [search(build_optimizer("ga", Problem(route_genes(), 1, seed, budget)), budget)[2] for seed in range(5)]
    random = [
        search(build_optimizer("random", Problem(route_genes(), 1, seed, budget)), budget)[2] for seed in range(5)
    ]
    assert sum(found is not None for found in ga) >= 4, ga
    assert random == [None] * 5


def test_proposals_are_compact_new_and_know_their_parents() -> None:
    optimizer = build_optimizer("ga", Problem(route_genes(start=(5, 4, 3)), 1, 1, 200), {"population_size": 10})
    genotypes, parents, _ = search(optimizer, 200)
    nothing = [list(genotype == BLOCKS) for genotype in genotypes]
    assert nothing == [sorted(places) for places in nothing]
    assert len({genotype.tobytes() for genotype in genotypes}) == len(genotypes)
    assert parents[:10] == [()] * 10
    assert {len(found) for found in parents[10:]} == {1, 2}
    assert all(parent < child for child, found in enumerate(parents) for parent in found)
    shared = [np.argmin(np.append(genotype == genotypes[0], False)) for genotype in genotypes[1:10]]
    assert max(shared) > 0  # mutants of the initial genotype begin as it does


def test_two_objectives_give_a_front_from_short_to_right() -> None:
    optimizer = build_optimizer("ga", Problem(route_genes(), 2, 2, 600), {"population_size": 20})
    the_list = find_lists(optimizer.problem.genes)[0]
    told = []
    while optimizer.num_asked < 600:
        proposals = [optimizer.ask() for _ in range(20)]
        held = [the_list.items(proposal.genotype) for proposal in proposals]
        fitness = [(-float(edit_distance(items, ORDER)), -float(len(items))) for items in held]
        told += fitness
        optimizer.tell([Result(p.index, p.genotype, values) for p, values in zip(proposals, fitness, strict=True)])
    front = np.array(told)[non_dominated(told)]
    assert {(-values).sum() for values in front} == {float(BLOCKS)}  # every length on the true front
    assert len(front) == BLOCKS + 1


def test_crowding_counts_copies_once() -> None:
    rows = [[0.0, 4.0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.5], [4.0, 0.0]]
    np.testing.assert_allclose(crowding_distances(rows), [np.inf, 0.5 + 2.5 / 4, 0.0, 0.75 + 0.5, np.inf])
    assert crowding_distances([[1.0], [1.0]]).tolist() == [0.0, 0.0]
