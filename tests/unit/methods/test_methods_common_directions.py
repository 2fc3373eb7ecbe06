"""Methods that see all task vectors in common directions, or their columns apart from their lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from tests.unit.methods.merging import close, delta, random

DRM = ("drm_h", "drm_v")
ALL = ("dc_merge", *DRM, "do_merging")


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.linalg.svd(matrix.double(), full_matrices=False))


def polar(matrix: Tensor) -> Tensor:
    left, _, right = svd(matrix)
    return left @ right


def low_rank(deltas: Sequence[Tensor], rank: int) -> list[Tensor]:
    parts = [svd(matrix) for matrix in deltas]
    return [(left[:, :rank] * values[:rank]) @ right[:rank] for left, values, right in parts]


@pytest.mark.parametrize("shape", [(12, 18), (18, 12)])
@pytest.mark.parametrize("keep", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("block_mask", [True, False])
def test_dc_merge_by_definition(shape: tuple[int, int], keep: float, block_mask: bool) -> None:
    deltas = random(3, *shape)
    lefts = polar(torch.cat([svd(matrix)[0][:, :4] for matrix in deltas], 1))
    rights = polar(torch.cat([svd(matrix)[2][:4] for matrix in deltas], 0))
    cores = []
    for matrix in low_rank(deltas, 4):
        core = lefts.T @ matrix @ rights.T
        kept = sorted(core.abs().flatten().tolist(), reverse=True)[int(keep * 144) - 1]
        cores.append(torch.where(core.abs() >= kept, core, 0.0))
    merged = torch.zeros(12, 12, dtype=torch.float64)
    for row in range(12):
        for column in range(12):
            if block_mask and row // 4 != column // 4:
                continue
            entries = [float(core[row, column]) for core in cores]
            agreeing = [entry for entry in entries if entry * sum(entries) > 0]
            merged[row, column] = sum(agreeing) / max(1, len(agreeing))
    close(delta("dc_merge", deltas, keep=keep, block_mask=block_mask), lefts @ merged @ rights)


def test_dc_merge_of_one_expert_is_that_expert_and_of_strangers_their_sum() -> None:
    (matrix,) = random(1, 12, 18)
    close(delta("dc_merge", [matrix], keep=1.0), matrix)
    strangers = [torch.zeros(12, 18) for _ in range(3)]
    for index, block in enumerate(random(3, 4, 6)):
        strangers[index][4 * index : 4 * index + 4, 6 * index : 6 * index + 6] = block
    # nothing but rounding stands where another expert's block is, and it has no vote
    close(delta("dc_merge", strangers, keep=1.0), sum(strangers))
    close(delta("dc_merge", strangers, keep=1.0, block_mask=False), sum(strangers))


def test_dc_merge_stays_within_the_directions_of_the_experts() -> None:
    deltas = random(3, 12, 18)
    for keep in (1.0, 0.1):
        merged = delta("dc_merge", [*deltas[:2], torch.zeros(12, 18)], keep=keep, block_mask=False).double()
        left = torch.cat([svd(matrix)[0][:, :4] for matrix in deltas[:2]], 1)
        right = torch.cat([svd(matrix)[2][:4] for matrix in deltas[:2]], 0)
        close(left @ torch.linalg.pinv(left) @ merged @ torch.linalg.pinv(right) @ right, merged, atol=1e-5)
        assert merged.abs().max() > 0.1


@pytest.mark.parametrize(("rho", "ratio"), [(3.0, 3.0), (1.0, 1.0), (1e6, None)])
def test_smoothing_keeps_the_sum_of_singular_values(rho: float, ratio: float | None) -> None:
    (matrix,) = random(1, 12, 18)
    before = svd(matrix)[1].float()
    even = svd(delta("dc_merge", [matrix], keep=1.0, smoothing="avg"))[1].float()
    close(even, before.mean().expand(12))
    falling = svd(delta("dc_merge", [matrix], keep=1.0, smoothing="linear", rho=rho))[1].float()
    assert float(falling.sum()) == pytest.approx(float(before.sum()), rel=1e-5)
    wanted = float(before[0] / before[-1]) if ratio is None else ratio
    assert float(falling[0] / falling[-1]) == pytest.approx(wanted, rel=1e-4)
    close(falling.diff(), falling.diff().mean().expand(11))


@pytest.mark.parametrize("smoothing", ["avg", "linear"])
def test_smoothing_adds_no_directions_that_are_not_there(smoothing: str) -> None:
    matrix = random(1, 12, 3)[0] @ random(1, 3, 18, seed=8)[0]
    merged = delta("dc_merge", [matrix], keep=1.0, smoothing=smoothing)
    assert int(torch.linalg.matrix_rank(merged)) == 3
    assert float(svd(merged)[1].sum()) == pytest.approx(float(svd(matrix)[1].sum()), rel=1e-4)


def renormalised(deltas: Sequence[Tensor], drop: float, coefficients: Sequence[float]) -> Tensor:
    """The horizontal form, from the full decomposition."""
    left, values, right = svd(torch.cat([*deltas], 1))
    kept = values > 1e-2 * values[0]
    left, values, right = left[:, kept], values[kept], right[kept]
    blocks = right.split(deltas[0].shape[1], 1)
    lengths = [block.norm(dim=1) for block in blocks]
    units = torch.stack([block / length[:, None] for block, length in zip(blocks, lengths, strict=True)])
    ranked = units.abs().flatten().sort().values
    dropped = len(ranked) - round(len(ranked) * (1 - drop))
    units[units.abs() < (ranked[dropped - 1] if dropped else 0.0)] = 0.0
    entries = torch.stack([(values * length)[:, None] * unit for length, unit in zip(lengths, units, strict=True)])
    entries[entries.sign() != entries.sum(0).sign()] = 0.0
    voters = (entries != 0).sum(0).clamp_min(1)
    weighted = sum(coefficient * block for coefficient, block in zip(coefficients, entries, strict=True))
    return left @ (weighted / voters)


@pytest.mark.parametrize("shape", [(12, 18), (18, 12), (40, 6)])
@pytest.mark.parametrize("drop", [1e-9, 0.3, 0.8])
def test_drm_by_definition(shape: tuple[int, int], drop: float) -> None:
    deltas, coefficients = random(3, *shape), [1.0, 0.5, 1.5]
    values: dict[str, Any] = {"drop": drop, "coefficient": coefficients}
    close(delta("drm_h", deltas, **values), renormalised(deltas, drop, coefficients))
    turned = renormalised([matrix.T for matrix in deltas], drop, coefficients)
    close(delta("drm_v", deltas, **values), turned.T)


@pytest.mark.parametrize("name", DRM)
def test_drm_leaves_out_small_directions(name: str) -> None:
    left, values, right = svd(random(1, 10, 14)[0])
    values = torch.tensor([1.0, 0.5, 0.02, *[0.009] * 7], dtype=torch.float64)
    merged = delta(name, [((left * values) @ right).float()], drop=1e-9)
    close(merged, (left[:, :3] * values[:3]) @ right[:3], atol=1e-5)


@pytest.mark.parametrize("name", DRM)
def test_drm_of_equal_experts_with_a_tiny_drop_is_that_expert(name: str) -> None:
    (matrix,) = random(1, 12, 30)
    close(delta(name, [matrix] * 3, drop=1e-9), matrix)
    strangers = [torch.zeros(12, 20), torch.zeros(12, 20)]
    strangers[0][:6, :10], strangers[1][6:, 10:] = random(2, 6, 10)
    # no expert votes, by rounding errors, on directions that are another's alone
    close(delta(name, strangers, drop=1e-9), sum(strangers))


@pytest.mark.parametrize("name", DRM)
def test_drm_without_drop_is_a_disjoint_mean(name: str) -> None:
    deltas = random(3, 6, 8)
    deltas[0][:3], deltas[1][2:5] = 0.0, 0.0
    counted = sum((matrix != 0).float() for matrix in deltas).clamp_min(1)
    expected = (deltas[0] + 0.5 * deltas[1] - 2.0 * deltas[2]) / counted
    close(delta(name, deltas, drop=0.0, coefficient=[1.0, 0.5, -2.0]), expected, atol=1e-6)


@pytest.mark.parametrize("name", DRM)
@pytest.mark.parametrize("drop", [0.0, 0.8])
def test_drm_elects_signs_in_other_tensors(name: str, drop: float) -> None:
    deltas = [torch.tensor(row) for row in ([3.0, -1.0, 0.0, 2.0, 1.0], [-1.0, -2.0, 4.0, -2.0, 0.5])]
    expected = torch.tensor([3.0, (-1.0 - 2 * 2.0) / 2, 2 * 4.0, 0.0, (1.0 + 2 * 0.5) / 2])
    close(delta(name, deltas, "norms", drop=drop, coefficient=[1.0, 2.0]), expected, atol=1e-6)
    tables = [matrix.expand(2, 5).clone() for matrix in deltas]
    close(delta(name, tables, "head", drop=drop, coefficient=[1.0, 2.0]), expected.expand(2, 5), atol=1e-6)


def test_do_merging_by_definition() -> None:
    deltas = random(3, 10, 14)
    deltas[0][:, 3], deltas[1][:, 3] = 0.0, 0.0
    for matrix in deltas:
        matrix[:, 5] = 0.0
    wide = [matrix.double() for matrix in deltas]
    lengths = sum(matrix.square().sum(0).sqrt() for matrix in wide) / 3
    directions = sum(torch.nn.functional.normalize(matrix, dim=0) for matrix in wide) / 3
    merged = delta("do_merging", deltas, **{"lambda": 1.5})
    close(merged, 1.5 * lengths * directions)
    assert bool((merged.norm(dim=0) <= 1.5 * lengths * (1 + 1e-6)).all())
    assert not merged[:, 5].any()


@pytest.mark.parametrize("steps", [0, 30])
def test_do_merging_of_one_expert_or_of_equal_ones(steps: int) -> None:
    (matrix,) = random(1, 10, 14)
    close(delta("do_merging", [matrix], steps=steps), matrix, atol=1e-6)
    if not steps:
        close(delta("do_merging", [matrix] * 3), matrix, atol=1e-6)


def orthogonality_loss(factors: Sequence[Tensor], start: Sequence[Tensor], gamma: float) -> Tensor:
    crossed = [a @ b.T for i, a in enumerate(factors) for j, b in enumerate(factors) if i != j]
    moved = [a - b for a, b in zip(factors, start, strict=True)]
    return sum(matrix.square().sum() for matrix in crossed) + gamma * sum(matrix.square().sum() for matrix in moved)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_do_merging_moves_factors_apart_as_torchs_adam_does(gamma: float) -> None:
    deltas = random(2, 10, 14)
    parts = [svd(matrix) for matrix in deltas]
    sides = []
    for side in ("left", "right"):
        start = [
            values[:3].sqrt()[:, None] * (left[:, :3].T if side == "left" else right[:3])
            for left, values, right in parts
        ]
        factors = [matrix.clone().requires_grad_() for matrix in start]
        rate = 0.01 * float(torch.cat(start).square().mean().sqrt())
        optimizer = torch.optim.Adam(factors, lr=rate)
        before = float(orthogonality_loss(start, start, gamma))
        for _ in range(40):
            optimizer.zero_grad()
            loss = orthogonality_loss(factors, start, gamma)
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < before
        sides.append([factor.detach() for factor in factors])
    moved = [
        matrix.double() - truncated + left.T @ right
        for matrix, truncated, left, right in zip(deltas, low_rank(deltas, 3), *sides, strict=True)
    ]
    lengths = sum(matrix.norm(dim=0) for matrix in moved) / 2
    directions = sum(torch.nn.functional.normalize(matrix, dim=0) for matrix in moved) / 2
    close(delta("do_merging", deltas, steps=40, gamma=gamma, rank=3), lengths * directions, atol=1e-5)


@pytest.mark.parametrize("name", ["dc_merge", "do_merging"])
def test_tables_and_vectors_are_averaged(name: str) -> None:
    matrices, vectors = random(2, 6, 8), random(2, 9)
    close(delta(name, matrices, "embeddings"), (matrices[0] + matrices[1]) / 2, atol=1e-6)
    close(delta(name, vectors), (vectors[0] + vectors[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_stack_of_matrices_is_merged_one_by_one(name: str) -> None:
    stacks, values = random(3, 4, 6, 8), {"steps": 20, "rank": 2} if name == "do_merging" else {}
    if name == "dc_merge":
        values = {"keep": 0.4, "smoothing": "linear"}
    for stack in stacks:
        stack[2] = 0.0  # a part that no expert changed
    stacks[0][3] = 0.0
    merged = delta(name, stacks, **values)
    for index in range(4):
        close(merged[index], delta(name, [stack[index] for stack in stacks], **values))
    assert torch.equal(merged[2], torch.zeros(6, 8))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ALL)
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    deltas, found = random(2, 150, 230), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(delta(name, deltas, **({"steps": 5} if name == "do_merging" else {})))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["dc_merge", *DRM])
def test_weights_that_are_not_finite_are_a_failed_merge(name: str) -> None:
    matrices = random(2, 6, 8)
    matrices[0][2, 3] = float("nan")
    with pytest.raises(MergeFailed, match="NaN"):
        delta(name, matrices)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dc_merge", {"keep": 0.0}),
        ("dc_merge", {"smoothing": "cubic"}),
        ("dc_merge", {"rho": 0.5}),
        ("drm_h", {"drop": 1.0}),
        ("drm_v", {"drop": -0.1}),
        ("do_merging", {"steps": -1}),
        ("do_merging", {"gamma": -1.0}),
        ("do_merging", {"rank": 0}),
    ],
)
def test_values_out_of_range_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        delta(name, random(2, 4, 5), **values)
