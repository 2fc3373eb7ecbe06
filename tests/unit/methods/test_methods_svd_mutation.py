"""The mutation of CycleQD (check T-CQD): what w does, what stays, and what decides the draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evomerge.methods.base import TensorContext
from evomerge.methods.svd_mutation import SvdMutation

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(9, 6, generator=GENERATOR)
EXPERT = BASE + torch.randn(9, 6, generator=GENERATOR)


def mutated(base: Tensor = BASE, expert: Tensor = EXPERT, seed: int = 3, name: str = "t", **values: Any) -> Tensor:
    method = SvdMutation()
    state = method.prepare(base, [expert], {}, TensorContext(name, seed, ("e",)))
    out = torch.empty_like(expert)
    method.apply(state, {"draw": 1, "w_min": 0.0, "w_max": 0.3, **values}, out)
    return out


def test_factors_of_one_and_no_draw_are_the_identity() -> None:
    assert torch.equal(mutated(w_min=1.0, w_max=1.0), EXPERT)
    assert torch.equal(mutated(draw=0), EXPERT)
    torch.testing.assert_close(mutated(w_min=1.0 - 1e-7, w_max=1.0), EXPERT, rtol=0, atol=1e-5)


def test_singular_vectors_stay_and_values_are_scaled_between_the_bounds() -> None:
    left, values, right = torch.linalg.svd(EXPERT - BASE, full_matrices=False)
    core = left.T @ (mutated() - BASE) @ right.T
    factors = core.diagonal() / values
    torch.testing.assert_close(core, torch.diag(core.diagonal()), rtol=0, atol=1e-5)
    assert 0.0 <= factors.min() < factors.max() <= 0.3
    torch.testing.assert_close(mutated(w_min=0.5, w_max=0.5), BASE + 0.5 * (EXPERT - BASE), rtol=0, atol=1e-5)


def test_vectors_are_untouched() -> None:
    assert torch.equal(mutated(BASE[0], EXPERT[0]), EXPERT[0])


def test_draw_seed_and_name_decide() -> None:
    assert torch.equal(mutated(), mutated())
    for other in ({"draw": 2}, {"seed": 4}, {"name": "u"}):
        assert not torch.equal(mutated(), mutated(**other))
