"""Coordinates between genotypes and the unit cube."""

import numpy as np
import pytest

from evomerge.search.gene_box import GeneBox, is_constant, num_values, reflect
from evomerge.terms import Gene, GeneKind

GENES = (
    Gene("share", low=-1.0, high=3.0, initial=9.0),
    Gene("block", GeneKind.INTEGER, 2, 5, 2.6),
    Gene("method", GeneKind.CATEGORY, low=7, high=9, choices=("a", "b", "c"), initial=2),
    Gene("still", low=0.3, high=0.3, initial=0.3),
)


def test_reflect_mirrors_at_both_walls() -> None:
    inside = np.array([0.0, 0.25, 1.0])
    assert reflect(inside).tolist() == inside.tolist()
    folded = reflect(np.array([-0.25, 1.25, 2.0, 2.5, -1.75, -3.0]))
    np.testing.assert_allclose(folded, [0.25, 0.75, 0.0, 0.5, 0.25, 1.0])


def test_unit_coordinates_round_trip() -> None:
    box = GeneBox(GENES)
    genotype = np.array([0.5, 4.0, 1.0, 0.3])
    assert box.to_unit(genotype).tolist() == [0.375, pytest.approx(2 / 3), 0.5, 0.0]
    assert box.from_unit(box.to_unit(genotype)).tolist() == genotype.tolist()


def test_walls_are_reached_exactly() -> None:
    box = GeneBox([Gene("g", low=0.1, high=0.7)])
    assert box.from_unit(np.ones(1)).tolist() == [0.7]
    assert box.from_unit(np.zeros(1)).tolist() == [0.1]


def test_uniform_draws_give_every_whole_number_the_same_share() -> None:
    box = GeneBox(GENES)
    draws = np.array([box.from_uniform(np.full(4, (i + 0.5) / 12)) for i in range(12)])
    assert np.unique(draws[:, 1], return_counts=True)[1].tolist() == [3, 3, 3, 3]
    assert np.unique(draws[:, 2], return_counts=True)[1].tolist() == [4, 4, 4]
    assert set(draws[:, 3]) == {0.3}


def test_initial_is_made_legal() -> None:
    assert GeneBox(GENES).initial.tolist() == [3.0, 3.0, 2.0, 0.3]


def test_constant_genes() -> None:
    assert [is_constant(gene) for gene in GENES] == [False, False, False, True]
    assert is_constant(Gene("c", GeneKind.CATEGORY, choices=("only",)))
    assert is_constant(Gene("i", GeneKind.INTEGER, 3, 3))
    assert num_values(GENES[1]) == 4
    assert num_values(GENES[2]) == 3
