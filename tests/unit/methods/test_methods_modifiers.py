"""Modifiers of one task vector, and layer swapping: what depends on depth, sign and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import MergeFailed, UserError
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method
from tests.unit.methods.merging import close, delta, random

L = 8


def run(
    name: str,
    base: Tensor,
    experts: Sequence[Tensor],
    block: int | None = 3,
    component: str = "mlp",
    num_blocks: int = L,
    **values: Any,
) -> Tensor:
    split: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for parameter in SPECS[name].hyperparameters:
        split[not parameter.structural][parameter.name] = values.pop(parameter.name, parameter.default)
    assert not values
    keys = tuple(f"expert{index}" for index in range(len(experts)))
    context = TensorContext("w", 0, keys, component=component, block=block, num_blocks=num_blocks)
    out, method = torch.empty_like(base), load_method(name)
    method.apply(method.prepare(base, experts, split[0], context), split[1], out)
    return out


def provenance(num_blocks: int = L, **values: Any) -> str:
    """Whose each block is: A the base's, B the expert's, m mixed."""
    base, expert = random(2, 4, 5)
    found = ""
    for block in range(num_blocks):
        out = run("layer_swap", base, [expert], block, num_blocks=num_blocks, **values)
        found += "A" if torch.equal(out, base) else "B" if torch.equal(out, expert) else "m"
    return found


def test_layer_swap_by_block() -> None:
    none = {"bottom_share": 0.0, "top_share": 0.0}
    sharp = {"transition_bottom": 0, "transition_top": 0}
    assert provenance(32) == "BBBBBm" + "A" * 23 + "mBB"
    assert provenance(16) == "BBBmAAAAAAAAAAmB"  # 2.5 blocks are 3
    assert provenance(**none) == provenance(**none, **sharp) == "A" * L
    assert (
        provenance(bottom_share=0.5, top_share=0.5) == provenance(bottom_share=0.5, top_share=0.5, **sharp) == "B" * L
    )
    assert provenance(bottom_share=0.25, top_share=0.125, **sharp) == "BBAAAAAB"
    assert provenance(bottom_share=0.25, top_share=0.125, transition_bottom=2, transition_top=1) == "BBmmAAmB"
    assert provenance(bottom_share=0.25, top_share=0.0, transition_top=3) == "BBmAAAAA"
    assert provenance(bottom_share=0.25, top_share=0.125, seam_weight=0.0) == "BBAAAAAB"
    assert provenance(bottom_share=0.25, top_share=0.125, seam_weight=1.0) == "BBBAAABB"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layer_swap_weights(dtype: torch.dtype) -> None:
    base, expert = (matrix.to(dtype) for matrix in random(2, 4, 5))
    seam = run("layer_swap", base, [expert], 2, bottom_share=0.25, seam_weight=0.3)
    close(seam, (0.7 * base.float() + 0.3 * expert.float()).to(dtype), atol=1e-6)
    outside = run("layer_swap", base, [expert], None, "embeddings", outside_weight=0.9)
    close(outside, (0.1 * base.float() + 0.9 * expert.float()).to(dtype), atol=1e-6)
    for weight, model in ((0.0, base), (1.0, expert)):
        assert torch.equal(run("layer_swap", base, [expert], None, outside_weight=weight), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_copies_are_bit_for_bit(dtype: torch.dtype) -> None:
    base, expert = (matrix.to(dtype) for matrix in random(2, 4, 5))
    base[0, 0] = expert[0, 0] = -0.0
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    for block, model in ((0, expert), (4, base), (7, expert)):
        out = run("layer_swap", base, [expert], block, bottom_share=0.25, top_share=0.25)
        assert torch.equal(out.view(integer), model.view(integer))
    assert torch.equal(run("lines", base, [expert]).view(integer), expert.view(integer))
    assert torch.equal(run("lines", base, [expert], alpha=0.0).view(integer), base.view(integer))
    assert torch.equal(run("bitdelta", base, [expert], None).view(integer), expert.view(integer))


def test_lines_grows_with_depth() -> None:
    base, expert = random(2, 4, 5)

    def scale(block: int | None, num_blocks: int = L, **values: float) -> float:
        moved = (run("lines", base, [expert], block, num_blocks=num_blocks, **values) - base).double()
        found = float((moved / (expert - base).double()).median())
        close(moved, found * (expert - base).double(), atol=1e-5)
        return found

    values = {"alpha": 0.25, "beta": 1.5}
    assert [scale(block, **values) for block in range(L)] == pytest.approx(
        [0.25 + 1.5 * block / 7 for block in range(L)], rel=1e-5
    )
    assert scale(L - 1, **values) / scale(0, **values) == pytest.approx(1.75 / 0.25, rel=1e-5)
    assert scale(None, **values) == pytest.approx(0.25, rel=1e-5)
    assert scale(0, num_blocks=1, **values) == pytest.approx(0.25, rel=1e-5)
    for block in (None, 0, L - 1):
        assert torch.equal(run("lines", base, [expert], block), expert)  # alpha 1, beta 0
        assert torch.equal(run("lines", base, [expert], block, alpha=0.0), base)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_lines_without_beta_is_task_arithmetic(alpha: float) -> None:
    base, expert = random(2, 4, 5)
    out = torch.empty(4, 5)
    method = load_method("task_arithmetic")
    state = method.prepare(base, [expert], {}, TensorContext("w", 0, ("expert0",)))
    method.apply(state, {"coefficient": [1.0], "normalize": False, "lambda": alpha}, out)
    assert torch.equal(run("lines", base, [expert], 4, alpha=alpha), out)


@pytest.mark.parametrize("shape", [(30, 20), (3, 10, 20)])
def test_bitdelta_by_definition(shape: tuple[int, ...]) -> None:
    (change,) = random(1, *shape)
    change[0, :2] = 0.0
    merged = run("bitdelta", torch.zeros(shape), [change], multiplier=1.25)
    sizes = change.double().abs().mean((-2, -1), keepdim=True)
    close(merged, 1.25 * sizes * torch.where(change >= 0, 1.0, -1.0).double(), atol=1e-6)
    if len(shape) == 2:
        assert len(merged.abs().unique()) == 1
        once = run("bitdelta", torch.zeros(shape), [change])
        assert float(once.abs().double().mean()) == pytest.approx(float(sizes), rel=1e-6)
        close(run("bitdelta", torch.zeros(shape), [once]), once, atol=1e-7)  # idempotent


def test_bitdelta_at_multiplier_1_is_nearest() -> None:
    (change,) = random(1, 30, 20)
    errors = [float((run("bitdelta", torch.zeros(30, 20), [change], multiplier=m) - change).square().sum())
              for m in (0.9, 1.0, 1.1)]  # fmt: skip
    assert errors[1] < min(errors[0], errors[2])


def test_bitdelta_keeps_what_it_is_not_for() -> None:
    base, expert = random(2, 6, 8)
    for block, component, modules in (
        (None, "head", "both"),
        (None, "embeddings", "both"),
        (2, "other", "both"),
        (2, "norms", "both"),
        (2, "mlp", "attention"),
        (2, "attention", "mlp"),
    ):
        assert torch.equal(run("bitdelta", base, [expert], block, component, modules=modules), expert)
    for component in ("mlp", "attention"):
        for modules in (component, "both"):
            assert not torch.equal(run("bitdelta", base, [expert], 2, component, modules=modules), expert)
    assert torch.equal(run("bitdelta", base[0], [expert[0]], 2, "mlp"), expert[0])  # a bias
    assert torch.equal(run("bitdelta", base, [base.clone()], 2, "mlp"), base)
    stack = random(1, 3, 6, 8)[0]
    moved = stack.clone()
    moved[1] += 0.5
    assert torch.equal(run("bitdelta", stack, [moved], 2, "mlp")[[0, 2]], stack[[0, 2]])  # a = 0


@pytest.mark.parametrize("drop", [0.0, 0.35, 0.9])
def test_tswitch_by_definition(drop: float) -> None:
    (change,) = random(1, 17, 13)
    change = (change * 8).round() / 8  # with ties
    change[change > 0] *= 2.0
    kept = torch.zeros_like(change)
    for sign in (1.0, -1.0):
        sizes = sorted((change * sign)[change * sign > 0].tolist(), reverse=True)
        smallest = sizes[int(len(sizes) * (1 - drop)) - 1]
        kept = torch.where(change * sign >= smallest, change, kept)
    size = float(kept[kept != 0].double().square().mean().sqrt())
    merged = run("tswitch", torch.zeros_like(change), [change], drop=drop)
    close(merged, size * kept.sign(), atol=1e-6)
    assert float(merged.double().norm()) == pytest.approx(float(kept.double().norm()), rel=1e-6)
    assert sorted(merged.unique().tolist()) == pytest.approx([-size, 0.0, size], rel=1e-6)
    if drop == 0.0:
        assert torch.equal(merged.sign(), change.sign())
    close(run("tswitch", torch.zeros_like(change), [change], drop=drop, multiplier=0.5), 0.5 * merged, atol=1e-6)


def test_tswitch_keeps_all_of_a_sign_that_would_vanish() -> None:
    change = torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, -1.0, -3.0, 0.0])
    # of ten positive ones the largest stays; of two negative ones none would
    size = ((100.0 + 1.0 + 9.0) / 3) ** 0.5
    expected = torch.tensor([0.0] * 9 + [size, -size, -size, 0.0])
    close(run("tswitch", torch.zeros(13), [change], drop=0.9), expected, atol=1e-5)
    close(run("tswitch", torch.zeros(13), [change.abs()], drop=0.9).sign(), (change.abs() >= 10.0).float())


def test_tswitch_passes_numbers_and_takes_every_tensor() -> None:
    assert torch.equal(run("tswitch", torch.tensor(1.0), [torch.tensor(3.5)]), torch.tensor(3.5))
    base, expert = random(2, 6, 8)
    assert len((run("tswitch", torch.zeros(6, 8), [expert], None, "head")).abs().unique()) == 2
    assert torch.equal(run("tswitch", base, [base.clone()]), base)
    for bad in (float("nan"), float("inf")):
        expert[1, 2] = bad
        with pytest.raises(MergeFailed, match="NaN or infinite"):
            run("tswitch", base, [expert])


@pytest.mark.parametrize("shape", [(10, 14), (14, 10)])
@pytest.mark.parametrize("alpha", [0.25, 1.0, 2.0])
def test_svc_by_definition(shape: tuple[int, int], alpha: float) -> None:
    first, second = random(2, *shape)
    merged = first + 0.7 * second
    left, values, right = torch.linalg.svd(merged.double(), full_matrices=False)
    factors = []
    for direction in left.T:
        along = direction @ merged.double()
        shares = [float(along @ b / (b @ b)) for b in (direction @ matrix.double() for matrix in (first, second))]
        factors.append(2 / sum(max(alpha, share) for share in shares))
    close(delta("svc", [merged, first, second], alpha=alpha), (left * (values * torch.tensor(factors))) @ right)
    if alpha == 1.0:
        assert max(factors) <= 1.0
    if alpha == 0.25:
        assert max(factors) > 1.0


def test_svc_of_what_needs_no_calibration_and_of_what_was_added_up() -> None:
    (matrix,) = random(1, 10, 14)
    close(delta("svc", [matrix, matrix.clone()]), matrix, atol=1e-6)
    close(delta("svc", [3 * matrix, *[matrix.clone()] * 3]), matrix)
    quarter = delta("svc", [0.25 * matrix, matrix.clone()], alpha=1e-3)
    close(quarter, matrix)  # amplified again
    close(delta("svc", [0.25 * matrix, matrix.clone()], alpha=1.0), 0.25 * matrix, atol=1e-6)


def test_svc_counts_no_expert_where_it_has_nothing() -> None:
    left, right = torch.zeros(8, 12), torch.zeros(8, 12)
    left[:4, :6], right[4:, 6:] = random(2, 4, 6)
    close(delta("svc", [left + right, left, right]), left + right, atol=1e-6)
    twice = delta("svc", [2 * left + right, left, right])
    close(twice, 2 * left * 2 / 3 + right)  # max(1, 2) + max(1, 0) for left
    assert torch.equal(delta("svc", [torch.zeros(8, 12), left, right]), torch.zeros(8, 12))
    close(delta("svc", [2 * left, left, torch.zeros(8, 12)]), 2 * left * 2 / 3)


def test_svc_leaves_other_tensors_as_they_were_merged() -> None:
    tables, vectors = random(3, 6, 8), random(3, 9)
    assert torch.equal(delta("svc", tables, "head"), tables[0])
    assert torch.equal(delta("svc", vectors), vectors[0])
    stacks = random(3, 4, 6, 8)
    stacks[0][1], stacks[1][2] = 0.0, 0.0
    expected = torch.stack([delta("svc", [stack[index] for stack in stacks]) for index in range(4)])
    close(delta("svc", stacks), expected)


def test_one_task_vector_at_a_time() -> None:
    models = random(3, 4, 5)
    for name in ("layer_swap", "lines", "bitdelta", "tswitch"):
        with pytest.raises(UserError, match=f"{name} merges a base and one expert, got 2 experts"):
            run(name, models[0], models[1:])
    with pytest.raises(ValueError, match="after it"):
        delta("svc", models[:1])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("layer_swap", {"bottom_share": 1.5}),
        ("layer_swap", {"top_share": -0.1}),
        ("layer_swap", {"transition_bottom": -1}),
        ("bitdelta", {"modules": "head"}),
        ("tswitch", {"drop": 1.0}),
        ("svc", {"alpha": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(name: str, values: dict[str, Any]) -> None:
    base, *experts = random(1 + SPECS[name].min_experts, 4, 5)
    with pytest.raises(ValueError, match=next(iter(values))):
        run(name, base, experts, **values)
