"""A Llama whose projections are fused, as vLLM keeps them, around transformers' own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

FUSED = {
    "qkv_proj": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "gate_up_proj": ("mlp", ("gate_proj", "up_proj")),
}


class FusedLlama(nn.Module):
    """Parameters under vLLM's names; transformers' model computes with views of them."""

    def __init__(self, directory: str, dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self._inner = [AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().requires_grad_(False)]
        self._places: dict[str, tuple[str, Tensor]] = {}  # name in a checkpoint -> name here, where it is written
        self._tied = bool(self._inner[0].config.tie_word_embeddings)
        fused: set[str] = set()
        for number, block in enumerate(self._inner[0].model.layers):
            for name, (part, members) in FUSED.items():
                place = f"model.layers.{number}.{part}"
                modules = [getattr(getattr(block, part), member) for member in members]
                whole = torch.cat([module.weight.data for module in modules])
                self._add(f"{place}.{name}.weight", whole)
                pieces = whole.split([module.weight.shape[0] for module in modules])
                for member, module, piece in zip(members, modules, pieces, strict=True):
                    module.weight.data = piece
                    self._places[f"{place}.{member}.weight"] = (f"{place}.{name}.weight", piece)
                    fused.add(f"{place}.{member}.weight")
        for name, parameter in self._inner[0].named_parameters():
            if name not in fused:
                self._add(name, parameter.data)
                self._places[name] = (name, parameter.data)

    def _add(self, name: str, data: Tensor) -> None:
        self.register_parameter(name.replace(".", "/"), nn.Parameter(data, requires_grad=False))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.replace("/", "."), parameter

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded = set()
        for name, tensor in weights:
            if self._tied and name == "lm_head.weight":
                continue
            own, place = self._places[name]
            assert place.shape == tensor.shape, name
            place.copy_(tensor)
            loaded.add(own)
        return loaded

    def forward(self, tokens: list[int], cache: Any) -> Tensor:
        ids = torch.tensor([tokens])
        found: Tensor = self._inner[0](input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return found[0, -1]


def keys_and_values(cache: Any, length: int) -> list[tuple[Tensor, Tensor]]:
    """Of the first positions, layer by layer."""
    return [(layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone()) for layer in cache.layers]


def decode(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    """The new text, decoded behind the last tokens of the prompt, as vLLM does."""
    before = prompt[-4:]
    start = tokenizer.decode(before, skip_special_tokens=True)
    return tokenizer.decode([*before, *tokens], skip_special_tokens=True)[len(start) :]
