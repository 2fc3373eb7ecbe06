"""EvoGM: the generators learn as they would in torch, the basis shift keeps the models, rounds follow each other."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import build_optimizer, get_spec, validate_optimizer
from evomerge.search.cycle_generators import CycleGenerators, Training
from evomerge.search.evogm import EvoGm
from evomerge.terms import Gene

ROOT = Path(__file__).parents[3]
QUICK = {"width": 8, "training_steps": 10, "learning_rate": 0.01}
COEFFICIENTS = tuple(Gene(f"weight/e{at}", low=-1.0, high=1.0, initial=0.25) for at in range(4))


def build(genes: tuple[Gene, ...] = COEFFICIENTS, seed: int = 3, **settings: object) -> EvoGm:
    optimizer = build_optimizer("evogm", Problem(genes, 1, seed, evaluations=1000), QUICK | settings)
    assert isinstance(optimizer, EvoGm)
    return optimizer


def generation(optimizer: EvoGm) -> list[Result]:
    asked = [optimizer.ask() for _ in range(optimizer.population_size)]
    return [Result(one.index, one.genotype, (-float(np.sum((one.genotype - 0.4) ** 2)),)) for one in asked]


def test_published_settings_are_the_defaults():
    defaults = {one.name: one.default for one in get_spec("evogm").settings}
    assert defaults == {
        "population_size": "auto", "iterations": 3, "rounds": 2, "winners": 0.3, "fresh_generators": False,
        "width": 128, "cycle_weight": 100.0, "target_weight": 1.0, "learning_rate": 1e-4, "training_steps": 200,
    }  # fmt: skip
    ten = tuple(Gene(f"g{at}") for at in range(10))
    sizes = [build_optimizer("evogm", Problem(ten, 1, 0, evaluations=n)).population_size for n in (None, 160, 80)]
    assert sizes == [20, 20, 10]


def test_gradients_and_steps_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    good, bad = (rng.uniform(-1, 1, (count, 3)).astype(np.float32) for count in (5, 9))
    ours = CycleGenerators(3, 4, Training(100.0, 1.0, 1e-2, steps=1), rng)
    linears = []
    for network in (ours._to_win, ours._to_lose):
        for weight, bias, _, _ in network._layers:
            linears.append(torch.nn.Linear(*weight.shape))
            linears[-1].weight.data, linears[-1].bias.data = torch.tensor(weight.T.copy()), torch.tensor(bias.copy())
    assert [linear.out_features for linear in linears] == [4, 8, 8, 8, 4, 3] * 2

    def run(points: "torch.Tensor", first: int) -> "torch.Tensor":
        for linear in linears[first : first + 5]:
            points = torch.relu(linear(points))
        return torch.tanh(linears[first + 5](points))

    winners, losers, mse = torch.tensor(good), torch.tensor(bad), torch.nn.functional.mse_loss
    won = run(losers, 0)
    loss = 100.0 * (mse(run(won, 6), losers) + mse(run(run(winners, 6), 0), winners))
    loss = loss + mse(won, winners.mean(dim=0, keepdim=True).expand_as(won))
    loss.backward()
    assert ours.add_gradient(good, bad) == pytest.approx(loss.item(), rel=1e-5)
    layers = [*ours._to_win._layers, *ours._to_lose._layers]
    for linear, (_, _, weight_gradient, bias_gradient) in zip(linears, layers):
        assert np.allclose(weight_gradient, linear.weight.grad.numpy().T, rtol=1e-4, atol=1e-5)
        assert np.allclose(bias_gradient, linear.bias.grad.numpy(), rtol=1e-4, atol=1e-5)

    parameter = torch.nn.Parameter(torch.tensor(ours._parameters.copy()))
    adam = torch.optim.Adam([parameter], lr=1e-2)
    for _ in range(4):  # with the same gradients: steps along tiny ones are decided by rounding
        gradient = rng.standard_normal(len(parameter)).astype(np.float32)
        ours._gradient[:], parameter.grad = gradient, torch.tensor(gradient)
        adam.step()
        ours._adam()
        assert np.allclose(ours._parameters, parameter.detach().numpy(), atol=1e-6)
        assert not ours._gradient.any()


def test_generators_learn_the_way_from_losers_to_winners_and_back():
    rng = np.random.default_rng(1)
    bad = rng.uniform(-0.9, -0.1, (40, 2))
    good = bad + 0.8
    generators = CycleGenerators(2, 32, Training(100.0, 1.0, 1e-3, steps=400), rng)
    generators.train(good, bad)
    sent = generators.improve(bad)
    assert (
        np.linalg.norm(sent - good.mean(axis=0), axis=1).mean() < np.linalg.norm(bad - good.mean(axis=0), axis=1).mean()
    )
    back = generators._to_lose.forward(sent.astype(np.float32))[-1]
    assert np.abs(back - bad).mean() < 0.1


def test_the_first_points_are_the_initial_values_and_the_experts():
    first = [one.genotype.tolist() for one in generation(build())]
    assert first[:5] == [[0.25] * 4, *np.eye(4).tolist()]
    assert len(first) == 8
    assert len({tuple(one) for one in first}) == 8


def test_shifted_coefficients_are_the_same_models():
    """Merged weights of the new coefficients of the new experts, and of the asked coefficients of the first ones."""
    optimizer = build(iterations=1, rounds=5)
    vectors = np.random.default_rng(0).standard_normal((4, 300))
    told: dict[int, np.ndarray] = {}
    for round_number in range(1, 4):
        while optimizer._round < round_number:
            results = generation(optimizer)
            told |= {one.index: one.genotype for one in results}
            optimizer.tell(results)
        # The experts of this round are models that were evaluated, here with their merged weights.
        experts = optimizer._basis @ vectors
        assert all(any(np.allclose(row, seen, atol=1e-12) for seen in told.values()) for row in optimizer._basis)
        is_whole = []
        for point in [draft.point for draft in optimizer._drafts]:
            genotype = optimizer.ask().genotype
            is_whole.append(bool(np.abs(point @ optimizer._basis).max() <= 1.0))  # else it was cut at the range
            assert not is_whole[-1] or np.abs(genotype @ vectors - point @ experts).max() < 1e-6
        assert is_whole[0]  # the equal mixture
        optimizer = _replayed(optimizer, round_number)


def _replayed(optimizer: EvoGm, round_number: int) -> EvoGm:
    """A new one at the begin of the round, with nothing asked in it."""
    fresh = build(iterations=1, rounds=5)
    while fresh._round < round_number:
        fresh.tell(generation(fresh))
    assert np.array_equal(fresh._basis, optimizer._basis)
    return fresh


def test_after_its_rounds_it_begins_again_and_keeps_the_best():
    optimizer = build(iterations=1, rounds=2)
    bases, best = [], -np.inf
    for _ in range(10):
        results = generation(optimizer)
        best = max(best, *(one.fitness[0] for one in results if one.fitness))
        optimizer.tell(results)
        assert optimizer._population[0].order[1][1] == pytest.approx(-best) or optimizer._iteration == 0
        bases.append(np.array_equal(optimizer._basis, np.eye(4)))
    assert bases == [True, False, False, True, True, False, False, True, True, False]
    assert optimizer.stop_reason() is None


def test_losers_are_the_stopped_and_the_failed_ones_and_nobody_descends_from_them():
    optimizer = build()
    complete: set[int] = set()
    for _ in range(6):
        asked = [optimizer.ask() for _ in range(8)]
        assert all(set(one.parent_indices) <= complete for one in asked)
        results = []
        for one in asked:
            if one.index % 2:
                results.append(Result(one.index, one.genotype, None, standing=(5.0,) if one.index % 4 == 1 else None))
            else:
                complete.add(one.index)
                results.append(Result(one.index, one.genotype, (float(one.genotype.sum()),)))
        optimizer.tell(results)
        assert all(known.index in complete for known in optimizer._population)
    ordered = sorted(optimizer._history, key=lambda known: known.order)
    kinds = [known.order[0] for known in ordered]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}


def test_a_late_result_of_an_earlier_round_counts_where_the_basis_can_say_it():
    optimizer = build(iterations=1)
    late = optimizer.ask()
    for _ in range(2):
        asked = [optimizer.ask() for _ in range(8)]
        optimizer.tell([Result(one.index, one.genotype, (-float(np.sum((one.genotype - 0.4) ** 2)),)) for one in asked])
    assert optimizer._round == 1
    model = 0.5 * optimizer._basis[0] + 0.25 * optimizer._basis[1]
    asked = [optimizer.ask() for _ in range(7)]
    results = [Result(one.index, one.genotype, (-5.0,)) for one in asked]
    optimizer.tell([Result(late.index, model, (1.0,)), *results])
    assert np.allclose(optimizer._population[0].point, [0.5, 0.25, 0.0, 0.0], atol=1e-9)


def test_a_budget_below_one_generation_is_refused():
    genes = tuple(Gene(f"g{at}") for at in range(4))
    [(key, message)] = validate_optimizer("evogm", {}, Problem(genes, 1, 0, evaluations=7))
    assert key == "budget.evaluations"
    assert "one generation of evogm (8 candidates)" in message


def test_it_beats_random_search_on_a_quadratic():
    """Ten coefficients, best values inside the range, as many evaluations as a published search has; small networks.

    With the published ones, which cost 10 CPU seconds a seed, `scripts/check_evogm.py` counts the seeds it wins.
    """
    check = runpy.run_path(str(ROOT / "scripts" / "check_evogm.py"))
    settings = {"width": 8, "training_steps": 50, "learning_rate": 0.005}
    found = {name: [check["best_found"](name, seed, given) for seed in range(10)]
             for name, given in (("evogm", settings), ("random", {}))}  # fmt: skip
    assert np.mean(found["evogm"]) > np.mean(found["random"]) + 0.1
