"""The archive of M2N2 does the paper's sums, and the optimizer over it keeps the contract of ask and tell."""

import random

import numpy as np
import pytest

from evomerge.search.base import Problem, Proposal, Result
from evomerge.search.lineage import Chromosome, Lineage
from evomerge.search.m2n2 import M2n2
from evomerge.search.niche_archive import NicheArchive
from evomerge.search.seed_gram import CellGram

DOCUMENTS, SIZE = 40, 300


def right_or_wrong(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = (rng.random((count, DOCUMENTS)) < rng.uniform(0.2, 0.7, (count, 1))).astype(float)
    rows[:, :3] = 0.0  # nobody solves these
    return rows


def filled(rows: np.ndarray, size: int, **rules: object) -> NicheArchive:
    archive = NicheArchive(size, rows.shape[1], **rules)  # type: ignore[arg-type]
    for number, row in enumerate(rows):
        archive.add(number, row)
    return archive


def test_without_competition_the_archive_keeps_the_best() -> None:
    rows = right_or_wrong(60)
    archive = filled(rows, 8, alpha=0.0)
    assert archive.fitness().tolist() == archive.scores.sum(axis=1).tolist()
    best = sorted(rows.sum(axis=1), reverse=True)[:8]
    assert sorted(archive.fitness(), reverse=True) == best


def test_with_competition_the_documents_that_anyone_solves_are_shared_out() -> None:
    rows = right_or_wrong(30)
    archive = filled(rows, 10)
    solved = (archive.scores.sum(axis=0) > 0).sum()
    assert solved < DOCUMENTS
    assert archive.fitness().sum() == pytest.approx(solved, rel=1e-12)


def test_competition_keeps_who_solves_what_nobody_else_does() -> None:
    rows = np.zeros((5, 6))
    rows[:4, :4] = 1.0
    rows[1, 3] = 0.0
    rows[4, 5] = 1.0  # worst by mean, alone on its document
    kept, plain = (filled(rows, 4, alpha=alpha) for alpha in (1.0, 0.0))
    assert 4 in kept.members
    assert 1 not in kept.members
    assert 4 not in plain.members


def test_of_equals_the_lowest_slot_leaves_and_empty_slots_go_first() -> None:
    rows = right_or_wrong(1).repeat(6, axis=0)
    archive = NicheArchive(4, DOCUMENTS)
    assert [archive.add(number, row) for number, row in enumerate(rows)] == [0, 1, 2, 3, 0, 0]
    assert archive.members == [5, 1, 2, 3]
    assert archive.add(6, np.zeros(DOCUMENTS)) is None
    assert archive.best() == 0


def test_the_second_parent_is_drawn_by_what_it_adds() -> None:
    rows = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=float)
    archive = filled(rows, 5)
    assert archive.attraction_to(0).tolist() == [0, 0.5, 1.5, 0, 0]
    rng = np.random.default_rng(0)
    drawn = [archive.parents(rng) for _ in range(4000)]
    first = np.bincount([a for a, _ in drawn], minlength=5) / len(drawn)
    np.testing.assert_allclose(first, archive.fitness() / 4, atol=0.03)
    second = np.bincount([b for a, b in drawn if a == 0], minlength=5)
    np.testing.assert_allclose(second / second.sum(), [0, 0.25, 0.75, 0, 0], atol=0.04)


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.ones((3, 4)), np.eye(4)[:1]])
def test_parents_are_found_where_nobody_adds_anything(rows: np.ndarray) -> None:
    for attraction in (True, False):
        archive = filled(rows, 5, attraction=attraction)
        rng = np.random.default_rng(1)
        drawn = np.array([archive.parents(rng) for _ in range(60)])
        assert set(drawn.ravel().tolist()) == set(range(len(rows)))


def test_graded_scores_have_the_best_as_capacity() -> None:
    rows = np.array([[0.5, 0.2, 0.0], [0.25, 0.2, 0.0]])
    archive = filled(rows, 3, capacity="best")
    np.testing.assert_allclose(archive.fitness(), [0.5 * 2 / 3 + 0.1, 0.5 / 3 + 0.1, 0.0])


@pytest.mark.parametrize("bad", [np.full(4, np.nan), np.full(4, -0.1), np.zeros(3), np.zeros((1, 4))])
def test_scores_that_are_none_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite scores of 0 or more"):
        NicheArchive(2, 4).add(0, bad)


VECTORS = np.random.default_rng(5).standard_normal((3, SIZE))
PLACES = np.random.default_rng(6).integers(SIZE, size=DOCUMENTS)


def make(**settings: object) -> M2n2:
    problem = Problem((), 1, 11, seeds=CellGram.of_vectors(VECTORS, 64))
    return M2n2(problem, population_size=6, **settings)  # type: ignore[arg-type]


def score(proposal: Proposal) -> Result:
    """A document is solved where the model is above 0.3 at its place; some candidates fail."""
    if proposal.index % 7 == 5:
        return Result(proposal.index, proposal.genotype, None)
    rows = (Lineage.from_genotype(proposal.genotype).values(VECTORS)[PLACES] > 0.3).astype(float)
    return Result(proposal.index, proposal.genotype, (float(rows.mean()),), document_scores=rows)


def search(optimizer: M2n2, steps: int, workers: int = 1) -> tuple[list[bytes], list[float]]:
    order = random.Random(3)
    flying: list[Proposal] = []
    asked, values = [], []
    for _ in range(steps):
        while len(flying) < workers:
            flying.append(optimizer.ask())
            asked.append(flying[-1].genotype.tobytes())
        result = score(flying.pop(order.randrange(len(flying))))
        values += [] if result.fitness is None else [result.fitness[0]]
        optimizer.tell([result])
    return asked, values


@pytest.mark.parametrize("workers", [1, 5])
def test_a_search_repeats_and_finds_better_merges_than_seeds(workers: int) -> None:
    asked, values = search(make(), 120, workers)
    assert asked == search(make(), 120, workers)[0]
    assert max(values) > max(values[:3])
    assert asked != search(make(attraction=False), 120, workers)[0]
    assert asked != search(make(competition=False), 120, workers)[0]


def test_it_begins_with_the_seeds_and_random_merges_of_them() -> None:
    optimizer = make()
    first = [optimizer.ask() for _ in range(6)]
    assert [one.parent_indices for one in first] == [()] * 6
    seeds = [Lineage.from_genotype(one.genotype) for one in first[:3]]
    assert [one.coefficients.tolist() for one in seeds] == np.eye(3)[:, None].tolist()
    assert all(Lineage.from_genotype(one.genotype).num_segments == 2 for one in first[3:])
    optimizer.tell([score(one) for one in first])
    child = optimizer.ask()
    assert len(child.parent_indices) == 2
    assert optimizer.lineage(child.parent_indices[0]).size == SIZE
    early = make(warm_up=0)
    for _ in range(4):
        assert early.ask().parent_indices == ()  # nothing was told yet


def test_switches_and_chromosomes() -> None:
    plain = make(split_point=False)
    search(plain, 60)
    assert plain.archive is not None
    members = [member for member in plain.archive.members if member is not None]
    assert {plain.lineage(member).num_segments for member in members} == {1}
    noisy = make(mutation_sigma=0.1, warm_up=0)
    search(noisy, 12)
    assert Lineage.from_genotype(noisy.ask().genotype).noises
    groups = (Chromosome("low", ((0, 100),)), Chromosome("high", ((100, SIZE),)))
    split = make(chromosomes=groups, warm_up=1)
    third = [split.ask() for _ in range(4)][-1]
    assert Lineage.from_genotype(third.genotype).num_segments == 4
    with pytest.raises(ValueError, match="chromosomes end"):
        make(chromosomes=groups[:1])


def test_bad_results_are_refused_and_change_nothing() -> None:
    optimizer, control = make(), make()
    good = [score(optimizer.ask()) for _ in range(4)]
    for _ in range(4):
        control.ask()
    row = good[0].document_scores
    assert row is not None
    bad = [
        Result(0, good[0].genotype, (0.5,)),
        Result(0, good[0].genotype, (0.5,), document_scores=row * np.nan),
        Result(0, good[0].genotype, (0.5,), document_scores=row[:-1]),
        Result(0, good[0].genotype, (float("nan"),), document_scores=row),
        Result(0, good[0].genotype[:-1], (0.5,), document_scores=row),
        Result(9, good[0].genotype, (0.5,), document_scores=row),
    ]
    for one in bad:
        with pytest.raises(ValueError, match="proposal"):
            optimizer.tell([*good[1:], one])
    optimizer.tell(good[::-1])
    control.tell(good)
    assert optimizer.ask().genotype.tobytes() == control.ask().genotype.tobytes()
    with pytest.raises(ValueError, match="seed models"):
        M2n2(Problem((), 1, 0))
