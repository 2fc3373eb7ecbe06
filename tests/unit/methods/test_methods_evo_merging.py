"""Evo-Merging against its formula, and what its two stages do on a small linear task (checks T-BBM-1 and T-BBM-2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evomerge.methods.adapter_method import Factors
from evomerge.methods.base import TensorContext
from evomerge.methods.evo_merging import EvoMerging, thinned
from evomerge.methods.magnitude_trim import MagnitudeRanking
from evomerge.search.base import Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.terms import Array, Gene, GeneKind

RANK, ROWS, COLUMNS = 3, 12, 16


def adapter(seed: int, size: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(ROWS, RANK, generator=generator), torch.randn(RANK, COLUMNS, generator=generator)
    return Factors(up * size, down * size)


def kept(down: Tensor, keep: float) -> Tensor | None:
    flat = down.reshape(-1)
    return thinned(down, MagnitudeRanking(torch.zeros_like(flat), flat, with_table=True), keep)


def merger(base: Tensor, pool: list[Factors]) -> Callable[[list[float], list[float]], Tensor]:
    method = EvoMerging()
    context = TensorContext("t", 0, tuple(f"e{i}" for i in range(len(pool))), factors=tuple(pool))
    state = method.prepare(base, [], {}, context)

    def merged(keep: list[float], scale: list[float]) -> Tensor:
        out = torch.empty_like(base)
        method.apply(state, {"keep": keep, "scale": scale}, out)
        return out

    return merged


def test_both_factors_are_summed_and_only_the_downward_ones_thinned() -> None:
    base, pool = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(5)), [adapter(1), adapter(2)]
    out = merger(base, pool)([0.25, 0.5], [0.7, -0.4])
    downs = []
    for entry, count in zip(pool, (12, 24)):
        limit = entry.down.abs().reshape(-1).sort(descending=True).values[count - 1]
        downs.append(torch.where(entry.down.abs() >= limit, entry.down, 0.0))
    change = (0.7 * pool[0].up - 0.4 * pool[1].up) @ (0.7 * downs[0] - 0.4 * downs[1])
    torch.testing.assert_close(out, base + change, rtol=0, atol=1e-5)


def test_one_expert_counts_with_the_square_of_its_scale() -> None:
    base, only = torch.zeros(ROWS, COLUMNS), adapter(1)
    merged = merger(base, [only])
    torch.testing.assert_close(merged([1.0], [-0.5]), 0.25 * (only.up @ only.down), rtol=0, atol=1e-6)
    assert torch.equal(merged([1.0], [-0.5]), merged([1.0], [0.5]))
    torch.testing.assert_close(merged([1.0], [1.0]), only.up @ only.down, rtol=0, atol=1e-6)


def test_keeping_nothing_everything_and_ties() -> None:
    down = adapter(3).down
    assert kept(down, 0.0) is None
    assert torch.equal(merger(torch.ones(ROWS, COLUMNS), [adapter(3)])([0.0], [1.0]), torch.ones(ROWS, COLUMNS))
    assert torch.equal(kept(down, 1.0), down)
    equal = torch.tensor([[1.0, -2.0, 1.0, -1.0], [0.0, 1.0, 3.0, -1.0]])
    for count, wanted in ((3, [0, 1, 6]), (4, [0, 1, 2, 6]), (6, [0, 1, 2, 3, 5, 6])):
        found = kept(equal, count / 8)
        assert found is not None
        assert found.reshape(-1).nonzero().flatten().tolist() == wanted  # of equal ones the first
        assert torch.equal(found[found != 0], equal[found != 0])
    many = torch.ones(1, 70_000)  # beyond the levels of the table, by less than one of them
    found = kept(many, 0.5)
    assert found is not None
    assert 34_998 <= int(found.sum()) <= 35_000


class Toy:
    """A linear map that needs the first adapter; the others are noise. Loss as in the paper, with the penalty."""

    def __init__(self, num_random: int) -> None:
        generator = torch.Generator().manual_seed(11)
        self.pool = [adapter(20), *(adapter(30 + i) for i in range(num_random))]
        self.count = len(self.pool)
        base = torch.randn(ROWS, COLUMNS, generator=generator)
        self.inputs = torch.randn(COLUMNS, 64, generator=generator)
        self.merged = merger(base, self.pool)
        # What the useful adapter does at the uniform scales of the first stage.
        self.wanted = self.merged([1.0] + [0.0] * num_random, [1.0 / self.count] * self.count) @ self.inputs

    def loss(self, keep: list[float], scale: list[float]) -> float:
        return float((self.merged(keep, scale) @ self.inputs - self.wanted).square().mean())


def search(
    loss: Callable[[list[float]], float], start: float, low: float, high: float, count: int, evaluations: int
) -> tuple[list[tuple[float, Array]], list[float]]:
    """All (loss, genes), and the mean loss of each generation of 20."""
    genes = tuple(Gene(f"g{i}", GeneKind.REAL, low, high, start) for i in range(count))
    settings = {"population_size": 20, "sigma": 0.05 / (high - low), "lr_adapt": False, "propose_initial": True}
    optimizer = build_optimizer("cma_es", Problem(genes, 1, seed=42, evaluations=evaluations), settings)
    seen: list[tuple[float, Array]] = []
    means = []
    for _ in range(evaluations // 20):
        asked = [optimizer.ask() for _ in range(20)]
        values = [loss(list(proposal.genotype)) for proposal in asked]
        optimizer.tell([Result(p.index, p.genotype, (-value,)) for p, value in zip(asked, values)])
        seen += [(value, proposal.genotype) for value, proposal in zip(values, asked)]
        means.append(float(np.mean(values)))
    return seen, means


def test_first_stage_drives_useless_adapters_out_and_the_second_starts_where_it_ended() -> None:
    toy = Toy(num_random=3)
    uniform = [1.0 / toy.count] * toy.count
    first, means = search(
        lambda keep: toy.loss(keep, uniform) + 0.05 * float(np.mean(np.abs(keep))), 1.0, 0.0, 1.0, toy.count, 1200
    )
    assert list(first[0][1]) == [1.0] * toy.count  # all adapters whole
    quarters = [float(np.mean(part)) for part in np.array_split(means, 4)]
    assert quarters == sorted(quarters, reverse=True)
    value, keep = min(first, key=lambda entry: entry[0])
    assert value < 0.5 * first[0][0]
    assert keep[0] > 0.5 > 0.25 > max(keep[1:])

    second, _ = search(
        lambda scale: toy.loss(list(keep), scale) + 0.05 * float(np.mean(np.abs(scale))),
        1.0 / toy.count, -1.5, 1.5, toy.count, 100,
    )  # fmt: skip
    assert list(second[0][1]) == uniform  # the first stage's model is a candidate, so a worse second one is rejected
    hopeless = [(100.0 if number else loss, scale) for number, (loss, scale) in enumerate(second)]
    assert list(min(hopeless, key=lambda entry: entry[0])[1]) == uniform
    assert min(loss for loss, _ in second) <= second[0][0]
