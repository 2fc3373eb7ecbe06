"""The output head in float32, also where the model computes in less.

In bfloat16 the two best choices of a question often have one and the same logit; which of them wins is an accident.
Behind the head's few rows that are read, float32 costs next to nothing.
Shapes: K rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SLICE_BYTES = {"cpu": 2**21, "cuda": 2**27}  # of weights turned to float32 at once; on a CPU what a core's cache holds


@contextmanager
def float32_head(model: Any) -> Iterator[None]:
    """The model's logits are computed in float32 from its hidden states while the context lasts.

    What the model does to its logits (soft caps, scaling) is left as it is. A model in float32, or one whose output
    head is not a plain linear layer, computes as always.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32 or not head.weight.is_floating_point():
        yield
        return
    exchange = _Exchange()
    handles = [head.register_forward_pre_hook(exchange.take), head.register_forward_hook(exchange.give)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Exchange:
    """Lets the head compute one row only, and hands out the logits of all rows instead."""

    def __init__(self) -> None:
        self._hidden: torch.Tensor | None = None

    def take(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Before the head."""
        self._hidden = args[0]
        return (args[0][..., :1, :], *args[1:])

    def give(self, module: nn.Linear, args: Any, output: torch.Tensor) -> torch.Tensor:
        """Behind it."""
        assert self._hidden is not None
        hidden, self._hidden = self._hidden.float(), None
        weight, bias = module.weight, module.bias
        step = max(1, _SLICE_BYTES.get(weight.device.type, 2**27) // (4 * weight.shape[1]))
        logits = hidden.new_empty((*hidden.shape[:-1], weight.shape[0]))
        for start in range(0, weight.shape[0], step):
            logits[..., start : start + step] = hidden @ weight[start : start + step].float().T
        return logits if bias is None else logits.add_(bias.float())
