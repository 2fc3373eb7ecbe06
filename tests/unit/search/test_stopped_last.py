import math

import numpy as np
import pytest

from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import SPECS, build_optimizer
from evomerge.search.stopped_last import stopped_last
from evomerge.terms import Gene

GENES = tuple(Gene(f"g{at}") for at in range(4))


def test_stopped_ones_come_after_all_complete_ones_and_before_failures():
    values = [-0.5, math.inf, 3.0, math.inf, math.inf, math.inf]
    standings = [None, (0.2, 16.0), None, None, (0.4, 16.0), (0.4, 30.0)]
    told = stopped_last(values, standings)
    assert told == [-0.5, 6.0, 3.0, math.inf, 5.0, 4.0]
    assert sorted(range(6), key=lambda at: told[at]) == [0, 2, 5, 4, 1, 3]


def test_a_batch_of_stopped_ones_has_ranks():
    assert stopped_last([math.inf] * 3, [(0.1,), (0.3,), (0.1,)]) == [2.0, 1.0, 2.0]


@pytest.mark.parametrize("name", ["cma_es", "sep_cma", "xnes", "catcma"])
def test_only_the_ranks_of_stopped_ones_count(name):
    """The same search whether a candidate was stopped or scored to the end, as long as the order is the same."""

    def later(stop: bool) -> np.ndarray:
        optimizer = build_optimizer(name, Problem(GENES, 1, seed=5), {"population_size": 6})
        for _ in range(4):
            asked = [optimizer.ask() for _ in range(6)]
            values = [-float(((one.genotype - 0.3) ** 2).sum()) for one in asked]
            cut = sorted(values)[3]
            optimizer.tell(
                [
                    Result(one.index, one.genotype, None, standing=(100.0 + value, 16.0))
                    if stop and value < cut
                    else Result(one.index, one.genotype, (value,))
                    for one, value in zip(asked, values)
                ]
            )
        return np.array([optimizer.ask().genotype for _ in range(3)])

    assert np.array_equal(later(True), later(False))


def test_a_generation_of_stopped_ones_still_teaches():
    means = []
    for teach in (True, False):
        optimizer = build_optimizer("cma_es", Problem(GENES, 1, seed=5), {"population_size": 8})
        for _ in range(20):
            asked = [optimizer.ask() for _ in range(8)]
            standings = [(-float(((one.genotype - 0.9) ** 2).sum()), 16.0) for one in asked]
            pairs = zip(asked, standings)
            optimizer.tell(
                [Result(one.index, one.genotype, None, standing=place if teach else None) for one, place in pairs]
            )
        means.append(np.mean([optimizer.ask().genotype for _ in range(20)]))
    assert means[0] > means[1] + 0.2


def test_tpe_learns_that_a_pruned_region_is_bad():
    optimizer = build_optimizer("tpe", Problem(GENES, 1, seed=1, workers=1), {"num_initial_random": 10})
    for _ in range(40):
        one = optimizer.ask()
        value = -float(((one.genotype - 0.2) ** 2).sum())
        is_stopped = one.index > 3 and value < -0.5
        optimizer.tell(
            [
                Result(one.index, one.genotype, None, standing=(value, 16.0))
                if is_stopped
                else Result(one.index, one.genotype, (value,))
            ]
        )
    assert np.mean([optimizer.ask().genotype for _ in range(10)]) < 0.4


@pytest.mark.parametrize("name", ["ga", "nsga2"])
def test_stopped_ones_are_never_parents(name):
    optimizer = build_optimizer(name, Problem(GENES, 1, seed=2), {"population_size": 6})
    complete = set()
    for generation in range(4):
        asked = [optimizer.ask() for _ in range(6)]
        if name == "ga" and generation:
            assert all(set(one.parent_indices) <= complete for one in asked)
        results = []
        for one in asked:
            if generation and one.index % 2:
                results.append(Result(one.index, one.genotype, None, standing=(5.0, 16.0)))
            else:
                complete.add(one.index)
                results.append(Result(one.index, one.genotype, (float(one.genotype.sum()),)))
        optimizer.tell(results)


def test_a_standing_belongs_to_a_candidate_without_a_fitness():
    optimizer = build_optimizer("random", Problem(GENES, 1, seed=2), {})
    one = optimizer.ask()
    with pytest.raises(ValueError, match="standing"):
        optimizer.tell([Result(one.index, one.genotype, (1.0,), standing=(0.1,))])
    with pytest.raises(ValueError, match="standing"):
        optimizer.tell([Result(one.index, one.genotype, None, standing=(math.nan,))])


def test_optimizers_that_need_values_do_not_race():
    refusing = {name for name, spec in SPECS.items() if not spec.races_one and not spec.races_many}
    assert refusing == {"gp", "como_catcma", "map_elites", "cycleqd", "map", "bayesian_map", "nested_map", "m2n2"}
