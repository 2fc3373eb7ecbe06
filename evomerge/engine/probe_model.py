"""A small random model of an architecture, with one of its blocks only: what is tried on it costs no large model.

It is built from the configuration on the meta device, cut to one block, and only then given memory. Vocabulary and
inner width of the MLP are cut as well, so that it needs about the memory of one block's attention.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import UserError

NUM_TOKENS = 8
SMALL_WIDTH = 64
SEED = 1
# Widths inside an MLP, which no other part of a block depends on.
WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
BUILD_ERRORS = (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError, NotImplementedError)


class ProbeModel:
    """A random model in fp32 whose list of blocks holds one block.

    Attributes:
        model: the model.
        block: its block.
    """

    def __init__(self, model: nn.Module, stack_name: str, block_index: int) -> None:
        """Build it.

        Args:
            model: of the architecture, on any device; it is left alone.
            stack_name: module path of the list of blocks.
            block_index: which block is kept.

        Raises:
            UserError: no such model can be built and run.
        """
        problems: list[str] = []
        for widths in (WIDTHS, ()):
            try:
                self.model = _build(model, stack_name, block_index, widths)
                self.block: nn.Module = self.model.get_submodule(stack_name)[0]  # type: ignore[index]
                self.run()
            except BUILD_ERRORS as error:
                problems.append((str(error).strip() or type(error).__name__).splitlines()[0][:200])
            else:
                return
        raise UserError(f"a small {type(model).__name__} cannot be run to look at its blocks ({problems[-1]})")

    def run(self) -> None:
        """Run the model up to its head; hooks record what they want to see."""
        model: Any = self.model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        ids = torch.arange(NUM_TOKENS).view(1, -1) % SMALL_WIDTH
        with torch.no_grad(), contextlib.ExitStack() as hooks:
            if isinstance(head, nn.Module):
                hooks.callback(head.register_forward_pre_hook(_stop).remove)
            with contextlib.suppress(_Stop):
                self.model(input_ids=ids, use_cache=False)

    @contextlib.contextmanager
    def changed(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Other values for some parameters of the block, while the context lasts.

        Args:
            values: parameter name inside the model to what it holds.
        """
        parameters = dict(self.model.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in values}
        try:
            with torch.no_grad():
                for name, value in values.items():
                    parameters[name].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)


class _Stop(Exception):
    """The head would run next."""


def _stop(*_: Any) -> None:
    raise _Stop


def _build(model: nn.Module, stack_name: str, block_index: int, widths: tuple[str, ...]) -> nn.Module:
    config: Any = copy.deepcopy(model.config)
    text = config.get_text_config()
    config._attn_implementation = "eager"
    for part in (config, text):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, 0)
        if isinstance(getattr(part, "vocab_size", None), int):
            part.vocab_size = SMALL_WIDTH
        for name in widths:
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, SMALL_WIDTH)
    with torch.device("meta"):
        small: Any = type(model)(config)
    parent, _, name = stack_name.rpartition(".")
    setattr(small.get_submodule(parent), name, nn.ModuleList([small.get_submodule(stack_name)[block_index]]))
    types = getattr(text, "layer_types", None)
    text.num_hidden_layers = 1
    if isinstance(types, list):
        with contextlib.suppress(AttributeError):  # where it is computed
            text.layer_types = [types[block_index]]
    small.to_empty(device="cpu")
    # Buffers such as rotary frequencies are filled by the model's own initialisation, parameters by ours.
    with torch.random.fork_rng(devices=[]):
        small.init_weights()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in small.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(1 + noise / 4 if parameter.ndim < 2 else noise * parameter.shape[-1] ** -0.5)
        for embedding in small.modules():
            if isinstance(embedding, nn.Embedding):
                embedding.weight.mul_(embedding.embedding_dim**0.5)
    module: nn.Module = small.float().eval()
    return module
