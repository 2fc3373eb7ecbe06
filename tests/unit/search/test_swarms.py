"""PSO-Merging, Model Swarms and GENOME: the published rules, first candidates, and what they do with bad results."""

import dataclasses

import numpy as np
import pytest

from evomerge.search.base import Optimizer, Problem, Result
from evomerge.search.catalogue import build_optimizer, get_spec, validate_optimizer
from evomerge.search.genome import Genome, Member, member_shares
from evomerge.search.model_swarms import ModelSwarms, blended
from evomerge.search.pso import Pso
from evomerge.search.swarm import Place
from evomerge.search.swarm_start import expert_points, interpolant
from evomerge.terms import Gene

EXPERTS = tuple(
    Gene(f"weight/{expert}/{part}", low=0.0, high=1.5, initial=0.25)
    for expert in ("math", "code")
    for part in ("early", "late")
)
SWARMS = ("pso", "model_swarms")
ALL = (*SWARMS, "genome")


def build(name: str, genes: tuple[Gene, ...] = EXPERTS, seed: int = 3, **settings: object) -> Optimizer:
    return build_optimizer(name, Problem(genes, 1, seed, evaluations=1000), settings)


def sphere(genotype: np.ndarray) -> float:
    return -float(np.sum((genotype - 0.7) ** 2))


def generation(optimizer: Optimizer) -> list[Result]:
    asked = [optimizer.ask() for _ in range(optimizer.population_size)]
    return [Result(one.index, one.genotype, (sphere(one.genotype),)) for one in asked]


def test_published_settings_are_the_defaults():
    defaults = {name: {one.name: one.default for one in get_spec(name).settings} for name in ALL}
    assert [defaults["pso"][key] for key in ("inertia", "cognitive", "social")] == [0.2, 2.0, 2.0]
    assert [defaults["model_swarms"][key] for key in ("step_decay", "patience", "restart_after")] == [0.95, 10, 5]
    genome = ("population_size", "mutation_rate", "elite", "step", "step_decay", "inertia", "repel")
    assert [defaults["genome"][key] for key in genome] == [10, 0.1, 0.1, 0.5, 0.95, 0.2, 0.1]


def test_swarms_begin_at_the_experts():
    initial, math, code = [0.25] * 4, [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]
    pso = [one.genotype.tolist() for one in generation(build("pso"))]
    assert len(pso) == 5  # 2 E + 1
    assert pso[:3] == [initial, math, code]
    assert pso[3][2:] == pso[4][:2] == [0.0, 0.0]
    assert pso[3][0] != pso[3][1]  # each gene has a scale of its own
    swarm = np.array([one.genotype for one in generation(build("model_swarms"))])
    assert swarm[:3].tolist() == [initial, math, code]
    between = swarm[3:]
    assert len(between) == 17
    assert np.allclose(between[:, 0] + between[:, 2], 1.0)
    genome = [one.genotype.tolist() for one in generation(build("genome"))]
    assert genome[:4] == [initial, [0.5] * 4, math, code]


def test_interpolants_may_go_beyond_an_expert_as_the_published_code_does():
    ends = np.array([[0.25, 0.75], [0.75, 0.25]])
    inside = np.array([interpolant(ends, np.random.default_rng(at), 1.0) for at in range(200)])
    beyond = np.array([interpolant(ends, np.random.default_rng(at), 2.0) for at in range(200)])
    assert inside.min() >= 0.25
    assert inside.max() <= 0.75
    assert 0.35 < np.mean((beyond < 0.25).any(axis=1)) < 0.65
    assert beyond.min() >= 0.0


def test_expert_points_stay_in_the_ranges():
    genes = (
        Gene("weight/a", low=0.2, high=0.6),
        Gene("weight/b", low=-1.0, high=3.0),
        Gene("still", low=0.3, high=0.3),
    )
    assert expert_points(genes)[:, :2].tolist() == [[1.0, 0.25], [0.0, 0.5]]


def test_pso_moves_by_its_rule():
    """One gene and known places: the second move of each particle lies between what the rule's draws allow."""
    pso = build("pso", draws="particle", inertia=0.0, cognitive=0.0, social=1.0, population_size=5)
    first = generation(pso)
    pso.tell(first)
    best = max(first, key=lambda one: one.fitness or (-9.0,))
    for before, after in zip(first, generation(pso)):
        step, way = after.genotype - before.genotype, best.genotype - before.genotype
        if before.index == best.index:
            continue  # it would stand still, so it is elsewhere now
        share = step[np.abs(way) > 1e-9] / way[np.abs(way) > 1e-9]
        assert np.allclose(share, share[0])
        assert 0.0 <= share[0] <= 1.0


def test_a_particle_that_would_stand_still_is_put_elsewhere():
    for restarts in (True, False):
        pso = build("pso", restarts=restarts)
        first = generation(pso)
        pso.tell(first)
        best = max(range(5), key=lambda at: first[at].fitness or (-9.0,))
        moved = np.abs(generation(pso)[best].genotype - first[best].genotype).max()
        assert (moved > 0.01) == restarts


def test_velocity_is_a_weighted_mean_of_its_directions():
    rng = np.random.default_rng(0)
    for columns in (1, 3):
        directions, factors = rng.standard_normal((4, 3)), rng.random((4, columns))
        found = blended(directions, factors)
        shares = factors / factors.sum(axis=0)
        assert np.all(shares >= 0)
        assert np.allclose(shares.sum(axis=0), 1.0)
        assert np.allclose(found, (shares * directions).sum(axis=0))
        assert np.all(found <= directions.max(axis=0) + 1e-12)
        assert np.all(found >= directions.min(axis=0) - 1e-12)


def test_the_worst_place_never_gets_better_and_the_best_never_worse():
    swarm = build("model_swarms", population_size=6)
    assert isinstance(swarm, ModelSwarms)
    worst, best = -np.inf, np.inf
    for _ in range(8):
        swarm.tell(generation(swarm))
        assert swarm._worst is not None
        assert swarm._best is not None
        assert swarm._worst.key[1] >= worst
        assert swarm._best.key[1] <= best
        worst, best = swarm._worst.key[1], swarm._best.key[1]
    assert worst > best


def test_a_swarm_without_progress_goes_back_to_its_best_places_and_then_ends():
    swarm = build("model_swarms", population_size=4, patience=7, restart_after=3, min_step=0.0, step_decay=0.5)
    assert isinstance(swarm, ModelSwarms)
    swarm.tell(generation(swarm))
    places = [particle.best for particle in swarm._particles]
    for told in range(1, 8):
        assert swarm.stop_reason() is None
        asked = [swarm.ask() for _ in range(4)]
        if told == 4:  # after three results without progress, by a step of 0.8 * 0.5 ** 3
            for one, place in zip(asked, places):
                assert place is not None
                assert np.abs(swarm._box.to_unit(one.genotype) - place.unit).max() <= 0.1 + 1e-9
        swarm.tell([Result(one.index, one.genotype, (-50.0,)) for one in asked])
    assert "7 moves" in str(swarm.stop_reason())
    assert build("model_swarms", patience=0).stop_reason() is None


def test_one_draw_for_all_genes_stays_in_the_hull_of_the_experts():
    """Hence `auto` draws for each gene where there are more genes than particles span."""
    for draws, leaves in (("particle", False), ("gene", True), ("auto", True)):
        swarm = build("model_swarms", draws=draws, population_size=6)
        for _ in range(4):
            swarm.tell(generation(swarm))
        asked = np.array([one.genotype for one in generation(swarm)])
        assert np.any(np.abs(asked[:, 0] - asked[:, 1]) > 1e-6) == leaves


@pytest.mark.parametrize("name", ALL)
def test_stopped_and_failed_ones_are_never_parents(name: str):
    optimizer = build(name, population_size=6)
    complete: set[int] = set()
    for _ in range(5):
        asked = [optimizer.ask() for _ in range(6)]
        assert all(set(one.parent_indices) <= complete for one in asked)
        results = []
        for one in asked:
            if one.index % 3 == 1:
                results.append(Result(one.index, one.genotype, None, standing=(5.0, 16.0)))
            elif one.index % 3 == 2:
                results.append(Result(one.index, one.genotype, None))
            else:
                complete.add(one.index)
                results.append(Result(one.index, one.genotype, (float(one.genotype.sum()),)))
        optimizer.tell(results)
    assert any(one.parent_indices for one in asked)


@pytest.mark.parametrize("name", SWARMS)
def test_a_late_result_still_counts(name: str):
    """A particle whose first result is late moves on; the result, the best of all, then draws the others."""
    swarm = build(name, population_size=5)
    first = generation(swarm)
    late = dataclasses.replace(first[2], fitness=(9.0,))
    swarm.tell([one for one in first if one is not first[2]])
    swarm.tell([*generation(swarm), late])
    assert all(2 in one.parent_indices for one in (swarm.ask() for _ in range(4)))


def member(fitness: float, index: int, violation: float = 0.0) -> Member:
    key = (violation, 0.0 if violation else -fitness)
    return Member(Place(index, np.zeros(2), key), fitness)


def test_fitness_weights_the_parents_of_genome():
    assert member_shares([member(0.6, 0), member(0.2, 1)]).tolist() == pytest.approx([0.75, 0.25])
    ranks = [2 / 3, 1 / 3]
    assert member_shares([member(-1.0, 0), member(-4.0, 1)]).tolist() == pytest.approx(ranks)
    assert member_shares([member(0.1, 0), member(0.9, 1, violation=0.5)]).tolist() == pytest.approx(ranks)
    assert member_shares([member(0.0, 0), member(0.0, 1)]).tolist() == pytest.approx(ranks)


def test_genome_keeps_its_elite_and_chooses_the_rest_by_tournament():
    genome = build("genome", population_size=10)
    assert isinstance(genome, Genome)
    pool = [member(at / 20, at) for at in range(20)]
    chosen = genome._select(pool)
    assert len(chosen) == 10
    assert chosen[0] is pool[19]
    assert pool[0] not in chosen[:9]
    assert len({one.place.index for one in chosen}) == 10
    assert np.mean([one.fitness for one in chosen]) > np.mean([one.fitness for one in pool])


def test_children_are_means_and_mutants_move_a_gene():
    for probability in (0.0, 1.0):
        genome = build("genome", crossover_probability=probability, seed=5)
        places = {}
        results = generation(genome)
        places |= {one.index: one.genotype for one in results}
        genome.tell(results)
        for one in (genome.ask() for _ in range(10)):
            parents = np.array([places[index] for index in one.parent_indices])
            assert len(parents) == 1 + probability
            if probability:
                assert np.all(one.genotype <= parents.max(axis=0) + 1e-12)
                assert np.all(one.genotype >= parents.min(axis=0) - 1e-12)
            else:
                assert 1 <= np.sum(one.genotype != parents[0]) <= 4


def test_succession_moves_every_second_candidate():
    """Moved members fly on: without children a whole population has a velocity after some generations."""
    plus = build("genome", succession=True, crossover_probability=0.0)
    assert isinstance(plus, Genome)
    for _ in range(4):
        plus.tell(generation(plus))
        assert plus._best is not None
        asked = [(plus._ledger.next_index, plus.ask()) for _ in range(10)]
        for index, one in asked:
            is_moved = index % 2 == 0
            assert (plus._best.index in one.parent_indices) or not is_moved
            assert is_moved or len(one.parent_indices) == 1
        plus.tell([Result(one.index, one.genotype, (sphere(one.genotype),)) for _, one in asked])
    assert any(one.flight is not None and one.flight.moves > 1 for one in plus._members)


def test_settings_outside_their_range_are_named():
    problem = Problem(EXPERTS, 1, 0, evaluations=100)
    assert [one.key for one in validate_optimizer("pso", {"inertia": -1, "draws": "all"}, problem)] == [
        "optimizer.inertia",
        "optimizer.draws",
    ]
    assert validate_optimizer("model_swarms", {"patience": 0}, problem) == []


def test_pso_takes_fewer_particles_with_a_small_budget():
    many = tuple(Gene(f"weight/e{at}") for at in range(30))
    sizes = [build_optimizer("pso", Problem(many, 1, 0, evaluations=n)).population_size for n in (20, 120, 1000)]
    assert sizes == [8, 20, 61]
    assert isinstance(build("pso"), Pso)
