"""The compiled loops: conversions to the bit, NaN kept, sums in the order promised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evomerge.methods.compiled import Combination, Part, fits, is_finite, merge_deltas, weighted_sum
from evomerge.methods.kernels import BLOCK
from evomerge.methods.trim import ALL, BAND, MAGNITUDE, RANDOM, Rule

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


CODES = torch.randint(-(1 << 15), 1 << 15, (3000,), generator=torch.Generator().manual_seed(1)).to(torch.int16)
RULES = {
    "all": [Rule()] * 3,
    "magnitude": [Rule(MAGNITUDE, 0.002, 700), Rule(), Rule(MAGNITUDE, 0.004, 701)],
    "random": [Rule(RANDOM, limit, codes=CODES.roll(limit)) for limit in (0, -900, 20_000)],
    "random_and_all": [Rule(RANDOM, 0, codes=CODES), Rule(), Rule(RANDOM, 9, codes=CODES)],
    "band": [Rule(BAND, 0.001, 900, 0.004, 1900), Rule(MAGNITUDE, 0.002, 1000), Rule()],
}


def kept(rule: Rule, delta: Tensor) -> Tensor:
    index, magnitude = torch.arange(len(delta)), delta.abs()
    limit, upper = (float(torch.tensor(number)) for number in (rule.limit, rule.upper))
    if rule.kind == RANDOM:
        assert rule.codes is not None
        return rule.codes > rule.limit
    if rule.kind == ALL:
        return torch.ones(len(delta), dtype=torch.bool)
    above = (magnitude > limit) | ((magnitude == limit) & (index < rule.cut))
    if rule.kind == BAND:
        above &= (magnitude < upper) | ((magnitude == upper) & (index >= rule.upper_cut))
    return above


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("combine", ["sum", "elected_sum", "elected_mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_merges_equal_their_definition_however_many_experts_one_loop_reads(
    combine: Combination, count: int, rules: list[Rule], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    base = (torch.randn(3000, generator=generator) * 8).round().div(1024).to(dtype)
    experts = [(base + (torch.randn(3000, generator=generator) * 3).round().div(1000)).to(dtype) for _ in range(count)]
    parts = [Part(e, f, s, r) for e, f, s, r in zip(experts, (0.5, -0.718, 0.937), (0.5, 0.25, 2.0), rules)]
    out = torch.empty(3000)
    merge_deltas(combine, out, base, parts, 0.75)

    weighted = [
        part.factor * (delta := part.expert.double() - base.double()) * kept(part.rule, delta) for part in parts
    ]
    total = torch.stack(weighted).sum(0)
    agrees = [(entry * torch.where(total >= 0, 1.0, -1.0) > 0).double() for entry in weighted]
    if combine != "sum":
        total = sum(entry * agree for entry, agree in zip(weighted, agrees))
    if combine == "elected_mean":
        divisor = sum(part.share * agree for part, agree in zip(parts, agrees))
        total = total / torch.where(divisor == 0, 1.0, divisor)
    torch.testing.assert_close(out.double(), base.double() + 0.75 * total, rtol=0, atol=1e-7)

    # A fourth expert that equals the base adds nothing, and has them read one by one.
    again = torch.empty(3000)
    idle = [Part(base, 1.0, 1.0, Rule(BAND, 0.0, 0, 1.0, 0))] * (4 - count)
    merge_deltas(combine, again, base, [*parts, *idle], 0.75)
    assert torch.equal(again, out)


def test_upper_halves_are_written_and_lower_ones_left_alone() -> None:
    words = torch.arange(1, 25, dtype=torch.int32).view(4, 6)
    upper = words.view(torch.bfloat16)[..., 1::2]
    source = torch.randn(24, generator=torch.Generator().manual_seed(0))
    weighted_sum(upper, [source], [3.0])
    assert torch.equal(upper, (3.0 * source).bfloat16().view(4, 6))
    assert torch.equal(words & 0xFFFF, torch.arange(1, 25, dtype=torch.int32).view(4, 6))
    lower = words.view(torch.bfloat16)[..., ::2]
    weighted_sum(lower, [source], [2.0])
    assert torch.equal(lower, (2.0 * source).bfloat16().view(4, 6))
    assert torch.equal(upper, (3.0 * source).bfloat16().view(4, 6))
    part = words.view(torch.bfloat16)[1:, 1::2][:, :2]
    weighted_sum(part, [torch.ones(6)], [1.0])
    assert upper[1:].tolist() == [[1.0, 1.0, *row[2:]] for row in upper[1:].tolist()]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("source_dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, *HALVES], ids=str)
def test_weighted_sums_of_any_formats(source_dtype: torch.dtype, out_dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    sources = [torch.randn(3000, generator=generator).to(source_dtype) for _ in range(count)]
    weights, out = [0.7, -0.4, 1.3, 0.2][:count], torch.empty(3000, dtype=out_dtype)
    weighted_sum(out, sources, weights)
    exact = torch.zeros(3000)
    for source, weight in zip(sources, weights, strict=True):
        exact += source.float() * torch.tensor(weight)
    assert torch.equal(out, exact.to(out_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_what_is_not_finite_is_found(dtype: torch.dtype) -> None:
    source = torch.linspace(-5.0, 5.0, 100_000).to(dtype)
    source[5], source[6] = torch.finfo(dtype).max, torch.finfo(dtype).min
    assert is_finite(source)
    for place in (0, 70_000, 99_999):
        for value in (NAN, -NAN, float("inf"), -float("inf")):
            broken = source.clone()
            broken[place] = value
            assert not is_finite(broken)
