"""Methods that choose among the changes of single weights: by hand, and what they promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import UserError
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method

N = 300_001  # more than one chunk


def run(name: str, base: Tensor, experts: list[Tensor], keys: tuple[str, ...] = (), **values: Any) -> Tensor:
    structural, cheap = {}, {}
    for entry in SPECS[name].hyperparameters:
        value = values.get(entry.name, entry.default)
        if entry.per == "expert" and not isinstance(value, list):
            value = [value] * len(experts)
        (structural if entry.structural else cheap)[entry.name] = value
    context = TensorContext("w", 0, keys or tuple(f"expert{index}" for index in range(len(experts))))
    out = torch.empty_like(base)
    method = load_method(name)
    method.apply(method.prepare(base, experts, structural, context), cheap, out)
    return out


def deltas(*columns: list[float]) -> tuple[Tensor, list[Tensor]]:
    """A base of ones and experts with these task vectors."""
    base = torch.ones(len(columns[0]))
    return base, [base + torch.tensor(column) for column in columns]


def family(count: int) -> tuple[Tensor, list[Tensor]]:
    """A base of zeros, so that task vectors are exact."""
    generator = torch.Generator().manual_seed(0)
    return torch.zeros(N), [torch.randn(N, generator=generator) for _ in range(count)]


def test_nearswap_is_a_bounded_step() -> None:
    base, experts = deltas([0.5, -0.5, 0.05, 0.0])
    torch.testing.assert_close(run("nearswap", base, experts, t=0.1), base + torch.tensor([0.1, -0.1, 0.05, 0.0]))
    base, experts = family(1)
    moved = run("nearswap", base, experts, t=0.25)
    assert float(moved.abs().max()) == 0.25
    assert torch.equal(run("nearswap", base, experts, t=100.0), experts[0])
    assert torch.equal(run("nearswap", base, experts, t=0.0), base)
    with pytest.raises(ValueError, match="negative"):
        run("nearswap", base, experts, t=-0.1)
    with pytest.raises(UserError, match="one expert"):
        run("nearswap", *family(2), t=0.1)


def test_magmax_takes_the_largest_change() -> None:
    base, experts = deltas([0.5, -0.5, 0.25, 0.0], [-0.75, 0.25, -0.25, 0.125])
    assert (run("magmax", base, experts, **{"lambda": 1.0}) - base).tolist() == [-0.75, -0.5, -0.25, 0.125]
    renamed = run("magmax", base, experts, ("b", "a"), **{"lambda": 1.0})
    assert (renamed - base).tolist() == [-0.75, -0.5, 0.25, 0.125]  # equal magnitudes: the later name
    base, experts = family(3)
    merged = run("magmax", base, experts, **{"lambda": 1.0})
    assert torch.equal(merged.abs(), torch.stack(experts).abs().amax(0))
    assert bool((torch.stack(experts) == merged).any(0).all())


def test_emr_takes_the_largest_change_of_the_elected_sign() -> None:
    base, experts = deltas([1.0, -1.0, 2.0, 0.0], [0.5, 0.75, -2.0, 0.0], [-1.25, 0.5, 0.0, 0.0])
    # sums 0.25, 0.25, 0 (counts as minus), 0
    assert (run("emr", base, experts) - base).tolist() == [1.0, 0.75, -2.0, 0.0]
    base, experts = family(3)
    unified, stacked = run("emr", base, experts), torch.stack(experts)
    assert bool((unified.abs() <= stacked.abs().amax(0)).all())
    assert bool((unified * stacked.sum(0) >= 0).all())


def test_consensus_by_hand() -> None:
    base, experts = deltas([1.0, 1.0, 0.0, 0.1], [1.0, 0.0, 0.0, 1.0])
    kept = {
        (2, 0.4): [2.0, 0.0, 0.0, 0.0],
        (1, 0.4): [2.0, 1.0, 0.0, 1.1],
        (2, 0.05): [2.0, 0.0, 0.0, 1.1],
        (0, 0.4): [2.0, 1.0, 0.0, 1.1],
        (3, 0.4): [0.0] * 4,
    }
    for (needed, threshold), expected in kept.items():
        got = run("consensus", base, experts, min_agreement=needed, mask_threshold=threshold, **{"lambda": 1.0})
        torch.testing.assert_close(got - base, torch.tensor(expected))


def test_consensus_masks_shrink_with_threshold_and_agreement() -> None:
    base, experts = family(3)

    def kept(needed: int, threshold: float) -> Tensor:
        values = {"min_agreement": needed, "mask_threshold": threshold}
        return run("consensus", base, experts, **values) != 0

    for needed in (1, 2, 3):
        assert bool((kept(needed, 0.8) <= kept(needed, 0.2)).all())
        assert bool((kept(needed + 1, 0.4) <= kept(needed, 0.4)).all())
    assert bool(kept(1, 0.0).all())
    arithmetic = run("task_arithmetic", base, experts, coefficient=1.0, **{"lambda": 0.3})
    torch.testing.assert_close(run("consensus", base, experts, min_agreement=0, **{"lambda": 0.3}), arithmetic)


def test_ram_means_what_overlaps_and_keeps_what_stands_alone() -> None:
    base, experts = deltas([1.0, 1.0, 0.0, 0.25], [0.5, 0.0, -2.0, 0.25])
    got = run("ram", base, experts, epsilon=0.3) - base
    assert got.tolist() == [0.75, 1.0, -2.0, 0.0]
    boosted = run("ramplus_tl", base, experts, epsilon=0.3, r=0.5, alpha=0.2) - base
    torch.testing.assert_close(boosted, torch.tensor([0.75, 1.1, -2.2, 0.0]))  # one shared, one alone for each
    base, experts = family(3)
    assert torch.equal(run("ram", base, experts, epsilon=100.0), base)
    parts = [expert * (torch.arange(N) % 3 == index) for index, expert in enumerate(experts)]
    torch.testing.assert_close(run("ram", base, parts, epsilon=0.0), sum(parts))  # disjoint supports
    with pytest.raises(ValueError, match="epsilon"):
        run("ram", base, experts, epsilon=-1.0)


def test_ramplus_counts_shares_over_the_tensor() -> None:
    base, experts = family(2)
    epsilon = 0.7
    first, second = (expert.abs() > epsilon for expert in experts)
    ratios = [float((first & second).sum() / (mask & ~(first & second)).sum()) for mask in (first, second)]
    got = run("ramplus_tl", base, experts, epsilon=epsilon, r=0.5, alpha=2.0)
    alone = torch.where(first, experts[0] * (1 + 0.5 * ratios[0]), experts[1] * (1 + 0.5 * ratios[1]))
    both = (experts[0] + experts[1]) / 2
    expected = torch.where(first & second, both, torch.where(first | second, alone, 0.0))
    torch.testing.assert_close(got, expected)
