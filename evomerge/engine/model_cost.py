"""What a live model costs as it is now: hops, weights and arithmetic. Nothing is run.

Arithmetic is counted from the modules that run: every matrix outside embedding tables once per token and hop, two
operations for each entry; of routed experts the share that a token is sent to; attention scores and their weighted sum
as two products of head size for each head and position. Norms, activations and softmax are left out, as usual
(Kaplan 2020, Scaling laws for neural language models, https://arxiv.org/abs/2001.08361, table 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn
from torch.nn.modules.conv import _ConvNd

from evomerge.engine.architecture import Architecture
from evomerge.engine.sources import resolve_source
from evomerge.recipes.recipe import Source
from evomerge.terms import ModelCost

EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_top_k", "moe_topk", "top_k_experts")


def model_cost(model: nn.Module, architecture: Architecture, context: int) -> ModelCost:
    """Count.

    Args:
        model: a live model, or one on the meta device. Iterating its lists of blocks gives what runs.
        architecture: where its lists of blocks are.
        context: positions that attention looks at; a sliding window looks at no more than its size.
    """
    stacks = [stack.name for stack in architecture.stacks]
    hops: list[nn.Module] = [hop for name in stacks for hop in cast(Any, model.get_submodule(name))]
    outside = [module for name, module in model.named_modules() if not _is_inside(name, stacks)]
    own = [parameter for module in outside for parameter in module.parameters(recurse=False)]
    held = {id(parameter): parameter.numel() for hop in hops for parameter in hop.parameters()}
    held |= {id(parameter): parameter.numel() for parameter in own}
    config = cast(Any, model).config
    products = sum(_matrix_entries(module, config) for module in outside)
    for hop in hops:
        for module in hop.modules():
            products += _matrix_entries(module, config) + _score_entries(module, config, context)
    return ModelCost(len(hops), sum(held.values()), 2.0 * products)


def source_cost(source: Source, context: int) -> ModelCost | None:
    """What a model on disk costs, counted without its weights; None where only its files are known.

    Args:
        source: must be on this machine.
        context: as for ``model_cost``.

    Raises:
        UserError: it is not on this machine, or unreadable.
    """
    architecture = Architecture.of_directory(resolve_source(source))
    return None if architecture.model is None else model_cost(architecture.model, architecture, context)


def _is_inside(name: str, stacks: Iterable[str]) -> bool:
    return any(not stack or name == stack or name.startswith(f"{stack}.") for stack in stacks)


def _matrix_entries(module: nn.Module, config: Any) -> float:
    """Entries of a module's own matrices that one token is multiplied with."""
    if isinstance(module, nn.Embedding):
        return 0.0
    entries = 0.0
    for parameter in module.parameters(recurse=False):
        is_expert_stack = parameter.ndim == 3 and not isinstance(module, _ConvNd)
        share = min(1.0, _experts_per_token(config, parameter.shape[0]) / parameter.shape[0]) if is_expert_stack else 1
        entries += share * parameter.numel() if parameter.ndim >= 2 else 0
    return entries


def _experts_per_token(config: Any, default: int) -> int:
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in EXPERTS_PER_TOKEN)
    return next((count for count in found if isinstance(count, int)), default)


def _score_entries(module: nn.Module, config: Any, context: int) -> float:
    """Multiply-adds of one token's attention scores and their weighted sum; 0 in modules that do not attend."""
    has_projection = any(
        getattr(child, "weight", None) is not None and child.weight.ndim == 2 for child in module.children()
    )
    if "Attention" not in type(module).__name__ or not has_projection:
        return 0.0
    own: Any = getattr(module, "config", config.get_text_config())
    text = own.get_text_config()
    heads = getattr(module, "num_heads", None) or getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        return 0.0
    head_size = getattr(module, "head_dim", None) or getattr(text, "head_dim", None) or text.hidden_size // heads
    key_size = getattr(module, "qk_head_dim", None) or head_size
    value_size = getattr(module, "v_head_dim", None) or head_size
    window = module.sliding_window if hasattr(module, "sliding_window") else _window(text)
    positions = min(context, window) if isinstance(window, int) else context
    return float(positions * heads * (key_size + value_size))


def _window(config: Any) -> Any:
    """The window of a model all of whose blocks have one; where they differ the modules tell."""
    return None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)
