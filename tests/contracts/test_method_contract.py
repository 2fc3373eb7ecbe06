"""What every merge method must hold, run over the registry: a new method is tested the moment it is listed.

P0, Pλ, P1, Pid, Pperm and Plin are the shared properties of the methods' specification.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from evomerge.errors import MergeFailed
from evomerge.methods import cores, elementwise, sweep
from evomerge.methods.base import MethodSpec
from evomerge.methods.catalogue import SPECS, load_method
from tests.contracts.method_cases import (
    BASE_IS_OPTIONAL,
    DTYPES,
    SHAPE,
    Recorder,
    arrangements,
    context,
    corners,
    merge,
    models,
    most,
    names,
    others,
    split_values,
    whole,
)

# The state of these is one merged task vector.
ONE_FOR_ALL = ("iso_c", "iso_cts", "wudi", "wudi2", "dc_merge", "do_merging", "opcm", "doge_ta", "svc")
# These change even a single expert, whatever their values: pcb cuts its largest and smallest entries, doge_ta gives it
# another length, bitdelta and tswitch store it in fewer bits.
NEVER_AN_EXPERT = ("pcb", "doge_ta", "bitdelta", "tswitch")

every_method = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@every_method
def test_spec_is_complete(spec: MethodSpec) -> None:
    assert SPECS[spec.name] is spec
    assert spec.title
    assert spec.paper
    assert spec.use
    assert 1 <= spec.min_experts <= (spec.max_experts or spec.min_experts)
    module, _, name = spec.target.partition(":")
    assert (getattr(importlib.import_module(module), name).__doc__ or "").count("Reference:") == 1
    assert len(names(spec)) == len(spec.hyperparameters)
    for parameter in spec.hyperparameters:
        assert parameter.description
        if parameter.kind == "choice":
            assert parameter.default in parameter.choices
        elif parameter.kind == "float":
            assert parameter.low < parameter.high
            assert parameter.default is None or parameter.low <= float(parameter.default) <= parameter.high
        elif parameter.kind == "bool":
            assert parameter.default in (True, False)


@every_method
@pytest.mark.parametrize("same", [False, True], ids=["experts", "experts_equal_base"])
def test_reads_exactly_what_the_spec_declares(spec: MethodSpec, same: bool) -> None:
    method = load_method(spec.name)
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement)
        if same and base is not None:
            experts = [base.clone() for _ in experts]
        structural, values = map(Recorder, split_values(spec, len(experts)))
        state = method.prepare(base, experts, structural, context(len(experts)))
        method.apply(state, values, torch.empty(SHAPE))
        assert structural.read == {p.name for p in spec.hyperparameters if p.structural}
        assert values.read == {p.name for p in spec.hyperparameters if not p.structural}


@every_method
def test_base_and_number_of_experts_are_as_declared(spec: MethodSpec) -> None:
    base, experts = models(spec, (True, most(spec)))
    if spec.needs_base:
        with pytest.raises(ValueError, match="base"):
            merge(spec, None, experts)
    else:
        assert merge(spec, None, experts).isfinite().all()
    if spec.max_experts is None or spec.needs_base:
        assert merge(spec, base, experts).isfinite().all()


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_unchanged_and_one_cast_into_out(spec: MethodSpec, dtype: torch.dtype) -> None:
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement, dtype)
        tensors = experts if base is None else [base, *experts]
        before = [tensor.clone() for tensor in tensors]
        precise = merge(spec, base, experts, out_dtype=torch.float32)
        for out_dtype in DTYPES:
            out = merge(spec, base, experts, out_dtype=out_dtype)
            assert out.dtype == out_dtype
            assert torch.equal(out, precise.to(out_dtype))
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))
        # the storage dtype does not matter beyond the values it holds
        wide = merge(spec, None if base is None else base.float(), [expert.float() for expert in experts])
        assert torch.equal(wide, precise)


@every_method
def test_finite_at_every_corner_of_the_ranges(spec: MethodSpec) -> None:
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement)
        finite = 0
        for corner in corners(spec):
            try:
                out = merge(spec, base, experts, **corner)
            except MergeFailed:
                continue  # normalised coefficients that are all 0
            assert out.isfinite().all(), corner
            finite += 1
        assert finite >= len(corners(spec)) / 2


@every_method
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3, 4), (3, 1)], ids=str)
def test_any_shape(spec: MethodSpec, shape: tuple[int, ...]) -> None:
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement, shape=shape)
        tensors = experts if base is None else [base, *experts]
        before = [tensor.clone() for tensor in tensors]
        out = merge(spec, base, experts)
        assert out.shape == shape
        assert out.isfinite().all()
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@every_method
def test_non_contiguous_tensors(spec: MethodSpec) -> None:
    method = load_method(spec.name)
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement)
        expected = merge(spec, base, experts)
        strided = [expert.t().contiguous().t() for expert in experts]
        structural, values = split_values(spec, len(experts))
        state = method.prepare(base, strided, structural, context(len(experts)))
        plain = method.prepare(base, experts, structural, context(len(experts)))
        assert method.state_bytes(state) == method.state_bytes(plain) + sum(expert.nbytes for expert in experts)
        out = torch.empty(SHAPE[::-1]).t()
        method.apply(state, values, out)
        assert torch.equal(out, expected)


@every_method
def test_apply_leaves_no_trace(spec: MethodSpec) -> None:
    method = load_method(spec.name)
    differs = []
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement)
        structural, values = split_values(spec, len(experts))
        other = others(spec, len(experts))
        state = method.prepare(base, experts, structural, context(len(experts)))
        out = torch.empty(SHAPE)
        results = []
        for wanted in (values, values, other, values):
            method.apply(state, wanted, out)
            results.append(out.clone())
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[3])
        differs.append(not torch.equal(results[0], results[2]))
    assert any(differs)


@every_method
def test_writes_into_a_parameter_that_requires_grad(spec: MethodSpec) -> None:
    method = load_method(spec.name)
    base, experts = models(spec, arrangements(spec)[-1])
    structural, values = split_values(spec, len(experts))
    parameter = torch.nn.Parameter(torch.zeros(SHAPE))
    method.apply(method.prepare(base, experts, structural, context(len(experts))), values, parameter)
    assert parameter.requires_grad
    assert torch.equal(parameter.data, merge(spec, base, experts))


@every_method
def test_same_bits_for_any_number_of_threads(spec: MethodSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    base, experts = models(spec, arrangements(spec)[-1], torch.bfloat16, shape=(70001,))
    monkeypatch.setattr(cores, "SMALLEST_PART", 100)
    try:
        torch.set_num_threads(1)
        expected = merge(spec, base, experts)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(merge(spec, base, experts), expected)
    finally:
        torch.set_num_threads(threads)


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_loops_and_torch_agree(spec: MethodSpec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What merges on a CPU is what merges on an accelerator, up to the rounding of fused operations."""
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement, dtype)
        for normalize in (False, True):
            compiled = merge(spec, base, experts, out_dtype=torch.float32, normalize=normalize)
            with monkeypatch.context() as patched:
                patched.setattr(elementwise, "_compiled", lambda *_: None)
                whole = merge(spec, base, experts, out_dtype=torch.float32, normalize=normalize)
                patched.setattr(sweep, "CPU_CHUNK", 100)
                assert torch.equal(merge(spec, base, experts, out_dtype=torch.float32, normalize=normalize), whole)
            torch.testing.assert_close(compiled, whole, rtol=1e-6, atol=1e-6)


@every_method
def test_a_single_use_gives_the_same_bits(spec: MethodSpec) -> None:
    for arrangement in arrangements(spec):
        base, experts = models(spec, arrangement)
        once = merge(spec, base, experts, ctx=context(len(experts), reused=False))
        assert torch.equal(once, merge(spec, base, experts))


@every_method
def test_seed_decides_exactly_the_stochastic_methods(spec: MethodSpec) -> None:
    arrangement = arrangements(spec)[-1]
    base, experts = models(spec, arrangement)
    first, again, other = (merge(spec, base, experts, ctx=context(len(experts), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) != spec.stochastic


@every_method
def test_p0_experts_equal_to_base(spec: MethodSpec) -> None:
    for dtype in DTYPES:
        base, experts = models(spec, (True, 1 if spec.name == "slerp" else most(spec)), dtype)
        assert base is not None
        equal = [base.clone() for _ in experts]
        out = merge(spec, base, equal)
        if spec.needs_base or spec.name == "slerp" or spec.name in BASE_IS_OPTIONAL:
            assert torch.equal(out, base)
            method = load_method(spec.name)
            structural, _ = split_values(spec, len(experts))
            assert method.is_constant(method.prepare(base, equal, structural, context(len(experts))))
            state = method.prepare(base, experts, structural, context(len(experts)))
            assert not method.is_constant(state)
        else:
            torch.testing.assert_close(out, base)


@every_method
def test_an_expert_equal_to_the_base_costs_no_state(spec: MethodSpec) -> None:
    if not spec.needs_base or most(spec) < 3:
        return
    method = load_method(spec.name)
    base, experts = models(spec, (True, 3))
    assert base is not None
    structural, _ = split_values(spec, 3)
    some = method.prepare(base, [experts[0], base.clone(), experts[2]], structural, context(3))
    every = method.prepare(base, experts, structural, context(3))
    none = method.prepare(base, [base.clone()] * 3, structural, context(3))
    assert method.state_bytes(none) == 0
    if spec.name in ONE_FOR_ALL:
        assert method.state_bytes(some) == method.state_bytes(every)
    elif spec.name in ("knots_ties", "knots_dare_ties"):
        assert method.state_bytes(some) < method.state_bytes(every)  # the basis is for all, the rest for each
    else:
        assert method.state_bytes(some) * 3 == pytest.approx(method.state_bytes(every) * 2, rel=0.1)


@every_method
def test_lambda_scales_the_merged_task_vector(spec: MethodSpec) -> None:
    if "lambda" not in names(spec):
        return
    base, experts = models(spec, (True, most(spec)))
    assert base is not None
    assert torch.equal(merge(spec, base, experts, **{"lambda": 0.0}), base)  # Pλ
    half, double = (merge(spec, base, experts, **{"lambda": scale}) - base for scale in (0.5, 2.0))
    torch.testing.assert_close(half * 4, double, rtol=0, atol=4e-6)  # Plin
    assert double.abs().max() > 0.1


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_expert_in_full_is_that_expert(spec: MethodSpec, dtype: torch.dtype) -> None:
    if spec.min_experts > 1 or spec.name in NEVER_AN_EXPERT:
        return
    base, experts = models(spec, (spec.needs_base or spec.name == "slerp", 1), dtype)
    out = merge(spec, base, experts, **{"t": 1.0, **whole(spec, 1)})  # P1
    torch.testing.assert_close(out, experts[0], rtol=0, atol=1e-6 if dtype == torch.float32 else 0)


@every_method
@pytest.mark.parametrize("normalize", [False, True])
def test_equal_experts_give_that_expert(spec: MethodSpec, normalize: bool) -> None:
    if spec.name in ("tsv_m", "dc_merge", *NEVER_AN_EXPERT):
        return  # the first two keep the largest directions of each, and equal experts have the same ones
    count = most(spec)
    base, experts = models(spec, (spec.needs_base, 1))
    values = whole(spec, count)
    if spec.name in ("ties", "dare_ties") and normalize:
        values["coefficient"] = [0.3, 0.9, 0.5]  # any coefficients, their scale is divided out
    out = merge(spec, base, [experts[0].clone() for _ in range(count)], **values, normalize=normalize)  # Pid
    torch.testing.assert_close(out, experts[0], rtol=0, atol=1e-6)


@every_method
def test_order_of_experts_does_not_matter(spec: MethodSpec) -> None:
    if spec.name == "slerp" or spec.ordered:
        return  # the order means something
    count = most(spec)
    base, experts = models(spec, (spec.needs_base, count))
    order = [2, 0, 1] if count == 3 else [*range(count)][::-1]
    for normalize in (False, True):
        structural, values = split_values(spec, count)
        values |= structural
        per_expert = {p.name: values[p.name] for p in spec.hyperparameters if p.per == "expert"}
        moved = {name: [column[i] for i in order] for name, column in per_expert.items()}
        ctx = replace(context(count), expert_keys=tuple(context(count).expert_keys[i] for i in order))
        expected = merge(spec, base, experts, **per_expert, normalize=normalize)
        got = merge(spec, base, [experts[i] for i in order], ctx=ctx, **moved, normalize=normalize)  # Pperm
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@every_method
def test_numbers_that_are_not_finite_are_refused(spec: MethodSpec) -> None:
    base, experts = models(spec, arrangements(spec)[-1])
    for parameter in spec.hyperparameters:
        if parameter.kind == "float":
            for bad in (float("nan"), float("inf")):
                with pytest.raises(ValueError, match=parameter.name):
                    merge(spec, base, experts, **{parameter.name: bad})


@every_method
def test_experts_of_another_shape_or_kind_are_refused(spec: MethodSpec) -> None:
    base, experts = models(spec, arrangements(spec)[-1])
    first = experts[0] if base is None else base
    if len(experts) > 1 or base is not None:
        with pytest.raises(ValueError, match="shape"):
            merge(spec, base, [*experts[:-1], torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="floats"):
        merge(spec, base, [*experts[:-1], torch.zeros(first.shape, dtype=torch.int32)])
