"""The compiled loops: conversions to the bit, NaN kept, sums in the order promised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evomerge.methods.compiled import Combination, Part, copy, fits, merge_deltas, weighted_sum
from evomerge.methods.kernels import BLOCK
from evomerge.methods.trim import MAGNITUDE, RANDOM, Rule

HALVES = (torch.float16, torch.bfloat16)
NAN = float("nan")


def every_half(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def same(left: Tensor, right: Tensor) -> bool:
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    halves, out = every_half(dtype), torch.empty(1 << 16)
    weighted_sum(out, [halves], [1.0])
    assert same(out, halves.float())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fp32_is_rounded_as_torch_rounds_it(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (1 << 20,), dtype=torch.int64, generator=generator)
    exact = every_half(dtype).float()
    ties = (exact + exact.roll(-1)) / 2  # halfway between neighbours
    small = torch.randn(1 << 18, generator=generator) * 1e-6  # subnormal in fp16
    values = torch.cat([bits.to(torch.int32).view(torch.float32), exact, ties, small, small * 1e11])
    out = torch.empty(len(values), dtype=dtype)
    weighted_sum(out, [values], [1.0])
    assert same(out, values.to(dtype))


@pytest.mark.parametrize("combine", ["sum", "elected_sum", "elected_mean"])
@pytest.mark.parametrize("rule", [Rule(), Rule(MAGNITUDE, 5.0, 1)], ids=["all", "magnitude"])
def test_nan_reaches_the_result(combine: Combination, rule: Rule) -> None:
    base, expert, other, out = torch.zeros(3), torch.tensor([1.0, NAN, 1.0]), torch.ones(3), torch.zeros(3)
    merge_deltas(combine, out, base, [Part(expert, 0.5, 0.5, rule), Part(other, 0.5, 0.5, Rule())], 1.0)
    assert out.isnan().tolist() == [False, True, False]


def test_magnitude_keeps_ties_before_the_cut_and_larger_ones_everywhere() -> None:
    delta = torch.tensor([2.0, -2.0, 1.0, 2.0, 3.0] * 300)
    for cut in (0, 2, 700, 1024, 1500):
        out = torch.empty(1500)
        merge_deltas("sum", out, torch.zeros(1500), [Part(delta, 1.0, 1.0, Rule(MAGNITUDE, 2.0, cut))], 1.0)
        kept = (delta.abs() > 2.0) | ((delta.abs() == 2.0) & (torch.arange(1500) < cut))
        assert torch.equal(out, delta * kept)


def test_random_keeps_codes_above_the_limit() -> None:
    codes = torch.arange(-750, 750, dtype=torch.int16)
    out = torch.empty(1500)
    merge_deltas("sum", out, torch.zeros(1500), [Part(torch.ones(1500), 1.0, 1.0, Rule(RANDOM, 10, codes=codes))], 2.0)
    assert torch.equal(out, 2.0 * (codes > 10))


def test_election_by_hand() -> None:
    base = torch.ones(4)
    first, second = base + torch.tensor([1.0, 1.0, -2.0, 0.0]), base + torch.tensor([2.0, -3.0, -1.0, 0.0])
    parts = [Part(first, 1.0, 2.0, Rule()), Part(second, 1.0, 3.0, Rule())]
    out = torch.empty(4)
    merge_deltas("elected_sum", out, base, parts, 10.0)
    assert out.tolist() == [31.0, -29.0, -29.0, 1.0]
    merge_deltas("elected_mean", out, base, parts, 10.0)
    assert torch.allclose(out, torch.tensor([1 + 30 / 5, 1 - 30 / 3, 1 - 30 / 5, 1.0]))


def test_entries_that_cancel_sum_to_zero_exactly() -> None:
    third = torch.full((64,), 1.0 / 3.0)
    parts = [Part(third, 0.7, 0.7, Rule()), Part(third, -0.7, -0.7, Rule())]
    out = torch.empty(64)
    merge_deltas("sum", out, torch.zeros(64), parts, 1.0)
    assert bool((out == 0.0).all())
    merge_deltas("elected_sum", out, torch.zeros(64), parts, 1.0)
    assert torch.equal(out, third * torch.tensor(0.7))  # a tie counts as plus


def test_a_strided_output_is_filled_and_what_does_not_fit_is_refused() -> None:
    out = torch.empty(4, 6).t()
    weighted_sum(out, [torch.arange(24.0)], [2.0])
    assert torch.equal(out, 2.0 * torch.arange(24.0).view(6, 4))
    with torch.inference_mode():
        weighted_sum(inferred := torch.empty(24), [torch.ones(24)], [2.0])
    assert torch.equal(inferred, torch.full((24,), 2.0))
    assert fits(out, [torch.zeros(24)])
    assert not fits(out, [torch.zeros(48)[::2]])
    assert not fits(torch.empty(24, dtype=torch.float64), [torch.zeros(24)])
    assert not fits(torch.empty(24, device="meta"), [torch.zeros(24)])


def test_block_boundaries() -> None:
    for size in (1, BLOCK - 1, BLOCK, BLOCK + 1):
        source = torch.arange(float(size))
        out = torch.full((size + 1,), -7.0)
        weighted_sum(out[:size], [source, source], [1.0, 2.0])
        assert torch.equal(out[:size], 3.0 * source)
        assert out[size] == -7.0


@pytest.mark.parametrize("source_dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, *HALVES], ids=str)
def test_copy_casts_and_finds_what_is_not_finite(source_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    source = torch.linspace(-5.0, 5.0, 100_000).to(source_dtype)
    out = torch.empty(100_000, dtype=out_dtype)
    assert copy(out, source)
    assert torch.equal(out, source.to(out_dtype))
    assert copy(None, source)
    for place in (0, 70_000, 99_999):
        for value in (NAN, float("inf"), -float("inf")):
            broken = source.clone()
            broken[place] = value
            assert not copy(None, broken)
            assert not copy(out, broken)
            assert same(out[place], broken[place])
