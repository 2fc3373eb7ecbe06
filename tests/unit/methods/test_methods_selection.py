"""DELLA, SCE, Arcee Fusion and passthrough against their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method


def run(
    name: str, base: Tensor | None, experts: Sequence[Tensor], seed: int = 0, component: str = "mlp", **values: Any
) -> Tensor:
    method, count = load_method(name), len(experts)
    split: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for parameter in SPECS[name].hyperparameters:
        value = values.get(parameter.name, parameter.default)
        if parameter.per == "expert" and not isinstance(value, list):
            value = [value] * count
        split[not parameter.structural][parameter.name] = value
    context = TensorContext("w", seed, tuple(f"expert{index}" for index in range(count)), component=component)
    out = torch.empty_like(experts[0], dtype=torch.float32)
    method.apply(method.prepare(base, experts, split[0], context), split[1], out)
    return out


def family(count: int, *shape: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(shape, generator=generator)
    return base, [base + torch.randn(shape, generator=generator) / 8 for _ in range(count)]


@pytest.mark.parametrize(("della", "dare"), [("della_linear", "dare_linear"), ("della", "dare_ties")])
@pytest.mark.parametrize(("rescale", "same"), [("none", "none"), ("l1", "l1"), ("inv_prob", "inv_density")])
def test_della_without_spread_is_dare(della: str, dare: str, rescale: str, same: str) -> None:
    base, experts = family(2, 20, 30)
    values = {"coefficient": [0.6, 0.9], "density": [0.5, 0.25], "normalize": False, "lambda": 0.7}
    got = run(della, base, experts, epsilon=0.0, rescale=rescale, **values)
    torch.testing.assert_close(got, run(dare, base, experts, rescale=same, **values), rtol=0, atol=1e-6)


def test_della_keeps_each_rank_with_its_probability_and_is_unbiased() -> None:
    density, epsilon, rows, columns = 0.5, 0.2, 4000, 11
    magnitudes = (torch.arange(columns) + 1.0).expand(rows, columns)
    signs = torch.where(torch.arange(rows)[:, None] % 2 == 0, 1.0, -1.0)
    base, values = torch.zeros(rows, columns), {"density": density, "epsilon": epsilon, "coefficient": 1.0}
    kept = run("della_linear", base, [magnitudes * signs], rescale="none", **values) != 0.0
    expected = density - epsilon + 2 * epsilon * torch.arange(columns) / (columns - 1)
    assert bool(((kept.float().mean(0) - expected).abs() < 4 * (0.25 / rows) ** 0.5).all())
    divided = run("della_linear", base, [magnitudes * signs], rescale="inv_prob", **values)
    torch.testing.assert_close(divided[kept], (magnitudes * signs / expected)[kept], rtol=1e-4, atol=0)
    mass = run("della_linear", base, [magnitudes * signs], rescale="l1", **values)
    assert float(mass.abs().sum()) == pytest.approx(float(magnitudes.sum()), rel=1e-5)


def test_della_ranks_each_row_by_itself_and_a_vector_as_one() -> None:
    row = torch.linspace(1.0, 2.0, 500)
    delta = torch.stack([row, 1000.0 * row.flip(0)])
    values = {"density": 0.5, "epsilon": 0.5, "rescale": "none", "coefficient": 1.0}
    kept = run("della_linear", torch.zeros_like(delta), [delta], **values) != 0.0
    assert float(kept[0, 450:].float().mean()) > 0.8 > 0.2 > float(kept[0, :50].float().mean())
    assert float(kept[1, :50].float().mean()) > 0.8 > 0.2 > float(kept[1, 450:].float().mean())
    flat = run("della_linear", torch.zeros(1000), [delta.flatten()], **values) != 0.0
    assert float(flat[500:].float().mean()) > 0.6 > 0.4 > float(flat[:500].float().mean())
    lone = run("della_linear", torch.zeros(5000, 1), [torch.ones(5000, 1)], **values)
    assert float(lone.mean()) == pytest.approx(0.5, abs=0.03)  # a row of one is neither large nor small


def test_della_at_full_density_keeps_all_and_bad_values_are_refused() -> None:
    base, experts = family(2, 9, 7)
    torch.testing.assert_close(
        run("della_linear", base, experts, density=1.0, coefficient=[0.5, 0.7]),
        run("task_arithmetic", base, experts, coefficient=[0.5, 0.7]),
        rtol=0,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="epsilon"):
        run("della", base, experts, epsilon=0.6)
    with pytest.raises(ValueError, match="rescale"):
        run("della", base, experts, rescale="inv_density")


def sce(base: Tensor, experts: Sequence[Tensor], fraction: float) -> Tensor:
    deltas = torch.stack([expert.double() - base.double() for expert in experts]).flatten(1)
    variance = deltas.var(0, unbiased=False)
    order = variance.sort(descending=True, stable=True).indices
    mask = torch.zeros_like(variance)
    mask[order[: int(fraction * int((variance > 0).sum()))]] = 1.0
    deltas = deltas * (mask if fraction < 1.0 else 1.0)
    shares = deltas.square().mean(1) / deltas.square().mean(1).sum()
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agrees = shares[:, None] * (deltas.sign() == sign)
    merged = (deltas * agrees).sum(0) / agrees.sum(0).clamp_min(1e-6)
    return base.double() + merged.view(base.shape)


@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.1])
def test_sce_is_its_definition_whatever_the_scale_of_the_changes(fraction: float) -> None:
    base, experts = family(3, 19, 23)
    experts[1] = base + 3 * (experts[1] - base)
    for scale in (1.0, 1e-4):  # mean squares far below what mergekit takes for nothing
        near = [torch.zeros_like(base) + scale * (expert - base) for expert in experts]
        got = run("sce", torch.zeros_like(base), near, select_topk=fraction)
        torch.testing.assert_close(
            got.double() / scale, sce(torch.zeros_like(base), near, fraction) / scale, rtol=0, atol=1e-6
        )


def test_sce_selects_nothing_among_identical_experts() -> None:
    base, experts = family(1, 8, 8)
    same = [experts[0], experts[0].clone()]
    assert torch.equal(run("sce", base, same, select_topk=0.5), base)
    torch.testing.assert_close(run("sce", base, same, select_topk=1.0), experts[0], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="select_topk"):
        run("sce", base, same, select_topk=0.0)


@pytest.mark.parametrize("shape", [(40, 30), (77,), (3, 4, 5)])
@pytest.mark.parametrize("factor", [0.0, 1.5])
def test_arcee_fusion_is_its_definition(shape: tuple[int, ...], factor: float) -> None:
    base, experts = family(1, *shape)
    new, old = ((matrix.double().softmax(-1) + 1e-8) for matrix in (experts[0], base))
    divergence = (new * (new / old).log()).sum(-1, keepdim=True)
    importance = (experts[0] - base).abs() * divergence
    ordered = importance.flatten().sort().values
    first, median, third = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    mask = importance >= median + factor * (third - first)
    assert 0 < int(mask.sum()) < mask.numel()
    got = run("arcee_fusion", base, experts, iqr_factor=factor, **{"lambda": 0.5})
    torch.testing.assert_close(got, base + 0.5 * (experts[0] - base) * mask, rtol=0, atol=1e-6)


def test_passthrough_keeps_every_bit_and_scales() -> None:
    tensor = torch.tensor([0.0, -0.0, 1.5, -2.0])
    assert torch.equal(run("passthrough", None, [tensor]).view(torch.int32), tensor.view(torch.int32))
    assert run("passthrough", None, [tensor], scale=0.5).tolist() == [0.0, 0.0, 0.75, -1.0]


def test_delta_guided_by_definition_and_as_varm() -> None:
    base, experts = family(3, 9, 11)
    experts[0][0], experts[1][1] = base[0], base[1]
    deltas = torch.stack([expert.double() - base.double() for expert in experts])
    for p, q, mix in ((2.0, 1.5, 0.3), (0.0, 0.0, 0.5), (3.0, 0.0, 1.0), (1.0, 3.0, 1.0)):
        norms = deltas.flatten(1).norm(dim=1) ** p
        weight = (1 - mix) * (norms / norms.sum())[:, None, None] + mix * deltas.abs() ** q / (deltas.abs() ** q).sum(0)
        values = {"tensor_exponent": p, "element_exponent": q, "element_share": mix, "lambda": 0.7}
        expected = base.double() + 0.7 * (weight * deltas).sum(0)
        torch.testing.assert_close(run("delta_guided", base, experts, **values).double(), expected, rtol=0, atol=1e-6)
    as_varm = run("delta_guided", base, experts, tensor_exponent=2.0, element_share=0.0)
    torch.testing.assert_close(as_varm, run("varm", base, experts), rtol=0, atol=1e-6)
    tiny = [base * 0 + 1e-12 * delta.float() for delta in deltas]  # whose third powers fp32 does not have
    got = run("delta_guided", base * 0, tiny, element_exponent=3.0, element_share=1.0) * 1e12
    cubes = deltas.abs() ** 3
    torch.testing.assert_close(got.double(), (cubes / cubes.sum(0) * deltas).sum(0), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="element_share"):
        run("delta_guided", base, experts, element_share=1.5)


def test_metric_weighted_ranges_from_the_mean_to_the_best() -> None:
    base, experts = family(3, 5, 5)
    mean = torch.stack(experts).mean(0)
    torch.testing.assert_close(run("metric_weighted", base, experts, loss=[3.0, 1.0, 2.0], exponent=0.0), mean)
    torch.testing.assert_close(run("metric_weighted", base, experts, loss=[0.4] * 3, exponent=7.0), mean)
    best = run("metric_weighted", base, experts, loss=[3.0, 1.0, 2.0], exponent=200.0)
    torch.testing.assert_close(best, experts[1], rtol=0, atol=1e-6)
    weights = torch.tensor([1 / 9, 1.0, 1 / 4]) / (1 / 9 + 1 + 1 / 4)
    expected = sum(weight * expert for weight, expert in zip(weights, experts, strict=True))
    for factor in (1.0, 1e-3):
        got = run("metric_weighted", base, experts, loss=[3 * factor, factor, 2 * factor], exponent=2.0)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        run("metric_weighted", base, experts, loss=[1.0, 0.0, 1.0])


def test_consensus_ties_masks_the_elected_sum() -> None:
    base, experts = family(3, 12, 13)
    values = {"density": [0.3, 0.5, 0.9], "lambda": 0.6}
    elected = run("ties", base, experts, coefficient=1.0, normalize=False, **values)
    torch.testing.assert_close(
        run("consensus_ties", base, experts, min_agreement=0, **values), elected, rtol=0, atol=1e-6
    )
    merged = (elected.double() - base.double()) / 0.6
    deltas = [expert.double() - base.double() for expert in experts]
    for needed in (1, 2, 3):
        thresholds = [0.9, 1.5, 2.5]
        counts = sum(
            (delta.abs() > zeta * (merged - delta).abs()).int() for delta, zeta in zip(deltas, thresholds, strict=True)
        )
        got = run("consensus_ties", base, experts, mask_threshold=thresholds, min_agreement=needed, **values)
        kept = counts >= needed
        assert 0 < int(kept.sum()) < kept.numel()
        torch.testing.assert_close(got, torch.where(kept, elected, base), rtol=0, atol=1e-6)


def widen(base: Tensor, experts: Sequence[Tensor], by_row: bool, ratio: float, calibration: float) -> Tensor:
    """Column by column, in fp64."""
    matrices = [matrix.double() if not by_row else matrix.double().t() for matrix in (base, *experts)]
    origin, count = matrices[0], matrices[0].shape[1]

    def ranks(changes: list[float]) -> Tensor:
        order = sorted(range(count), key=lambda column: (changes[column], column))
        return torch.tensor([order.index(column) / count for column in range(count)])

    significance = []
    for matrix in matrices[1:]:
        columns = range(count)
        lengths = [abs(float(matrix[:, i].norm() - origin[:, i].norm())) for i in columns]
        turns = [1 - float(torch.nn.functional.cosine_similarity(matrix[:, i], origin[:, i], dim=0)) for i in columns]
        significance.append(torch.stack([ranks(lengths), ranks(turns)]))
    table = torch.stack(significance)
    score = table.softmax(0)
    for expert in range(len(table)):
        for kind in range(2):
            mean = table[expert, kind].mean()
            score[expert, kind][table[expert, kind] > ratio * mean] = calibration
    weights = score.mean(1).double()
    merged = origin + sum(weight * (matrix - origin) for weight, matrix in zip(weights, matrices[1:], strict=True))
    return merged.t() if by_row else merged


@pytest.mark.parametrize("component", ["mlp", "head", "embeddings"])
def test_widen_is_its_definition(component: str) -> None:
    base, experts = family(3, 14, 11)
    for ratio, calibration in ((1.0, 1.0), (0.7, 0.4)):
        got = run("widen", base, experts, component=component, ratio=ratio, calibration=calibration)
        expected = widen(base, experts, component == "embeddings", ratio, calibration)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


def test_widen_of_vectors_weighs_every_element() -> None:
    base, experts = family(2, 9)
    deltas = torch.stack([expert - base for expert in experts])
    score = deltas.abs().softmax(0)
    score = torch.where(deltas.abs() > 0.8 * deltas.abs().mean(1, keepdim=True), 0.5, score)
    got = run("widen", base, experts, ratio=0.8, calibration=0.5, **{"lambda": 0.9})
    torch.testing.assert_close(got, base + 0.9 * (deltas * score).sum(0), rtol=0, atol=1e-6)
