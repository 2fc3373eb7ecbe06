"""Which component a tensor belongs to: from the modules on its path, or from its name alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from evomerge.engine.block_stacks import Stack, find_place

# Parts of module names between a block and its tensor, by component; the first that matches wins.
ATTENTION_WORDS = re.compile(r"attn|attention|mixer|mamba|ssm|retention|linear_attn")
MLP_WORDS = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|dense_h_to|dense_4h|fc\d|ff_|^ff\d*$|layerff|dense_?relu|intermediate|output$"
)
NORM_WORDS = re.compile(r"norm|(^|_)ln(_|\d|$)")
EMBEDDING_WORDS = re.compile(r"embed|^wte$|^wpe$|^emb$")
HEAD_WORDS = re.compile(r"^(lm_head|embed_out|output_head)$")


class Components:
    """Tells block and component of the parameters of a model."""

    def __init__(self, model: nn.Module, stacks: Sequence[Stack]) -> None:
        self._modules = dict(model.named_modules())
        self._stacks = stacks
        self._input = _weight_module(model, "get_input_embeddings")
        self._output = _weight_module(model, "get_output_embeddings")

    def of(self, name: str) -> tuple[int | None, str]:
        """Block and component of a parameter."""
        module = self._modules[name.rpartition(".")[0]]
        place = find_place(self._stacks, name)
        block, inside = (None, name) if place is None else place
        if block is None and module is self._input:
            return block, "embeddings"
        if block is None and module is self._output:
            return block, "head"
        words = inside.split(".")
        if "norm" in type(module).__name__.lower() or any(NORM_WORDS.search(word) for word in words[-2:]):
            return block, "norms"
        if block is None:
            return block, "embeddings" if isinstance(module, nn.Embedding) else "other"
        return block, self._inside_block(name, words[:-1])

    def _inside_block(self, name: str, words: list[str]) -> str:
        path = name.split(".")[: -len(words) - 1] if words else []
        for word in words:
            path.append(word)
            for text in (word.lower(), type(self._modules[".".join(path)]).__name__.lower()):
                if component := _by_words(text):
                    return component
        return "other"


def name_component(stacks: Sequence[Stack], name: str, num_dims: int) -> tuple[int | None, str]:
    """Block and component of a tensor of which only the name and the number of dimensions are known."""
    place = find_place(stacks, name)
    block, inside = (None, name) if place is None else place
    words = inside.lower().split(".")
    if any(NORM_WORDS.search(word) for word in words[-2:]):
        return block, "norms"
    if block is not None:
        return block, next((found for word in words[:-1] if (found := _by_words(word))), "other")
    if num_dims == 2 and any(HEAD_WORDS.search(word) for word in words[:-1]):
        return block, "head"
    if num_dims == 2 and words[-1] == "weight" and any(EMBEDDING_WORDS.search(word) for word in words[-2:-1]):
        return block, "embeddings"
    return block, "other"


def _by_words(text: str) -> str | None:
    if ATTENTION_WORDS.search(text):
        return "attention"
    return "mlp" if MLP_WORDS.search(text) else None


def _weight_module(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return module if isinstance(module, nn.Module) else None
