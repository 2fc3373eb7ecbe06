"""Archives of elites, MAP-Elites and CycleQD."""

import numpy as np
import pytest

from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.search.cycleqd import CycleQd, GenotypeMutation
from evomerge.search.elite_archive import AxisRanges, Elite, EliteArchive
from evomerge.search.variation import Variation
from evomerge.terms import Gene, GeneKind

GENES = (
    *(Gene(f"g{i}", low=-1.0, high=2.0) for i in range(4)),
    Gene("n", GeneKind.INTEGER, 0, 6, 3),
    Gene("c", GeneKind.CATEGORY, choices=("x", "y", "z"), initial=1),
)


def elite(index: int, *fitness: float, violation: float = 0.0) -> Elite:
    return Elite(index, np.zeros(len(GENES)), fitness, violation)


def test_a_cell_keeps_the_best_and_of_equals_the_first() -> None:
    archive = EliteArchive(quality=0, num_objectives=2, num_bins=10)
    told = [elite(0, 0.3, 0.51), elite(1, 0.9, 0.55), elite(2, 0.5, 0.59), elite(3, 0.9, 0.52), elite(4, 0.1, 0.95)]
    assert [archive.add(one) for one in told] == [True, True, False, False, True]
    assert [one.index for one in archive.elites] == [1, 4]
    rng = np.random.default_rng(0)
    best: dict[tuple[int, ...], float] = {}
    archive = EliteArchive(quality=2, num_objectives=3, num_bins=5)
    for index, row in enumerate(rng.random((300, 3))):
        archive.add(elite(index, *row))
        cell = archive.cell_of(row.tolist())
        best[cell] = max(best.get(cell, 0.0), row[2])
    assert {archive.cell_of(one.fitness): one.fitness[2] for one in archive.elites} == best


def test_a_kept_constraint_beats_quality_in_a_cell() -> None:
    archive = EliteArchive(0, 2, 10)
    for one in (elite(0, 0.9, 0.5, violation=0.2), elite(1, 0.8, 0.5, violation=0.1), elite(2, 0.1, 0.5)):
        assert archive.add(one)
    assert not archive.add(elite(3, 1.0, 0.5, violation=0.01))


def test_outside_the_range_belongs_to_the_outermost_bins() -> None:
    archive = EliteArchive(0, 3, 4)
    archive.set_ranges(np.array([[0.0, 1.0], [0.2, 0.6], [5.0, 5.0]]))
    assert archive.cell_of((9.0, -1.0, 5.0)) == (0, 0)
    assert archive.cell_of((9.0, 0.6, 7.0)) == (3, 0)
    assert archive.cell_of((9.0, 0.39, 3.0)) == (1, 0)


def test_other_ranges_sort_members_anew() -> None:
    archive = EliteArchive(0, 2, 2)
    for one in (elite(0, 0.5, 0.1), elite(1, 0.6, 0.9)):
        archive.add(one)
    archive.set_ranges(np.array([[0.0, 1.0], [0.0, 10.0]]))
    assert [one.index for one in archive.elites] == [1]


def test_ranges_of_experts_and_learnt_ones() -> None:
    known = AxisRanges(2, [(0.2, -4.0), (0.8, -2.0)])
    np.testing.assert_allclose(known.values, [[0.85 * 0.2, 1.15 * 0.8], [-4.6, -1.7]])
    known.see((5.0, 5.0))
    np.testing.assert_allclose(known.values[0], [0.17, 0.92])
    learnt = AxisRanges(2)
    for fitness in ((0.0, 1.0), (1.0, 0.0), (-50.0, -50.0)):  # the last is on no front
        learnt.see(fitness)
    np.testing.assert_allclose(learnt.values, [[-0.15, 1.15]] * 2)


def cycleqd(num_objectives: int = 3) -> CycleQd:
    experts = tuple(tuple(float(i == j) for j in range(num_objectives)) for i in range(num_objectives))
    problem = Problem(GENES, num_objectives, 4, evaluations=200, expert_fitness=experts)
    built = build_optimizer("cycleqd", problem, {"num_initial_random": 6, "population_size": 3})
    assert isinstance(built, CycleQd)
    return built


def tell_all(optimizer: CycleQd, count: int) -> dict[int, tuple[float, ...]]:
    told = {}
    for _ in range(count):
        proposal = optimizer.ask()
        told[proposal.index] = tuple(float(v) for v in np.cos(proposal.genotype[:3] * (1 + np.arange(3))))
        optimizer.tell([Result(proposal.index, proposal.genotype, told[proposal.index])])
    return told


def test_archives_take_turns_and_each_has_its_own_quality() -> None:
    optimizer = cycleqd()
    assert [archive.quality for archive in optimizer.archives] == [0, 1, 2]
    assert [archive.axes for archive in optimizer.archives] == [[1, 2], [0, 2], [0, 1]]
    assert [optimizer.active(index).quality for index in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    told = tell_all(optimizer, 40)
    for archive in optimizer.archives:
        best: dict[tuple[int, ...], float] = {}
        for fitness in told.values():
            cell = archive.cell_of(fitness)
            best[cell] = max(best.get(cell, -9.0), fitness[archive.quality])
        assert {archive.cell_of(one.fitness): one.fitness[archive.quality] for one in archive.elites} == best
    child = optimizer.ask()
    members = {one.index for one in optimizer.active(child.index).elites}
    assert len(child.parent_indices) == 2
    assert set(child.parent_indices) <= members


def test_parents_are_drawn_by_the_product_of_their_scores() -> None:
    chances = cycleqd(2).chances([elite(0, 0.0, 0.0), elite(1, 1.0, 0.0), elite(2, 1.0, 1.0)])
    weights = np.array([0.5 * 0.5, 0.8 * 0.5, 0.8 * 0.8])
    np.testing.assert_allclose(chances, weights / weights.sum())
    np.testing.assert_allclose(cycleqd(2).chances([elite(0, 1.0, 1.0), elite(1, 1.0, 1.0)]), [0.5, 0.5])


def test_no_mutation_is_the_identity_and_equal_parents_have_equal_children() -> None:
    variation, rng = Variation(GENES), np.random.default_rng(0)
    genotype = np.array([-1.0, 2.0, 0.25, 0.5, 5.0, 2.0])
    unit = variation.average(rng, genotype, genotype, 0.03)
    np.testing.assert_allclose(GenotypeMutation(variation, 0.0)(rng, unit), genotype, atol=1e-12)
    assert not np.allclose(GenotypeMutation(variation, 0.1)(rng, unit), genotype)


@pytest.mark.parametrize("kind", ["line", "simulated_binary"])
def test_children_are_legal_and_parents_stay(kind: str) -> None:
    variation, rng = Variation(GENES), np.random.default_rng(1)
    a, b = (variation.box.from_uniform(rng.random(len(GENES))) for _ in range(2))
    before = a.copy(), b.copy()
    settings = (0.3, 0.5) if kind == "line" else (5.0, 5.0)
    children = np.array([getattr(variation, kind)(rng, a, b, *settings) for _ in range(200)])
    assert np.all(children >= variation.box.low)
    assert np.all(children <= variation.box.high)
    assert np.array_equal(children[:, 4:], np.rint(children[:, 4:]))
    assert len(np.unique(children[:, 5])) == 3  # a choice neither parent has is found too
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])
