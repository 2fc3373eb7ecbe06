"""Methods over singular values: what their papers say holds, and which tensors they leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method

SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "star")


def delta(name: str, deltas: Sequence[Tensor], component: str = "mlp", **values: Any) -> Tensor:
    """The merged task vector over a base of zeros."""
    method, count = load_method(name), len(deltas)
    split: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for parameter in SPECS[name].hyperparameters:
        value = values.get(parameter.name, parameter.default)
        if parameter.per == "expert" and not isinstance(value, list):
            value = [value] * count
        split[not parameter.structural][parameter.name] = value
    context = TensorContext("w", 0, tuple(f"expert{index}" for index in range(count)), component=component)
    out = torch.empty_like(deltas[0])
    method.apply(method.prepare(torch.zeros_like(deltas[0]), deltas, split[0], context), split[1], out)
    return out


def random(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double()).float()


def close(got: Tensor, expected: Tensor, atol: float = 2e-4) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(24, 36), (36, 24)])
def test_tsv_m_has_the_largest_singular_values_of_every_expert(shape: tuple[int, int]) -> None:
    deltas = random(3, *shape)
    kept = torch.cat([values(matrix)[:8] for matrix in deltas])
    close(values(delta("tsv_m", deltas)), kept.sort(descending=True).values)
    weighted = delta("tsv_m", deltas, coefficient=[0.5, 2.0, 0.0], rank_share=[0.5, 2.0, 0.25])
    kept = torch.cat([0.5 * values(deltas[0])[:4], 2.0 * values(deltas[1])[:16], torch.zeros(4)])
    close(values(weighted), kept.sort(descending=True).values)


def test_tsv_m_of_one_expert_is_that_expert_and_of_copies_its_largest_directions() -> None:
    (matrix,) = random(1, 20, 30)
    close(delta("tsv_m", [matrix]), matrix)
    left, kept, right = torch.linalg.svd(matrix, full_matrices=False)
    # two equal columns make one direction of both, which the right vectors do too
    close(delta("tsv_m", [matrix, matrix.clone()]), (left[:, :10] * kept[:10]) @ right[:10])
    with pytest.raises(ValueError, match="rank_share"):
        delta("tsv_m", [matrix, matrix], rank_share=[1.5, 1.0])


def test_iso_c_makes_singular_values_equal_and_keeps_their_sum() -> None:
    deltas = random(2, 20, 30)
    total = deltas[0] + deltas[1]
    close(values(delta("iso_c", deltas)), values(total).mean().expand(20))
    close(delta("iso_c", deltas, isotropy=0.0), total)
    half = delta("iso_c", deltas, isotropy=0.5, coefficient=[1.0, 2.0])
    wanted = values(deltas[0] + 2 * deltas[1])
    close(values(half), (wanted + wanted.mean()) / 2)


def test_iso_c_adds_no_directions_that_are_not_there() -> None:
    left, right = random(1, 20, 3)[0], random(1, 3, 30)[0]
    merged = delta("iso_c", [left @ right])
    assert int(torch.linalg.matrix_rank(merged)) == 3
    close(values(merged)[:3], values(left @ right)[:3].mean().expand(3), atol=1e-3)


def test_iso_cts_by_definition() -> None:
    deltas = random(3, 12, 18)
    close(delta("iso_cts", deltas, common_share=1.0), delta("iso_c", deltas))
    total = torch.stack(deltas).sum(0)
    left, kept, right = torch.linalg.svd(total, full_matrices=False)
    common = 12 - round((12 - int(12 * 0.7)) / 3) * 3  # 9
    parts = []
    for matrix in deltas:
        own = torch.linalg.svd(matrix - left[:, :common] @ left[:, :common].T @ matrix, full_matrices=False)
        parts.append((own.U[:, :1], own.S[:1], own.Vh[:1]))
    parts.append((left[:, :common], kept[:common], right[:common]))
    rows, columns = torch.cat([part[0] for part in parts], 1), torch.cat([part[2] for part in parts], 0)
    orthogonal = [svd.U @ svd.Vh for svd in (torch.linalg.svd(side, full_matrices=False) for side in (rows, columns))]
    close(
        delta("iso_cts", deltas, common_share=0.7),
        torch.cat([part[1] for part in parts]).mean() * orthogonal[0] @ orthogonal[1],
    )


def test_star_keeps_the_nuclear_norm_in_fewer_directions() -> None:
    (matrix,) = random(1, 20, 30)
    total, ranks = values(matrix).sum(), []
    for eta in (10.0, 40.0, 80.0):
        merged = delta("star", [matrix], eta=eta)
        share = values(matrix).cumsum(0) / total
        ranks.append(int(torch.linalg.matrix_rank(merged)))
        assert ranks[-1] == int((share < eta / 100).sum()) + 1
        assert float(values(merged).sum()) == pytest.approx(float(total), rel=1e-4)
    assert ranks == sorted(set(ranks))
    close(delta("star", [matrix], eta=100.0), matrix)
    with pytest.raises(ValueError, match="eta"):
        delta("star", [matrix], eta=0.0)


@pytest.mark.parametrize("name", SPECTRAL)
def test_tables_and_vectors_are_averaged(name: str) -> None:
    matrices, vectors = random(2, 6, 8), random(2, 9)
    close(delta(name, matrices, component="head"), (matrices[0] + matrices[1]) / 2, atol=1e-6)
    close(delta(name, vectors), (vectors[0] + vectors[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_stack_of_matrices_is_merged_one_by_one(name: str) -> None:
    stacks = random(2, 3, 6, 8)
    expected = torch.stack([delta(name, [stack[index] for stack in stacks]) for index in range(3)])
    close(delta(name, stacks), expected)


@pytest.mark.parametrize("name", SPECTRAL)
def test_weights_that_are_not_finite_are_a_failed_merge(name: str) -> None:
    matrices = random(2, 6, 8)
    matrices[0][2, 3] = float("nan")
    with pytest.raises(MergeFailed, match="singular values"):
        delta(name, matrices)
