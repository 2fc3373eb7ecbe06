"""Every method against a slow fp64 implementation written from the formulas, on inputs with ties and zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method
from evomerge.methods.random_trim import DareState

SHAPE = (40, 25)
KEYS = ("math", "spanish", "code", "chat")


def make(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A base on a coarse grid and experts whose task vectors have few magnitudes, many zeros and exact opposites."""
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(SHAPE, generator=generator) * 16).round() / 16
    deltas = [(torch.randn(SHAPE, generator=generator) * 4).round() / 32 for _ in range(count)]
    if count > 1:
        deltas[1][:10] = -deltas[0][:10]
    return base.to(dtype), [(base + delta).to(dtype) for delta in deltas]


def run(name: str, base: Tensor | None, experts: Sequence[Tensor], rescale: str | None = None, **values: Any) -> Tensor:
    method = load_method(name)
    structural = {entry.name: entry.default for entry in SPECS[name].hyperparameters if entry.structural}
    structural |= {} if rescale is None else {"rescale": rescale}
    structural |= {key: values.pop(key) for key in sorted(structural.keys() & values.keys())}
    values = ({"merge_func": "mean"} if name == "ties" else {}) | values
    state = method.prepare(base, experts, structural, TensorContext("w", 3, KEYS[: len(experts)]))
    out = torch.empty(SHAPE)
    method.apply(state, values, out)
    return out


def trimmed(delta: Tensor, density: float) -> Tensor:
    flat = delta.flatten().tolist()
    kept = sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))[: max(1, int(density * len(flat)))]
    out = torch.zeros(len(flat), dtype=torch.float64)
    out[kept] = delta.flatten()[kept]
    return out.view(delta.shape)


def elected(weighted: list[Tensor], shares: Sequence[float], normalize: bool) -> Tensor:
    sign = torch.where(sum(weighted) >= 0, 1.0, -1.0)
    agrees = [(delta.sign() == sign).double() for delta in weighted]
    total = sum(delta * mask for delta, mask in zip(weighted, agrees, strict=True))
    divisor = sum(share * mask for share, mask in zip(shares, agrees, strict=True))
    return total / torch.where(divisor == 0, 1.0, divisor) if normalize else total


def doubles(base: Tensor, experts: Sequence[Tensor]) -> list[Tensor]:
    return [expert.double() - base.double() for expert in experts]


COEFFICIENTS = [(1.0, 1.0, 1.0), (0.3125, 0.875, 0.5), (0.5, -0.75, 1.25), (0.0, 0.5, 0.25), (-0.5, -0.25, -1.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
def test_ties(dtype: torch.dtype, normalize: bool, coefficients: tuple[float, ...]) -> None:
    base, experts = make(3, dtype)
    for densities in ((1.0, 1.0, 1.0), (0.2, 0.5, 0.05), (1e-5, 0.999, 0.4)):
        deltas = [trimmed(d, density) for d, density in zip(doubles(base, experts), densities, strict=True)]
        weighted = [c * d for c, d in zip(coefficients, deltas, strict=True)]
        expected = base.double() + 0.8 * elected(weighted, coefficients, normalize)
        got = run(
            "ties", base, experts, coefficient=coefficients, density=densities, normalize=normalize, **{"lambda": 0.8}
        )
        # signs of sums that are exactly 0 are elected alike: eighths and quarters on a grid leave no rounding
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("normalize", [False, True])
def test_ties_of_other_numbers_of_experts(count: int, normalize: bool) -> None:
    base, experts = make(count)
    coefficients = [0.5, 0.25, 1.0, 0.75][:count]
    deltas = [c * trimmed(d, 0.3) for c, d in zip(coefficients, doubles(base, experts), strict=True)]
    expected = base.double() + elected(deltas, coefficients, normalize)
    got = run(
        "ties", base, experts, coefficient=coefficients, density=[0.3] * count, normalize=normalize, **{"lambda": 1.0}
    )
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("normalize", [False, True])
def test_ties_of_other_ways_to_merge(count: int, dtype: torch.dtype, normalize: bool) -> None:
    base, experts = make(count, dtype)
    coefficients, densities = [0.5, -0.25, 1.0, 0.0, 0.75][:count], [0.3, 1.0, 0.7, 0.5, 0.2][:count]
    deltas = [
        c * trimmed(d, density) for c, d, density in zip(coefficients, doubles(base, experts), densities, strict=True)
    ]
    sign = torch.where(sum(deltas) >= 0, 1.0, -1.0)
    largest = sign * torch.stack([delta * sign for delta in deltas]).amax(0).clamp_min(0.0)
    shared = {"coefficient": coefficients, "density": densities, "normalize": normalize, "lambda": 0.8}
    for merge_func, merged in (("max", largest), ("sum", elected(deltas, coefficients, False))):
        got = run("ties", base, experts, merge_func=merge_func, **shared)
        torch.testing.assert_close(got.double(), base.double() + 0.8 * merged, rtol=0, atol=2e-6)


def test_ties_keeps_not_a_number_and_refuses_unknown_ways_to_merge() -> None:
    base, experts = make(3)
    shared: dict[str, Any] = {"coefficient": [1.0] * 3, "density": [1.0] * 3, "normalize": True, "lambda": 1.0}
    with pytest.raises(ValueError, match="merge_func must be one of mean, sum, max, got 'median'"):
        run("ties", base, experts, merge_func="median", **shared)
    for broken in experts:
        keep = float(broken[3, 4])
        broken[3, 4] = float("nan")
        for merge_func in ("mean", "sum", "max"):
            assert run("ties", base, experts, merge_func=merge_func, **shared).isnan().sum() == 1
        broken[3, 4] = keep


def masks(base: Tensor, experts: Sequence[Tensor], densities: Sequence[float]) -> list[Tensor]:
    """The entries DARE keeps, from the 16-bit uniforms alone."""
    state = load_method("dare_linear").prepare(
        base, experts, {"rescale": "none"}, TensorContext("w", 3, KEYS[: len(experts)])
    )
    assert isinstance(state, DareState)
    uniforms = [(32767 - state.codes[i].double()) / 65536 for i in range(len(experts))]
    return [(u < d).double().view(SHAPE) for u, d in zip(uniforms, densities, strict=True)]


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", ["inv_density", "l1", "none"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
def test_dare(name: str, rescale: str, normalize: bool, coefficients: tuple[float, ...]) -> None:
    base, experts = make(3)
    densities = (0.5, 0.25, 0.125)
    weighted = []
    for coefficient, delta, mask, density in zip(
        coefficients, doubles(base, experts), masks(base, experts, densities), densities, strict=True
    ):
        kept = delta * mask
        factor = {"inv_density": 1 / density, "l1": float(delta.abs().sum() / kept.abs().sum()), "none": 1.0}[rescale]
        weighted.append(coefficient * factor * kept)
    if name == "dare_ties":
        merged = elected(weighted, coefficients, normalize)
    else:
        merged = sum(weighted) / (sum(coefficients) if normalize else 1.0)
    got = run(
        name,
        base,
        experts,
        rescale,
        coefficient=coefficients,
        density=densities,
        normalize=normalize,
        **{"lambda": 0.8},
    )
    torch.testing.assert_close(got.double(), base.double() + 0.8 * merged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("coefficients", [*COEFFICIENTS, (0.5, -0.25, -0.25)], ids=str)
def test_task_arithmetic(normalize: bool, coefficients: tuple[float, ...]) -> None:
    base, experts = make(3)
    total = sum(coefficients) if normalize and abs(sum(coefficients)) > 1e-8 else 1.0
    merged = sum(c * d for c, d in zip(coefficients, doubles(base, experts), strict=True)) / total
    got = run("task_arithmetic", base, experts, coefficient=coefficients, normalize=normalize, **{"lambda": 0.8})
    torch.testing.assert_close(got.double(), base.double() + 0.8 * merged, rtol=0, atol=3e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
def test_linear(normalize: bool, coefficients: tuple[float, ...]) -> None:
    _, experts = make(3)
    total = sum(coefficients) if normalize else 1.0
    expected = sum(c * e.double() for c, e in zip(coefficients, experts, strict=True)) / total
    got = run("linear", None, experts, coefficient=coefficients, normalize=normalize)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mix", [1.0, 0.3, 0.02, 0.0, -1.0])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_slerp(mix: float, t: float) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(SHAPE, generator=generator)
    end = 1.5 * start * (1 - abs(mix)) + mix * torch.randn(SHAPE, generator=generator) if mix >= 0 else -2 * start
    v0, v1 = start.double(), end.double()
    cosine = float((v0 * v1).sum() / (v0.norm() * v1.norm()))
    if abs(cosine) > 0.9995:
        expected = (1 - t) * v0 + t * v1
    else:
        angle = torch.tensor(cosine, dtype=torch.float64).acos()
        expected = (((1 - t) * angle).sin() * v0 + (t * angle).sin() * v1) / angle.sin()
    got = run("slerp", start, [end], t=t)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)
