"""Methods that optimise: against autograd and matrix calculus in fp64, and where their optimum is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method
from tests.unit.methods.merging import close, delta, random

BOTH = ("wudi", "wudi2")


def truncated(matrix: Tensor, rank: int) -> Tensor:
    left, kept, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * kept[:rank]) @ right[:rank]


def loss(name: str, merged: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """The published losses, term by term."""
    wide = [matrix.double() for matrix in deltas]
    mean, rank = sum(wide) / len(wide), max(1, min(deltas[0].shape) // len(deltas))
    total = torch.zeros((), dtype=torch.float64)
    for matrix in wide:
        if name == "wudi":
            target, inputs = matrix, matrix
        else:
            target = truncated(matrix - mean, rank) + mean
            kept = torch.linalg.svd(matrix, full_matrices=False)
            inputs = torch.diag(kept.S[:rank]) @ kept.Vh[:rank]
        total = total + ((merged - target) @ inputs.T).square().sum() / matrix.square().sum()
    return total


def gradient(name: str, merged: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    point = merged.double().requires_grad_()
    (found,) = torch.autograd.grad(loss(name, point, deltas), point)
    return found


@pytest.mark.parametrize("shape", [(14, 20), (20, 14)])
@pytest.mark.parametrize("name", BOTH)
def test_adam_is_torchs_on_the_published_loss(name: str, shape: tuple[int, int]) -> None:
    deltas = random(3, *shape)
    point = sum(matrix.double() for matrix in deltas).requires_grad_()
    optimizer = torch.optim.Adam([point], lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(name, point, deltas).backward()
        optimizer.step()
    moved = delta(name, deltas, steps=60, learning_rate=2e-3)
    close(moved, point.detach())
    assert (moved - sum(deltas)).abs().max() > 0.1


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_loss_never_grows(name: str, solver: str) -> None:
    deltas = random(3, 12, 18)
    if solver == "adam":
        merged = [delta(name, deltas, steps=steps) for steps in (0, 10, 50, 300, 1000)]
    else:
        merged = [delta(name, deltas, solver=solver, time=time) for time in (0.0, 0.1, 1.0, 30.0, 1e5)]
    close(merged[0], sum(deltas))
    losses = [float(loss(name, matrix.double(), deltas)) for matrix in merged]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("name", BOTH)
def test_closed_form_ends_where_the_gradient_is_0(name: str) -> None:
    deltas = random(3, 12, 18)
    before = gradient(name, sum(deltas), deltas).abs().max()
    assert before > 1.0
    assert gradient(name, delta(name, deltas, solver="closed_form", time=1e8), deltas).abs().max() < 1e-5


@pytest.mark.parametrize("name", BOTH)
def test_closed_form_is_the_gradient_flow(name: str) -> None:
    deltas = random(2, 8, 10)
    point = sum(matrix.double() for matrix in deltas)
    step = 0.04
    for _ in range(50):  # the classical Runge-Kutta rule
        first = -0.5 * gradient(name, point, deltas)
        second = -0.5 * gradient(name, point + 0.5 * step * first, deltas)
        third = -0.5 * gradient(name, point + 0.5 * step * second, deltas)
        fourth = -0.5 * gradient(name, point + step * third, deltas)
        point = point + step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
    close(delta(name, deltas, solver="closed_form", time=2.0), point, atol=1e-6)


def test_closed_form_follows_the_largest_directions_only() -> None:
    deltas = random(2, 12, 10)
    wide = [matrix.double() for matrix in deltas]
    curvature = sum(matrix.T @ matrix / matrix.square().sum() for matrix in wide)
    pull = sum(matrix @ matrix.T @ matrix / matrix.square().sum() for matrix in wide)
    values, vectors = torch.linalg.eigh(curvature)
    filter_ = 1 - torch.exp(-values * 300.0)
    filter_[:4] = 0.0  # six of ten stay
    start = sum(wide)
    expected = start - start @ vectors @ filter_.diag() @ vectors.T
    expected = expected + pull @ vectors @ (filter_ / values).diag() @ vectors.T
    close(delta("wudi", deltas, solver="closed_form", directions_share=0.6), expected)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_one_expert_stays_and_zero_task_vectors_pull_at_nothing(name: str, solver: str) -> None:
    (matrix,) = random(1, 12, 18)
    hard = {"solver": solver, "learning_rate": 0.1, "time": 1e6}
    assert torch.equal(delta(name, [matrix], **hard), matrix)
    assert torch.equal(delta(name, [matrix], coefficient=[0.5], **hard), 0.5 * matrix)
    if name == "wudi":
        two = random(2, 12, 18)
        close(delta(name, [*two, torch.zeros(12, 18)], **hard), delta(name, two, **hard), atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_coefficients_scale_what_each_expert_keeps(name: str) -> None:
    left, right = torch.zeros(8, 12), torch.zeros(8, 12)
    left[:, :6], right[:, 6:] = random(2, 8, 6)  # they answer to different inputs
    whole = {"rank_share": 2.0} if name == "wudi2" else {}
    merged = delta(name, [left, right], coefficient=[0.5, 2.0], solver="closed_form", time=1e9, **whole)
    close(merged, 0.5 * left + 2.0 * right)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_stacks_are_merged_one_by_one(name: str, solver: str) -> None:
    stacks = random(3, 4, 6, 8)
    for stack in stacks:
        stack[2] = 0.0  # a part that no expert changed
    merged = delta(name, stacks, solver=solver)
    assert torch.equal(merged[2], torch.zeros(6, 8))
    for index in (0, 1, 3):
        close(merged[index], delta(name, [stack[index] for stack in stacks], solver=solver), atol=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_changes_too_small_for_a_step_are_averaged(name: str) -> None:
    deltas = [matrix * 1e-9 for matrix in random(2, 6, 8)]
    close(delta(name, deltas) * 1e9, (deltas[0] + deltas[1]) * 0.5e9, atol=1e-6)


def test_other_tensors() -> None:
    matrices, vectors = random(2, 6, 8), random(2, 9)
    for given, component in ((matrices, "head"), (vectors, "norms")):
        weighted = (given[0] + 3.0 * given[1]) / 2
        assert not delta("wudi", given, component, coefficient=[1.0, 3.0]).any()
        close(delta("wudi", given, component, coefficient=[1.0, 3.0], rest="mean"), weighted, atol=1e-6)
        close(delta("wudi2", given, component, coefficient=[1.0, 3.0]), weighted, atol=1e-6)
    method = load_method("wudi")
    structural = {p.name: p.default for p in SPECS["wudi"].hyperparameters if p.structural} | {"coefficient": [1.0] * 2}
    context = TensorContext("w", 0, ("a", "b"), component="norms")
    assert method.is_constant(method.prepare(torch.zeros(9), vectors, structural, context))
    structural["rest"] = "mean"
    assert not method.is_constant(method.prepare(torch.zeros(9), vectors, structural, context))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_same_bits_for_any_number_of_threads(name: str, solver: str) -> None:
    deltas, found = random(2, 96, 130), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(delta(name, deltas, solver=solver, steps=20))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_weights_that_are_not_finite_are_a_failed_merge(name: str, solver: str) -> None:
    matrices = random(2, 6, 8)
    matrices[0][2, 3] = float("nan")
    with pytest.raises(MergeFailed, match="NaN"):
        delta(name, matrices, solver=solver)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"solver": "sgd"}, "solver"),
        ({"steps": -1}, "steps"),
        ({"learning_rate": -1e-5}, "learning_rate"),
        ({"time": -1.0}, "time"),
        ({"directions_share": 0.0}, "directions_share"),
        ({"rest": "zero"}, "rest"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta("wudi", random(2, 4, 5), **values)
    with pytest.raises(ValueError, match="rank_share"):
        delta("wudi2", random(2, 4, 5), rank_share=0.0)
