"""What tests of merge methods share that look at task vectors only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method


def delta(name: str, deltas: Sequence[Tensor], component: str = "mlp", **values: Any) -> Tensor:
    """The merged task vector over a base of zeros; hyperparameters that are not given are at their defaults."""
    method, count = load_method(name), len(deltas)
    split: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for parameter in SPECS[name].hyperparameters:
        value = values.pop(parameter.name, parameter.default)
        if parameter.per == "expert" and not isinstance(value, list):
            value = [value] * count
        split[not parameter.structural][parameter.name] = value
    assert not values
    context = TensorContext("w", 0, tuple(f"expert{index}" for index in range(count)), component=component)
    out = torch.empty_like(deltas[0])
    method.apply(method.prepare(torch.zeros_like(deltas[0]), deltas, split[0], context), split[1], out)
    return out


def random(count: int, *shape: int, seed: int = 7) -> list[Tensor]:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def close(got: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    """Assert that two tensors are equal up to a rounding."""
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)
