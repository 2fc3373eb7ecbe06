"""What every registered optimizer must keep, whatever its library. A new optimizer is covered once it is registered."""

import copy
import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evomerge.errors import InvalidInput
from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.catalogue import SPECS, build_optimizer
from evomerge.search.lineage import Lineage
from evomerge.search.seed_gram import CellGram
from evomerge.terms import Gene, GeneKind

REAL = tuple(Gene(f"r{i}", GeneKind.REAL, -1.0, 3.0, 0.5) for i in range(3))
MIXED = (
    Gene("share", low=0.0, high=2.0, initial=2.0),
    Gene("block", GeneKind.INTEGER, 1, 5, 2),
    Gene("flag", GeneKind.INTEGER, 0, 1, 0),
    Gene("method", GeneKind.CATEGORY, choices=("ties", "dare", "linear"), initial=1),
    Gene("fixed", GeneKind.CATEGORY, choices=("only",), initial=0),
    Gene("still", low=0.3, high=0.3, initial=0.3),
)
WHOLE = (Gene("block", GeneKind.INTEGER, 1, 9, 2), Gene("hop", GeneKind.INTEGER, 0, 4, 4))
CHOICES = tuple(Gene(f"c{i}", GeneKind.CATEGORY, choices=("x", "y", "z"), initial=1) for i in range(3))
LIST = tuple(
    Gene(f"hops.{i}", GeneKind.CATEGORY, choices=("a.0", "a.1", "a.2", "none"), initial=min(i, 3), sequence="hops")
    for i in range(5)
)

SMALL = {"num_initial_random": 3, "population_size": 4, "kernel_population": 4, "kernels": 2}
TINY = {"num_initial_random": 2, "population_size": 2}
# So that three rounds reach the part that learns.
OWN = {
    "map": {"population_size": 8, "num_design": 10, "surrogate_generations": 5},
    "bayesian_map": {"population_size": 9, "num_design": 15, "surrogate_generations": 5},
    "nested_map": {"population_size": 6, "pair_points": 7, "surrogate_generations": 5},
    # The first ones are the experts, whatever the seed.
    "pso": {"population_size": 7},
    "model_swarms": {"population_size": 7},
    "evogm": {"population_size": 6, "width": 8, "training_steps": 20, "learning_rate": 0.01, "iterations": 1},
}
# Optimizers that merge seeds have no genes; these are three random models of 50 parameters.
SEEDS = CellGram.of_vectors(np.random.default_rng(0).standard_normal((3, 50)), cell=16)
NUM_DOCUMENTS = 12
EXPENSIVE = ("gp",)  # up to a second for each ask
ROUNDS = 3


def cases() -> list[Any]:
    """Every optimizer on every kind of problem it says it handles."""
    found = []
    for name, spec in SPECS.items():
        kinds = {"real": REAL}
        if spec.gene_kinds == frozenset(GeneKind):
            kinds |= {"mixed": MIXED, "whole": WHOLE, "choices": CHOICES, "list": LIST}
        if name in EXPENSIVE:
            kinds = {"real": REAL[:2]}
        if spec.merges_seeds:
            kinds = {"seeds": ()}
        fewest = spec.min_objectives
        found += [pytest.param(name, genes, fewest, id=f"{name}-{kind}") for kind, genes in kinds.items()]
        if spec.multi_objective and name not in EXPENSIVE:
            more = [m for m in (2, 3) if fewest < m <= (spec.max_objectives or m)]
            found += [
                pytest.param(name, () if spec.merges_seeds else REAL, m, id=f"{name}-{m}_objectives") for m in more
            ]
    return found


every_case = pytest.mark.parametrize(("name", "genes", "num_objectives"), cases())
one_case_each = pytest.mark.parametrize("name", list(SPECS))
cheap_case_each = pytest.mark.parametrize("name", [name for name in SPECS if name not in EXPENSIVE])
Fitness = Callable[[Result], tuple[float, ...] | None]


def make(
    name: str,
    genes: tuple[Gene, ...] = REAL,
    num_objectives: int | None = None,
    seed: int = 5,
    num_constraints: int = 0,
    **settings: Any,
) -> Optimizer:
    """An optimizer of small generations; without a number of objectives for the fewest it takes."""
    known = {setting.name for setting in SPECS[name].settings}
    small = {key: value for key, value in (TINY if name in EXPENSIVE else SMALL).items() if key in known}
    count = SPECS[name].min_objectives if num_objectives is None else num_objectives
    problem = Problem(genes, count, seed, evaluations=10_000, num_constraints=num_constraints)
    if SPECS[name].merges_seeds:
        problem = dataclasses.replace(problem, genes=(), seeds=SEEDS)
    return build_optimizer(name, problem, small | OWN.get(name, {}) | settings)


def score(proposal: Proposal, num_objectives: int) -> Result:
    """Shifted spheres, rounded so that ties are common, with some failures."""
    failed = proposal.index % 5 == 3
    values = tuple(round(-float(np.sum((proposal.genotype - 0.9 - 0.4 * m) ** 2)), 1) for m in range(num_objectives))
    return told(proposal, None if failed else values)


def told(proposal: Proposal, fitness: tuple[float, ...] | None) -> Result:
    """A result with scores of documents, which most optimizers do not look at."""
    row = np.random.default_rng([7, proposal.index]).integers(0, 2, NUM_DOCUMENTS).astype(float)
    scores = None if fitness is None else row
    return Result(proposal.index, proposal.genotype.copy(), fitness, document_scores=scores)


def generation(optimizer: Optimizer) -> list[Result]:
    m = optimizer.problem.num_objectives
    return [score(optimizer.ask(), m) for _ in range(optimizer.population_size)]


def num_rounds(optimizer: Optimizer) -> int:
    return 2 if optimizer.population_size == TINY["population_size"] else ROUNDS


def run(optimizer: Optimizer) -> np.ndarray:
    asked = []
    for _ in range(num_rounds(optimizer)):
        results = generation(optimizer)
        asked += [result.genotype for result in results]
        optimizer.tell(results)
    return rows(asked)


def rows(genotypes: list[np.ndarray]) -> np.ndarray:
    """One row for each genotype, zeros behind the shorter ones."""
    width = max(map(len, genotypes))
    return np.array([np.pad(genotype, (0, width - len(genotype))) for genotype in genotypes])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@every_case
def test_asks_are_legal_and_numbered(name: str, genes: tuple[Gene, ...], num_objectives: int) -> None:
    optimizer = make(name, genes, num_objectives)
    assert optimizer.stop_reason() is None
    assert optimizer.tell_size in (1, optimizer.population_size)
    for round_number in range(num_rounds(optimizer)):
        proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
        assert [p.index for p in proposals] == [round_number * len(proposals) + i for i in range(len(proposals))]
        for proposal in proposals:
            assert proposal.genotype.dtype == np.float64
            if SPECS[name].merges_seeds:
                lineage = Lineage.from_genotype(proposal.genotype)
                assert (lineage.num_seeds, lineage.size) == (SEEDS.num_seeds, SEEDS.size)
                continue
            assert proposal.genotype.shape == (len(genes),)
            for value, gene in zip(proposal.genotype, genes):
                high = len(gene.choices) - 1 if gene.kind is GeneKind.CATEGORY else gene.high
                low = 0 if gene.kind is GeneKind.CATEGORY else gene.low
                assert low <= value <= high
                assert gene.kind is GeneKind.REAL or value == round(value)
        optimizer.tell([score(proposal, num_objectives) for proposal in proposals])
    assert optimizer.num_asked == num_rounds(optimizer) * optimizer.population_size


@every_case
def test_the_seed_decides(name: str, genes: tuple[Gene, ...], num_objectives: int) -> None:
    first = run(make(name, genes, num_objectives, seed=5))
    assert same_bits(first, run(make(name, genes, num_objectives, seed=5)))
    other = generation(make(name, genes, num_objectives, seed=6))
    now = generation(make(name, genes, num_objectives, seed=5))
    assert not same_bits(rows([result.genotype for result in now]), rows([result.genotype for result in other]))


@every_case
def test_replay_continues_in_the_middle_of_a_generation(
    name: str, genes: tuple[Gene, ...], num_objectives: int
) -> None:
    lived, replayed = (make(name, genes, num_objectives) for _ in range(2))
    history: list[list[Result]] = []
    for _ in range(num_rounds(lived) - 1):
        history.append(generation(lived))
        lived.tell(history[-1])
    half = [lived.ask() for _ in range(lived.population_size // 2)]

    for results in history:  # what a resume does: ask again, tell what the log says
        for result in results:
            assert same_bits(replayed.ask().genotype, result.genotype)
        replayed.tell(results)
    for proposal in half:
        assert same_bits(replayed.ask().genotype, proposal.genotype)
    rest = [lived.ask() for _ in range(lived.population_size - len(half))]
    for proposal in rest:
        assert same_bits(replayed.ask().genotype, proposal.genotype)
    for optimizer in (lived, replayed):
        optimizer.tell([score(proposal, num_objectives) for proposal in half + rest])
    assert same_bits(lived.ask().genotype, replayed.ask().genotype)


@cheap_case_each
def test_tell_leaves_its_arguments_alone(name: str) -> None:
    optimizer = make(name)
    for _ in range(2):
        results = generation(optimizer)
        before = copy.deepcopy(results)
        optimizer.tell(results)
        assert [result.index for result in results] == [result.index for result in before]
        for now, then in zip(results, before):
            assert same_bits(now.genotype, then.genotype)
            assert now.fitness == then.fitness


@cheap_case_each
def test_the_caller_may_change_what_it_was_given(name: str) -> None:
    clean, spoiled = make(name), make(name)
    for _ in range(2):
        expected = generation(clean)
        proposals = [spoiled.ask() for _ in range(spoiled.population_size)]
        results = [score(proposal, spoiled.problem.num_objectives) for proposal in proposals]
        for proposal in proposals:
            proposal.genotype[:] = 99.0
        clean.tell(expected)
        spoiled.tell(results)
        for result in results:
            result.genotype[:] = 99.0
    assert same_bits(clean.ask().genotype, spoiled.ask().genotype)


@cheap_case_each
def test_results_count_in_ask_order_however_they_are_listed(name: str) -> None:
    sorted_one, backward_one = make(name), make(name)
    for _ in range(3):
        for optimizer in (sorted_one, backward_one):
            proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
            m = optimizer.problem.num_objectives
            results = [told(p, (float(p.index % 4 < 2),) * m) for p in proposals]  # ties
            optimizer.tell(results if optimizer is sorted_one else results[::-1])
    assert same_bits(sorted_one.ask().genotype, backward_one.ask().genotype)


@one_case_each
def test_bad_results_are_refused_and_change_nothing(name: str) -> None:
    optimizer, control = make(name), make(name)
    results, good = generation(optimizer), generation(control)
    first, m = results[0], optimizer.problem.num_objectives
    bad = {
        "nan": dataclasses.replace(first, fitness=(math.nan,) * m),
        "infinite": dataclasses.replace(first, fitness=(-math.inf,) * m),
        "one objective more": dataclasses.replace(first, fitness=(1.0,) * (m + 1)),
        "a constraint": dataclasses.replace(first, constraints=(0.0,)),
        "no objective": dataclasses.replace(first, fitness=()),
        "unknown index": dataclasses.replace(first, index=999),
        "negative index": dataclasses.replace(first, index=-1),
        "wrong shape": dataclasses.replace(first, genotype=first.genotype[:-1]),
        "NaN genotype": dataclasses.replace(first, genotype=first.genotype * math.nan),
        "twice": results[1],
    }
    for label, result in bad.items():
        with pytest.raises(ValueError, match=r"proposal|twice"):
            optimizer.tell([result, *results[1:]])
        assert optimizer.num_asked == len(results), label
    with pytest.raises(ValueError, match="expected"):
        optimizer.tell([])
    if optimizer.tell_size > 1:
        with pytest.raises(ValueError, match=f"expected {optimizer.tell_size} results, got {len(results) - 1}"):
            optimizer.tell(results[1:])
    optimizer.tell(results)
    control.tell(good)
    with pytest.raises(ValueError, match="was told before"):
        optimizer.tell(results)
    assert same_bits(optimizer.ask().genotype, control.ask().genotype)


@every_case
def test_generations_of_failures_are_survived(name: str, genes: tuple[Gene, ...], num_objectives: int) -> None:
    optimizer = make(name, genes, num_objectives)
    for _ in range(3):
        proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([Result(p.index, p.genotype, None) for p in proposals])
    asked = run(optimizer)
    assert np.all(np.isfinite(asked))


@pytest.mark.parametrize(("genes", "num_objectives"), [(REAL, 2), (MIXED, 1)])
@pytest.mark.parametrize("name", EXPENSIVE)
def test_other_problems_of_the_expensive_ones(name: str, genes: tuple[Gene, ...], num_objectives: int) -> None:
    test_asks_are_legal_and_numbered(name, genes, num_objectives)


@cheap_case_each
def test_equal_fitness_everywhere_is_survived(name: str) -> None:
    optimizer = make(name)
    for _ in range(4):
        proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([told(p, (0.25,) * optimizer.problem.num_objectives) for p in proposals])
    assert np.all(np.isfinite(optimizer.ask().genotype))


def steady_state(optimizer: Optimizer, steps: int, workers: int) -> tuple[np.ndarray, list[list[int]]]:
    """Keep workers busy, let results arrive in a scrambled order, tell whenever a batch is there."""
    order = random.Random(3)
    flying: list[Proposal] = []
    arrived: list[Result] = []
    asked, batches = [], []
    for _ in range(steps):
        while len(flying) < workers:
            flying.append(optimizer.ask())
            asked.append(flying[-1].genotype.copy())
        arrived.append(score(flying.pop(order.randrange(len(flying))), optimizer.problem.num_objectives))
        if len(arrived) >= optimizer.tell_size:
            batch = sorted(arrived[: optimizer.tell_size], key=lambda result: result.index)
            del arrived[: optimizer.tell_size]
            batches.append([result.index for result in batch])
            optimizer.tell(batch)
    return rows(asked), batches


@one_case_each
def test_steady_state_takes_late_results_and_repeats_exactly(name: str) -> None:
    steps, workers = (3, 2) if name in EXPENSIVE else (14, 6)
    runs = [steady_state(make(name), steps, workers) for _ in range(2)]
    assert same_bits(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert len(runs[0][0]) == steps + workers - 1


@every_case
def test_a_diverged_replay_learns_from_what_was_evaluated(
    name: str, genes: tuple[Gene, ...], num_objectives: int
) -> None:
    """On other hardware the log's genotypes win over the ones drawn here."""
    rounds = 1 if name in EXPENSIVE else 2
    optimizers = [make(name, genes, num_objectives) for _ in range(2)]
    middle = np.array([round(g.initial) if g.kind is not GeneKind.REAL else g.low + 0.4 * g.width for g in genes])
    if SPECS[name].merges_seeds:
        middle = Lineage.of_seed(1, SEEDS.num_seeds, SEEDS.size).genotype()
    for optimizer in optimizers:
        for _ in range(rounds):
            results = [dataclasses.replace(result, genotype=middle.copy()) for result in generation(optimizer)]
            optimizer.tell(results)
    a, b = (rows([r.genotype for r in generation(optimizer)]) for optimizer in optimizers)
    assert same_bits(a, b)
    assert np.all(np.isfinite(a))


@pytest.mark.parametrize("name", ["cma_es", "sep_cma", "catcma", "xnes"])
def test_a_genotype_drawn_inside_the_box_tells_the_same_as_its_raw_draw(name: str) -> None:
    """Equal in exact arithmetic: where nothing was mirrored, the recorded genotype carries all there is to learn."""
    told, untold = make(name, sigma=0.05), make(name, sigma=0.05)
    for _ in range(2):
        results = generation(untold)
        told_results = generation(told)
        untold.tell(results)
        told.tell([dataclasses.replace(r, genotype=np.nextafter(r.genotype, np.inf)) for r in told_results])
    np.testing.assert_allclose(told.ask().genotype, untold.ask().genotype, rtol=0, atol=1e-9)


CONSTRAINED = [name for name, spec in SPECS.items() if spec.handles_constraints]


@pytest.mark.parametrize("name", [name for name in CONSTRAINED if name not in (*EXPENSIVE, "random", "sobol")])
def test_constraints_come_before_fitness(name: str) -> None:
    """The sphere's middle is forbidden; random draws keep the constraints one time in eight. Replay holds too."""

    def constrained(p: Proposal) -> Result:
        m = optimizer.problem.num_objectives
        beyond = float(np.sum(p.genotype - 0.9))
        fitness = score(p, m).fitness
        return Result(p.index, p.genotype, fitness, () if fitness is None else (2.0 + beyond, beyond - 5.0))

    # EvoGM begins anew, with random candidates, every few generations.
    budget = {"tpe": 60, "nsga2": 60, "nsga3": 60, "evogm": 600}.get(name, 120)
    optimizer, again = (make(name, num_constraints=2) for _ in range(2))
    kept = []
    while optimizer.num_asked < budget:
        proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
        for proposal in proposals:
            assert same_bits(again.ask().genotype, proposal.genotype)
        results = [constrained(p) for p in proposals]
        kept += [max(r.constraints) <= 0 for r in results if r.constraints]
        optimizer.tell(results)
        again.tell(results)
    assert np.mean(kept[len(kept) // 2 :]) > 0.4
    m = optimizer.problem.num_objectives
    asked = [optimizer.ask() for _ in range(optimizer.tell_size)]
    bad = [Result(p.index, p.genotype, (0.0,) * m, (math.nan, 0.0)) for p in asked]
    with pytest.raises(ValueError, match="expected 2 finite constraint values"):
        optimizer.tell(bad)


@pytest.mark.parametrize(
    "name", [name for name in SPECS if name not in ("random", "sobol", "nested_map") and not SPECS[name].merges_seeds]
)
def test_learns_a_shifted_sphere(name: str) -> None:
    """Maximises: the last candidates are better than the first ones and the best is better than the start."""
    budget = {"gp": 10, "tpe": 60, "map": 40, "bayesian_map": 40}.get(name, 240)
    settings = {"population_size": 12} if name.startswith("nsga") or name == "ga" else {}
    if name in ("gp", "tpe"):
        settings = {"population_size": 1}
    optimizer = make(name, **settings)
    m = optimizer.problem.num_objectives  # equal ones, where one is not enough
    target = np.array([1.7, -0.4, 2.1])
    values = []
    while optimizer.num_asked < budget:
        proposals = [optimizer.ask() for _ in range(optimizer.population_size)]
        results = [Result(p.index, p.genotype, (-float(np.sum((p.genotype - target) ** 2)),) * m) for p in proposals]
        values += [result.fitness[0] for result in results if result.fitness]
        optimizer.tell(results)
    start = -float(np.sum((0.5 - target) ** 2))
    quarter = len(values) // 4
    assert max(values) > 0.2 * start
    assert np.median(values[-quarter:]) > np.median(values[:quarter])


@one_case_each
def test_global_random_states_and_thread_counts_stay(name: str) -> None:
    if name == "gp":
        torch = pytest.importorskip("torch")
        torch_before = (torch.get_rng_state().numpy().tobytes(), torch.get_num_threads())
    numpy_before, python_before = np.random.get_state()[1].tobytes(), random.getstate()  # noqa: NPY002
    position = np.random.get_state()[2]  # noqa: NPY002
    run(make(name))
    assert np.random.get_state()[1].tobytes() == numpy_before  # noqa: NPY002
    assert np.random.get_state()[2] == position  # noqa: NPY002
    assert random.getstate() == python_before
    if name == "gp":
        assert (torch.get_rng_state().numpy().tobytes(), torch.get_num_threads()) == torch_before


@pytest.mark.parametrize(
    "name", [name for name, spec in SPECS.items() if any(s.name == "propose_initial" for s in spec.settings)]
)
def test_the_initial_values_come_first_when_wanted(name: str) -> None:
    genes, initial = MIXED, [2.0, 2.0, 0.0, 1.0, 0.0, 0.3]
    if not {gene.kind for gene in MIXED} <= SPECS[name].gene_kinds:
        genes, initial = REAL, [gene.initial for gene in REAL]
    assert make(name, genes, propose_initial=True).ask().genotype.tolist() == initial
    assert make(name, genes, propose_initial=False).ask().genotype.tolist() != initial


def test_seeds_and_genes_do_not_mix() -> None:
    with pytest.raises(InvalidInput, match="merges seed models as a whole"):
        build_optimizer("m2n2", Problem(REAL, 1, 0, seeds=SEEDS))
    with pytest.raises(InvalidInput, match="searches genes, and merges of merges have none"):
        build_optimizer("cma_es", Problem((), 1, 0, seeds=SEEDS))
    with pytest.raises(InvalidInput, match="an archive of 2 cannot hold the 3 seeds"):
        build_optimizer("m2n2", Problem((), 1, 0, seeds=SEEDS), {"population_size": 2})


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.uses_document_scores])
def test_document_scores_are_checked(name: str) -> None:
    optimizer, control = make(name), make(name)
    results = generation(optimizer)
    for scores in (None, np.full(NUM_DOCUMENTS, np.nan), np.full(NUM_DOCUMENTS, -1.0), np.zeros(0)):
        with pytest.raises(ValueError, match="document scores"):
            optimizer.tell([dataclasses.replace(results[0], document_scores=scores), *results[1:]])
    optimizer.tell(results)
    with pytest.raises(ValueError, match=f"expected {NUM_DOCUMENTS} document scores"):
        optimizer.tell([dataclasses.replace(told(optimizer.ask(), (0.0,)), document_scores=np.zeros(3))])
    control.tell(generation(control))
