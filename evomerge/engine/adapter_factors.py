"""The factors of LoRA adapters, for merge methods that treat A and B in different ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from evomerge.engine.architecture import Slot
from evomerge.engine.fit_problems import some
from evomerge.engine.lora import LoraAdapter
from evomerge.engine.merge_plan import MergePlan
from evomerge.engine.model_tensors import ModelTensors, OpenModels
from evomerge.errors import InvalidInput, MergeFailed, Problem, UserError
from evomerge.methods.adapter_method import AdapterMethod, Factors
from evomerge.methods.base import TensorContext
from evomerge.recipes.recipe import Merge, Source


def check_adapters(node: Merge, models: OpenModels) -> None:
    """Make sure that a merge of adapters has adapters to merge.

    Raises:
        InvalidInput: experts that are no adapters on the base, whose changes are more than products of two matrices, or
            whose ranks differ; all at once.
    """
    problems = [Problem(f"recipe: {node.method}: {name}", text) for name, text in _problems(node, models)]
    if problems:
        raise InvalidInput(problems)


def with_factors(
    context: TensorContext, plan: MergePlan, models: OpenModels, slot: Slot, device: torch.device
) -> TensorContext:
    """The context with what each adapter of a plan adds to a tensor, on a device."""
    if plan.spec.takes == "tensors":
        return context
    factors = tuple(_factors(_opened(models, node), slot, device) for _, node in plan.node.experts)
    return replace(context, factors=factors)


def merged_factors(plan: MergePlan, models: OpenModels, slot: Slot) -> Factors | None:
    """The merged adapter of one tensor; None where no adapter changes it.

    Args:
        plan: of a method on adapters.
        models: opened.
        slot: the tensor.

    Raises:
        UserError: values the method does not take.
        MergeFailed: values or factors are not finite.
    """
    method = plan.method
    assert isinstance(method, AdapterMethod)
    structural, values = plan.values(slot)
    context = with_factors(plan.context(slot, (), reused=False), plan, models, slot, torch.device("cpu"))
    if not any(context.factors):
        return None
    prepared, _ = method.prepare_factors(context.factors, structural, context)
    try:
        return method.merged(prepared, values)
    except ValueError as error:
        raise UserError(f"recipe: {plan.node.method}, tensor {slot.name}: {error}") from error


def _opened(models: OpenModels, node: object) -> ModelTensors:
    assert isinstance(node, Source)
    return models.get(node)


def _factors(model: ModelTensors, slot: Slot, device: torch.device) -> Factors | None:
    assert model.adapter is not None
    name = model.adapter_name(slot.name)
    if not model.adapter.is_product(name):
        return None
    up, down = model.adapter.factors(name)
    if not bool(up.isfinite().all() and down.isfinite().all()):
        raise MergeFailed(f"model {model.source}: the adapter's factors of {slot.name} hold NaN or infinite values")
    return Factors(
        up.flatten(1).float().to(device), down.flatten(1).float().to(device), model.adapter.is_transposed(name)
    )


def _problems(node: Merge, models: OpenModels) -> Iterator[tuple[str, str]]:
    if models.is_adapted:
        yield "experts", "blocks or tokens change in the same recipe; merge the adapters to disk first"
        return
    if not isinstance(node.base, Source) or node.base.adapter is not None:
        yield "base", "expected the model that the adapters were trained on, without an adapter"
        return
    directory, adapters = models.get(node.base).directory, []
    for name, expert in node.experts:
        if not isinstance(expert, Source) or expert.adapter is None or expert.into is not None:
            yield name, f"expected a LoRA adapter, {{model: {node.base}, adapter: ...}}; the method merges factors"
            continue
        model = models.get(expert)
        assert model.adapter is not None
        if model.directory != directory:
            yield name, f"its adapter is on {expert.model}, the base is {node.base}; they must be one model"
        if whole := sorted(key for key in model.adapter.names if not model.adapter.is_product(key)):
            yield name, f"has more than factors (DoRA or modules_to_save) in {some(whole)}; merge task vectors instead"
        adapters.append((name, model.adapter))
    yield from _rank_problems(adapters)


def _rank_problems(adapters: Sequence[tuple[str, LoraAdapter]]) -> Iterator[tuple[str, str]]:
    ranks: dict[str, dict[str, int]] = {}
    for name, adapter in adapters:
        for key in sorted(adapter.names):
            if adapter.is_product(key):
                ranks.setdefault(key, {})[name] = adapter.rank(key)
    differing = {key: found for key, found in ranks.items() if len(set(found.values())) > 1}
    if differing:
        key, found = next(iter(differing.items()))
        listed = ", ".join(f"{name} {rank}" for name, rank in found.items())
        more = f" and {len(differing) - 1} more tensors" if len(differing) > 1 else ""
        remedy = "Train them with one rank, or merge them as task vectors (task_arithmetic)"
        why = "factors of different rank cannot be added"
        yield "experts", f"adapters must have one rank, got {listed} in {key}{more}; {why}. {remedy}"
