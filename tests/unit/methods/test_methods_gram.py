"""Methods that weigh whole tensors, against plain code that follows their definitions word by word."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.errors import MergeFailed, UserError
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method
from evomerge.methods.gram import gram_matrix, row_grams, tree_sum

SHAPE = (19, 23)


def random(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def family(count: int) -> tuple[Tensor, list[Tensor]]:
    """A base and experts whose task vectors have something in common."""
    base, common = random(0), random(1, 0.1)
    return base, [base + common + random(2 + index, 0.1 + 0.05 * index) for index in range(count)]


def run(name: str, base: Tensor | None, experts: list[Tensor], **values: Any) -> Tensor:
    defaults = {entry.name: entry for entry in SPECS[name].hyperparameters}
    structural, cheap = {}, {}
    for entry in defaults.values():
        value = values.get(entry.name, entry.default)
        if entry.per == "expert" and not isinstance(value, list):
            value = [value] * len(experts)
        (structural if entry.structural else cheap)[entry.name] = value
    keys = tuple(f"expert{index}" for index in range(len(experts)))
    out = torch.empty_like(experts[0])
    method = load_method(name)
    method.apply(method.prepare(base, experts, structural, TensorContext("w", 0, keys)), cheap, out)
    return out


def test_gram_matrices_are_inner_products() -> None:
    tensors = [random(seed).flatten() for seed in range(3)]
    origin = random(9).flatten()
    for base in (None, origin):
        vectors = torch.stack([t.double() - (0.0 if base is None else base.double()) for t in tensors])
        np.testing.assert_allclose(gram_matrix(tensors, base), (vectors @ vectors.T).numpy(), rtol=1e-12)
    rows = [tensor.view(SHAPE) for tensor in tensors]
    found = row_grams(rows, origin.view(SHAPE))
    wide = torch.stack([row.double() - origin.view(SHAPE).double() for row in rows])
    torch.testing.assert_close(found, torch.einsum("irc,jrc->ijr", wide, wide))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 64, 1001])
def test_tree_sum(size: int) -> None:
    values = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tree_sum(values), values.sum(-1))


def naive_slerp(t: float, first: Tensor, second: Tensor) -> Tensor:
    cosine = float((first * second).sum() / (first.norm() * second.norm()))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp_of_whole_tensors_rows_and_columns(with_base: bool) -> None:
    base, experts = family(2)
    origin = base if with_base else torch.zeros(SHAPE)
    first, second = (expert - origin for expert in experts)
    values = {"coefficient": [0.3, 0.9]}
    given = base if with_base else None
    expected = origin + naive_slerp(0.75, first, second)
    torch.testing.assert_close(run("nuslerp", given, experts, **values), expected)
    rows = origin + torch.stack([naive_slerp(0.75, a, b) for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(run("nuslerp", given, experts, **values, flatten=False), rows)
    columns = origin + torch.stack([naive_slerp(0.75, a, b) for a, b in zip(first.T, second.T, strict=True)]).T
    torch.testing.assert_close(run("nuslerp", given, experts, **values, flatten=False, row_wise=True), columns)


def test_nuslerp_ends_halves_and_needs_two() -> None:
    base, experts = family(2)
    for given in (None, base):
        torch.testing.assert_close(run("nuslerp", given, experts, coefficient=[1.0, 0.0]), experts[0])
        torch.testing.assert_close(run("nuslerp", given, experts, coefficient=[0.0, 1.0]), experts[1])
        half = run("nuslerp", given, experts, coefficient=[0.5, 0.5])
        assert torch.equal(run("nuslerp", given, experts, coefficient=[0.0, 0.0]), half)
    torch.testing.assert_close(run("nuslerp", None, experts, coefficient=[0.7, 0.3]), run("slerp", *[
        experts[0], [experts[1]]], t=0.3))  # fmt: skip
    with pytest.raises(UserError, match="two experts"):
        run("nuslerp", None, family(3)[1])


def test_nuslerp_of_opposite_models_is_finite() -> None:
    first = random(0)
    assert run("nuslerp", None, [first, -first], coefficient=[0.5, 0.5]).isfinite().all()


def multislerp_with_tangents(weights: list[float], models: list[Tensor]) -> Tensor:
    """The long form: project the tangents at the mean direction, average them, map back."""
    norms = [float(model.norm()) for model in models]
    units = [model / norm for model, norm in zip(models, norms, strict=True)]
    mean = sum(weight * unit for weight, unit in zip(weights, units, strict=True))
    assert isinstance(mean, Tensor)
    mean = mean / mean.norm()
    tangent = sum(weight * (unit - (unit * mean).sum() * mean) for weight, unit in zip(weights, units, strict=True))
    assert isinstance(tangent, Tensor)
    length = float(tangent.norm())
    direction = mean if length < 1e-8 else math.cos(length) * mean + math.sin(length) * tangent / length
    return direction * sum(weight * norm for weight, norm in zip(weights, norms, strict=True))


@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_is_its_long_form(with_base: bool) -> None:
    base, experts = family(3)
    origin = base if with_base else torch.zeros(SHAPE)
    expected = multislerp_with_tangents([0.2, 0.3, 0.5], [(expert - origin).double() for expert in experts])
    got = run("multislerp", base if with_base else None, experts, coefficient=[0.4, 0.6, 1.0])
    torch.testing.assert_close(got, origin + expected.float(), rtol=1e-5, atol=1e-6)
    norms = [float((expert - origin).norm()) for expert in experts]
    wanted = sum(weight * norm for weight, norm in zip((0.2, 0.3, 0.5), norms, strict=True))
    assert float((got - origin).norm()) == pytest.approx(wanted, rel=1e-5)


def test_multislerp_edges() -> None:
    _, experts = family(3)
    torch.testing.assert_close(run("multislerp", None, experts, coefficient=[0.0, 1.0, 0.0]), experts[1])
    opposite = [experts[0], -experts[0]]
    halfway = run("multislerp", None, opposite, coefficient=[0.75, 0.25], eps=1.0)
    torch.testing.assert_close(halfway, 0.5 * experts[0])  # two models: a weighted mean
    with pytest.raises(MergeFailed, match="cancel"):
        run("multislerp", None, [*opposite, torch.zeros(SHAPE)], coefficient=[0.5, 0.5, 0.0])
    with pytest.raises(MergeFailed, match="sum to 0"):
        run("multislerp", None, opposite, coefficient=[0.5, -0.5])


def karcher_on_vectors(models: list[Tensor], weights: list[float]) -> Tensor:
    """Gradient descent on the sphere with the vectors themselves."""
    units = [model / model.norm() for model in models]
    mean = sum(weight * unit for weight, unit in zip(weights, units, strict=True))
    assert isinstance(mean, Tensor)
    mean = mean / mean.norm()
    for _ in range(100):
        tangent = torch.zeros_like(mean)
        for weight, unit in zip(weights, units, strict=True):
            cosine = float((unit * mean).sum())
            angle = math.acos(min(1.0, cosine))
            tangent += weight * angle / math.sin(angle) * (unit - cosine * mean)
        step = float(tangent.norm())
        if step < 1e-12:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
    return mean * sum(weight * float(model.norm()) for weight, model in zip(weights, models, strict=True))


def test_karcher_is_the_iteration_on_vectors() -> None:
    models = [random(0), random(0) + random(1), random(0) - 2 * random(2)]
    expected = karcher_on_vectors([model.double() for model in models], [0.25, 0.25, 0.5]).float()
    got = run("karcher", None, models, coefficient=[1.0, 1.0, 2.0], max_iter=50, tol=1e-9)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    early = run("karcher", None, models, coefficient=[1.0, 1.0, 2.0], max_iter=1, tol=1e-9)
    assert not torch.allclose(early, expected, rtol=1e-5, atol=1e-6)


def test_karcher_of_two_is_the_middle_with_the_mean_norm() -> None:
    first, second = random(0), 3 * random(1)
    got = run("karcher", None, [first, second])
    middle = naive_slerp(0.5, first / first.norm(), second / second.norm())
    torch.testing.assert_close(got / got.norm(), middle, rtol=1e-4, atol=1e-6)
    assert float(got.norm()) == pytest.approx((float(first.norm()) + float(second.norm())) / 2, rel=1e-5)
    zero = torch.zeros(SHAPE)
    torch.testing.assert_close(run("karcher", None, [first, zero]), first / 2)
    assert torch.equal(run("karcher", None, [zero, zero]), zero)


def test_model_stock_by_hand() -> None:
    base, (first, second) = family(2)
    cosine = float(torch.cosine_similarity((first - base).flatten(), (second - base).flatten(), dim=0))
    t = 2 * cosine / (1 + cosine)
    expected = t * (first + second) / 2 + (1 - t) * base
    torch.testing.assert_close(run("model_stock", base, [first, second]), expected, rtol=1e-5, atol=1e-6)
    half = run("model_stock", base, [first, second], t_scale=0.5)
    torch.testing.assert_close(half, 0.5 * expected + 0.5 * base, rtol=1e-5, atol=1e-6)
    cosines = torch.cosine_similarity(first - base, second - base, dim=1).clamp_min(0.0)
    ratios = (2 * cosines / (1 + cosines))[:, None]
    by_row = ratios * (first + second) / 2 + (1 - ratios) * base
    got = run("model_stock", base, [first, second], filter_wise=True)
    torch.testing.assert_close(got, by_row, rtol=1e-5, atol=1e-6)


def test_model_stock_of_experts_at_right_angles_or_apart_is_the_base() -> None:
    base = random(0)
    delta, other = torch.zeros(SHAPE), torch.zeros(SHAPE)
    delta[0], other[1] = 1.0, 1.0
    for filter_wise in (False, True):
        right = run("model_stock", base, [base + delta, base + other], filter_wise=filter_wise)
        torch.testing.assert_close(right, base)
        apart = [base + delta, base - 0.9 * delta]
        torch.testing.assert_close(run("model_stock", base, apart, filter_wise=filter_wise), base)
        pole = run("model_stock", base, apart, filter_wise=filter_wise, clamp=False)
        assert pole.isfinite().all()


def test_varm_shares() -> None:
    base, tau = random(0), random(1, 0.1)
    experts = [base + tau, base + 2 * tau.flip(0), base.clone()]
    for exponent, (first, second) in {1.0: (0.2, 0.8), 2.0: (1 / 17, 16 / 17)}.items():
        expected = base + first * (experts[0] - base) + second * (experts[1] - base)
        torch.testing.assert_close(run("varm", base, experts, exponent=exponent), expected)
    torch.testing.assert_close(run("varm", base, experts, exponent=0.0), sum(experts) / 3)
    tiny = [base.double(), (base + 1e-4 * tau).double(), (base - 2e-4 * tau).double()]
    shares = run("varm", tiny[0], tiny[1:])
    torch.testing.assert_close(shares, tiny[0] + 0.2 * (tiny[1] - tiny[0]) + 0.8 * (tiny[2] - tiny[0]))
