"""Settings in which one method equals another, and what each promises of the entries it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import MergeFailed, UserError
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method
from evomerge.methods.magnitude_trim import LEVELS, MagnitudeRanking

N = 5000


def random(seed: int, size: int = N) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def run(
    name: str,
    base: Tensor | None,
    experts: Sequence[Tensor],
    *,
    rescale: str = "inv_density",
    seed: int = 0,
    **values: Any,
) -> Tensor:
    method = load_method(name)
    structural = {entry.name: entry.default for entry in SPECS[name].hyperparameters if entry.structural}
    structural |= {"rescale": rescale} if name.startswith("dare") else {}
    structural |= {key: values.pop(key) for key in sorted(structural.keys() & values.keys())}
    values = ({"merge_func": "mean"} if name == "ties" else {}) | values
    keys = tuple(f"expert{i}" for i in range(len(experts)))
    out = torch.empty_like(experts[0])
    method.apply(method.prepare(base, experts, structural, TensorContext("w", seed, keys)), values, out)
    return out


@pytest.mark.parametrize("rescale", ["inv_density", "l1", "none"])
@pytest.mark.parametrize("normalize", [False, True])
def test_dare_at_density_1_is_the_method_without_masks(rescale: str, normalize: bool) -> None:
    base, experts = random(0), [random(0) + 0.1 * random(i) for i in (1, 2)]
    shared: dict[str, Any] = {"coefficient": [0.4, 0.9], "normalize": normalize, "lambda": 1.1}
    full = {"density": [1.0, 1.0]}
    arithmetic = run("task_arithmetic", base, experts, **shared)
    torch.testing.assert_close(run("dare_linear", base, experts, rescale=rescale, **shared, **full), arithmetic)
    ties = run("ties", base, experts, **shared, **full)
    assert torch.equal(run("dare_ties", base, experts, rescale=rescale, **shared, **full), ties)


def test_dare_methods_share_their_masks() -> None:
    base, experts = random(0), [random(0) + random(1)]
    values: dict[str, Any] = {"coefficient": [0.7], "density": [0.3], "normalize": False, "lambda": 1.0}
    linear, ties = (run(name, base, experts, seed=5, **values) for name in ("dare_linear", "dare_ties"))
    assert torch.equal(linear, ties)  # one expert has nobody to disagree with
    assert 0.25 < float((linear != base).float().mean()) < 0.35


def test_dare_masks_depend_on_tensor_and_expert_and_are_nested() -> None:
    base, expert = torch.zeros(N), torch.ones(N)
    method = load_method("dare_linear")

    def kept(density: float, name: str = "w", key: str = "a") -> Tensor:
        state = method.prepare(base, [expert], {"rescale": "none"}, TensorContext(name, 0, (key,)))
        out = torch.empty(N)
        method.apply(state, {"coefficient": [1.0], "density": [density], "normalize": False, "lambda": 1.0}, out)
        return out

    assert torch.equal(kept(0.5), kept(0.5))
    assert bool((kept(0.5) <= kept(0.6)).all())
    for other in (kept(0.5, name="v"), kept(0.5, key="b")):
        assert float((kept(0.5) == other).float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_dare_is_unbiased_over_seeds(density: float) -> None:
    base, expert = torch.zeros(200), random(2, 200)
    values: dict[str, Any] = {"coefficient": [1.0], "density": [density], "normalize": False, "lambda": 1.0}
    seeds = 300
    mean = sum(run("dare_linear", base, [expert], seed=seed, **values) for seed in range(seeds)) / seeds
    assert isinstance(mean, Tensor)
    deviation = expert.abs() * ((1 - density) / density / seeds) ** 0.5
    assert float(((mean - expert) / deviation).abs().max()) < 4.5
    assert abs(float((mean / expert).mean()) - 1) < 4 * ((1 - density) / density / seeds / 200) ** 0.5


@pytest.mark.parametrize("density", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("size", [7, N, 150_000])
def test_l1_rescale_keeps_the_norm(density: float, size: int) -> None:
    base, expert = torch.zeros(size), random(3, size)
    values: dict[str, Any] = {"coefficient": [1.0], "density": [density], "normalize": False, "lambda": 1.0}
    out = run("dare_linear", base, [expert], rescale="l1", seed=4, **values)
    if int(out.count_nonzero()) == 0:
        assert size == 7
    else:
        assert float(out.double().abs().sum()) == pytest.approx(float(expert.double().abs().sum()), rel=1e-5)


def test_ties_of_opposite_experts_is_the_larger() -> None:
    base = random(0)
    large, small = 0.3 + random(1).abs(), 0.1
    signs = random(2).sign()
    experts = [base + signs * large, base - signs * small]
    for normalize in (False, True):
        out = run(
            "ties", base, experts, coefficient=[1.0, 1.0], density=[1.0, 1.0], normalize=normalize, **{"lambda": 1.0}
        )
        torch.testing.assert_close(out, experts[0], rtol=0, atol=1e-6)


def test_ties_elects_plus_on_a_draw() -> None:
    base = torch.zeros(4)
    plus, minus = torch.tensor([0.5, -0.5, 2.0, 0.0]), torch.tensor([-0.5, 0.5, -2.0, 0.0])
    for normalize in (False, True):
        out = run(
            "ties",
            base,
            [plus, minus],
            coefficient=[1.0, 1.0],
            density=[1.0, 1.0],
            normalize=normalize,
            **{"lambda": 1.0},
        )
        assert out.tolist() == [0.5, 0.5, 2.0, 0.0]


def test_ties_entries_of_zero_do_not_dilute_the_mean() -> None:
    base = torch.zeros(3)
    experts = [torch.tensor([0.0, 3.0, 1.0]), torch.tensor([2.0, 0.0, 2.0])]
    out = run("ties", base, experts, coefficient=[1.0, 3.0], density=[1.0, 1.0], normalize=True, **{"lambda": 1.0})
    assert out.tolist() == [2.0, 3.0, 1.75]


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("size", [1, 3, 1000, LEVELS])
def test_ranking_keeps_exactly_k_and_the_first_among_equals(with_table: bool, size: int) -> None:
    base = torch.zeros(size)
    expert = (random(1, size) * 3).round() / 8  # few magnitudes, many equal ones
    expert[size // 2] = 1.0
    ranking = MagnitudeRanking(base, expert, with_table)
    order = expert.abs().sort(descending=True, stable=True).indices
    for density in (1e-9, 0.001, 0.1, 0.1234, 0.5, 0.9, 1.0):
        k = max(1, int(density * size))
        expected = torch.zeros(size)
        expected[order[:k]] = expert[order[:k]]
        trim, kept = ranking.trim(density), expert.clone()
        if trim is not None:
            for start in range(0, size, 700):
                trim(kept[start : start + 700], start, torch.empty(0))
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("grid", [True, False])
def test_ranking_of_a_large_tensor_rounds_down_by_less_than_a_level(grid: bool) -> None:
    size = 200_001
    base, expert = torch.zeros(size), random(1, size)
    if grid:
        expert = (expert * 4).round() / 8
        expert[expert == 0] = 0.0625
    table, single = (MagnitudeRanking(base, expert, with_table) for with_table in (True, False))
    for density in (1e-6, 0.0501, 0.2, 0.33333, 0.77, 0.999999, 1.0):
        assert table.trim(density) == single.trim(density)
        trim, kept = table.trim(density), expert.clone()
        if trim is not None:
            trim(kept, 0, torch.empty(0))
        k, count = max(1, int(density * size)), int(kept.count_nonzero())
        assert max(1, k - size / LEVELS) <= count <= max(k, -(-size // LEVELS))
        dropped = expert[kept == 0].abs()
        assert len(dropped) == 0 or float(dropped.max()) <= float(kept[kept != 0].abs().min())
    assert 8 * LEVELS * 0.99 < table.table_bytes <= 8 * LEVELS
    assert single.table_bytes == 0


def test_slerp_ends_and_symmetry() -> None:
    start, end = random(1), random(2)
    assert torch.equal(run("slerp", start, [end], t=0.0), start)
    assert torch.equal(run("slerp", start, [end], t=1.0), end)
    torch.testing.assert_close(run("slerp", start, [end], t=0.3), run("slerp", end, [start], t=0.7))
    assert torch.equal(run("slerp", None, [start, end], t=0.3), run("slerp", start, [end], t=0.3))


def test_slerp_keeps_the_common_norm() -> None:
    start, end = random(1), random(2)
    end *= start.norm() / end.norm()
    middle = run("slerp", start, [end], t=0.4)
    assert float(middle.norm()) == pytest.approx(float(start.norm()), rel=1e-5)
    assert float((0.6 * start + 0.4 * end).norm()) < 0.9 * float(start.norm())


@pytest.mark.parametrize(("with_base", "count"), [(True, 2), (True, 3), (False, 1), (False, 3)])
def test_slerp_refuses_other_numbers_of_models(with_base: bool, count: int) -> None:
    with pytest.raises(UserError, match="slerp merges two models"):
        run("slerp", random(0) if with_base else None, [random(i) for i in range(count)], t=0.5)


def test_linear_of_one_hot_coefficients_is_that_model() -> None:
    experts = [random(i).bfloat16() for i in range(3)]
    for normalize in (False, True):
        out = run("linear", None, experts, coefficient=[0.0, 1.0, 0.0], normalize=normalize)
        assert torch.equal(out, experts[1])


def test_linear_stays_within_its_models() -> None:
    experts = [random(i) for i in range(3)]
    out = run("linear", None, experts, coefficient=[0.2, 0.5, 0.9], normalize=True)
    stacked = torch.stack(experts)
    assert bool((out >= stacked.amin(0) - 1e-6).all())
    assert bool((out <= stacked.amax(0) + 1e-6).all())


def test_linear_refuses_to_normalize_a_sum_of_zero() -> None:
    experts = [random(0), random(1)]
    with pytest.raises(MergeFailed, match="sum to 0"):
        run("linear", None, experts, coefficient=[0.5, -0.5], normalize=True)
    assert torch.equal(run("linear", None, experts, coefficient=[0.0, 0.0], normalize=False), torch.zeros(N))


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear"])
def test_task_vectors_that_sum_to_zero_are_not_normalized(name: str) -> None:
    base, experts = random(0), [random(0) + random(1)] * 2
    values: dict[str, Any] = {"coefficient": [1.0, -1.0], "normalize": True, "lambda": 1.0, "density": [1.0, 1.0]}
    torch.testing.assert_close(run(name, base, experts, **values), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.01])
def test_density_out_of_range_is_refused(name: str, density: float) -> None:
    values: dict[str, Any] = {"coefficient": [1.0], "density": [density], "normalize": False, "lambda": 1.0}
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        run(name, random(0), [random(1)], **values)


def test_unknown_rescale_is_refused() -> None:
    values: dict[str, Any] = {"coefficient": [1.0], "density": [0.5], "normalize": False, "lambda": 1.0}
    with pytest.raises(ValueError, match="inv_density, l1, none"):
        run("dare_ties", random(0), [random(1)], rescale="l2", **values)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_keep_the_band_below_the_largest(name: str) -> None:
    base, tau = torch.zeros(N), random(3)
    rank = tau.abs().argsort(descending=True).argsort()
    values: dict[str, Any] = {"coefficient": [1.0], "normalize": False, "lambda": 1.0}
    for density, gamma in ((0.3, 0.1), (0.9, 0.05), (0.95, 0.2), (0.5, 0.0), (0.01, 0.001)):
        got = run(name, base, [tau], density=[density], gamma=[gamma], **values)
        dropped = min(int(gamma * N), N - int(density * N))
        kept = (rank >= dropped) & (rank < dropped + int(density * N))
        assert torch.equal(got, tau * kept)
    assert torch.equal(run(name, base, [tau], density=[1.0], gamma=[0.1], **values), tau)
    with pytest.raises(ValueError, match="gamma"):
        run(name, base, [tau], density=[0.5], gamma=[1.0], **values)


def test_breadcrumbs_of_ties_and_zeros() -> None:
    base, tau = torch.zeros(8), torch.tensor([1.0, -1.0, 0.0, 1.0, 0.0, 2.0, 1.0, -2.0])
    values: dict[str, Any] = {"coefficient": [1.0], "normalize": False, "lambda": 1.0}
    got = run("breadcrumbs", base, [tau], density=[0.25], gamma=[0.375], **values)
    # Dropped: both 2 and the first 1. Kept: the next two of magnitude 1.
    assert got.tolist() == [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    nearly_zero = torch.tensor([0.0] * 7 + [3.0])
    assert torch.equal(run("breadcrumbs", base, [nearly_zero], density=[0.5], gamma=[0.25], **values), base)
