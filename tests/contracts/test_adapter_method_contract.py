"""What every method on LoRA adapters must hold, run over the registry, as test_method_contract does for tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.methods.adapter_method import AdapterMethod, Factors
from evomerge.methods.base import MethodSpec, TensorContext
from evomerge.methods.catalogue import ALL_SPECS, SPECS, load_method
from tests.contracts.method_cases import Recorder, corners, names

ADAPTER_SPECS = {name: spec for name, spec in ALL_SPECS.items() if spec.takes == "adapters"}
SHAPE = (23, 31)
KEYS = ("a", "b", "c")

every_method = pytest.mark.parametrize("spec", ADAPTER_SPECS.values(), ids=ADAPTER_SPECS.keys())


def factors(seed: int, rank: int = 4, shape: tuple[int, int] = SHAPE, is_transposed: bool = False) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape[::-1] if is_transposed else shape
    up = torch.randn(rows, rank, generator=generator)
    down = (torch.randn(rank, columns, generator=generator) * 8).round() / 8  # with equal magnitudes
    return Factors(up, down, is_transposed)


def base(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(99)).to(dtype)


def values_of(spec: MethodSpec, count: int = 3, **given: Any) -> dict[str, Any]:
    middling = {"keep": [0.3 + 0.2 * i for i in range(count)], "scale": [0.5 - 0.4 * i for i in range(count)], **given}
    return {p.name: middling.get(p.name, p.default) for p in spec.hyperparameters}


def context(entries: Sequence[Factors | None], reused: bool = True) -> TensorContext:
    return TensorContext("t.weight", 0, KEYS[: len(entries)], reused, factors=tuple(entries))


def merge(spec: MethodSpec, entries: Sequence[Factors | None], reused: bool = True, **given: Any) -> Tensor:
    method = load_method(spec.name)
    out = torch.full(SHAPE, float("nan"))
    given = {name: [value] * len(entries) if isinstance(value, float) else value for name, value in given.items()}
    state = method.prepare(base(), [], {}, context(entries, reused))
    method.apply(state, values_of(spec, len(entries), **given), out)
    return out


def pool() -> list[Factors]:
    return [factors(seed) for seed in range(3)]


def test_the_two_registries_tell_methods_on_adapters_apart() -> None:
    assert ADAPTER_SPECS
    assert not ADAPTER_SPECS.keys() & SPECS.keys()
    assert ADAPTER_SPECS.keys() | SPECS.keys() == ALL_SPECS.keys()
    for spec in ADAPTER_SPECS.values():
        assert isinstance(load_method(spec.name), AdapterMethod)
        assert spec.needs_base
        assert (type(load_method(spec.name)).__doc__ or "").count("Reference:") == 1
        assert all(parameter.description and parameter.mergekit_name is None for parameter in spec.hyperparameters)


@every_method
@pytest.mark.parametrize("empty", [False, True])
def test_reads_exactly_what_the_spec_declares(spec: MethodSpec, empty: bool) -> None:
    method = load_method(spec.name)
    values = Recorder(values_of(spec))
    state = method.prepare(base(), [], {}, context([None] * 3 if empty else pool()))
    out = torch.empty(SHAPE)
    method.apply(state, values, out)
    assert values.read == names(spec)
    assert method.is_constant(state) == empty
    assert torch.equal(out, base()) == empty
    assert (method.state_bytes(state) == 0) == empty


@every_method
def test_tensors_in_the_place_of_factors_are_refused(spec: MethodSpec) -> None:
    method = load_method(spec.name)
    with pytest.raises(ValueError, match="factors"):
        method.prepare(base(), [base()] * 3, {}, context(()))
    with pytest.raises(ValueError, match="factors"):
        method.prepare(base(), [], {}, replace(context(pool()), factors=()))
    with pytest.raises(ValueError, match="base"):
        method.prepare(None, [], {}, context(pool()))


@every_method
def test_other_ranks_and_shapes_are_refused(spec: MethodSpec) -> None:
    method = load_method(spec.name)
    with pytest.raises(ValueError, match=r"one rank, got a 4, b 3.*task_arithmetic"):
        method.prepare(base(), [], {}, context([factors(0), factors(1, rank=3)]))
    with pytest.raises(ValueError, match=r"\[23, 30\], the tensor is \[23, 31\]"):
        method.prepare(base(), [], {}, context([factors(0), factors(1, shape=(23, 30))]))
    with pytest.raises(ValueError, match="one shape"):
        method.prepare(base(), [], {}, context([factors(0), factors(1, is_transposed=True)]))


@every_method
def test_inputs_unchanged_and_one_cast_into_out(spec: MethodSpec) -> None:
    method, entries = load_method(spec.name), pool()
    before = [(entry.up.clone(), entry.down.clone()) for entry in entries]
    for dtype in (torch.float32, torch.bfloat16):
        origin = base(dtype)
        state = method.prepare(origin, [], {}, context(entries))
        precise, out = torch.empty(SHAPE), torch.empty(SHAPE, dtype=torch.bfloat16)
        for target in (precise, out):
            method.apply(state, values_of(spec), target)
        assert torch.equal(out, precise.bfloat16())
        assert torch.equal(origin, base(dtype))
    assert all(torch.equal(e.up, up) and torch.equal(e.down, down) for e, (up, down) in zip(entries, before))


@every_method
def test_apply_leaves_no_trace_and_a_single_use_gives_the_same_bits(spec: MethodSpec) -> None:
    method = load_method(spec.name)
    state = method.prepare(base(), [], {}, context(pool()))
    results = []
    for given in ({}, {"keep": [1.0] * 3, "scale": [0.0, 0.2, 0.9]}, {}):
        out = torch.empty(SHAPE)
        method.apply(state, values_of(spec, **given), out)
        results.append(out)
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[0], merge(spec, pool(), reused=False))


@every_method
def test_finite_at_every_corner_and_refused_beyond(spec: MethodSpec) -> None:
    for corner in corners(spec):
        assert merge(spec, pool(), **corner).isfinite().all(), corner
    for parameter in spec.hyperparameters:
        for bad in (float("nan"), float("inf"), *((parameter.high + 0.1,) if parameter.is_closed else ())):
            for entries in (pool(), [None] * 3):
                with pytest.raises(ValueError, match=parameter.name):
                    merge(spec, entries, **{parameter.name: bad})


@every_method
def test_order_of_experts_and_threads_do_not_matter(spec: MethodSpec) -> None:
    entries, values = pool(), values_of(spec)
    expected = merge(spec, entries)
    order = [2, 0, 1]
    moved = {name: [column[i] for i in order] for name, column in values.items()}
    torch.testing.assert_close(merge(spec, [entries[i] for i in order], **moved), expected, rtol=0, atol=1e-5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(merge(spec, entries), expected)
    finally:
        torch.set_num_threads(threads)


@every_method
def test_stored_as_the_transpose(spec: MethodSpec) -> None:
    turned = [factors(seed, is_transposed=True) for seed in range(3)]
    out = merge(spec, turned) - base()
    method = load_method(spec.name)
    assert isinstance(method, AdapterMethod)
    found = method.merged(method.prepare(base(), [], {}, context(turned)).prepared, values_of(spec))
    torch.testing.assert_close(out, (found.up @ found.down).T, rtol=0, atol=1e-5)
