"""How the prompts of a generation block are read, laid out once.

Packed: many prompts in one row behind the prefix they share. Padded: prompts of similar length side by side.
Shapes: B prompts of a pass, R rows, L tokens, P tokens of the shared prefix, H key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from evomerge.evaluation.likelihood_pass import PassSize
from evomerge.evaluation.shared_prefix import KeyValues, PrefixReader, PrefixUse
from evomerge.evaluation.token_tree import TreePass, TreeRow, rows_of_passes

Prompts = Sequence[Sequence[int]]


class PromptPass(Protocol):
    """Some prompts of a block that are read together."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Their places in the block."""
        ...

    @property
    def prefix(self) -> PrefixUse | None:
        """What they begin with."""
        ...

    def read(self, model: Any, prefixes: PrefixReader) -> tuple[torch.Tensor, KeyValues]:
        """Read them.

        Returns:
            Logits ``(B, V)`` behind each prompt; and of each layer keys and values ``(B, H, L, D)`` of the prompts
            without the shared prefix, aligned on the right, with anything finite before short ones.
        """
        ...


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts of similar length.

    Attributes:
        rows: their places in the block.
        input_ids: ``(B, L)``, padded on the left.
        attention_mask: ``(B, L)``, None where nothing is padded.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    prefix: PrefixUse | None = None

    def read(self, model: Any, prefixes: PrefixReader) -> tuple[torch.Tensor, KeyValues]:
        """See `PromptPass.read`."""
        cache = DynamicCache()
        places = {}
        if self.attention_mask is not None:
            places["position_ids"] = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)
        output = model(
            input_ids=self.input_ids, attention_mask=self.attention_mask, past_key_values=cache, use_cache=True,
            logits_to_keep=1, **places,
        )  # fmt: skip
        return output.logits[:, -1], [(layer.keys, layer.values) for layer in cache.layers]


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts in few rows.

    Attributes:
        rows: their places in the block.
        trees: their tokens behind the prefix.
        prefix: what they begin with.
        keep: ``(R, L)`` where a prompt ends.
        answers: ``(B,)`` which of the kept logits is behind each prompt.
        lines: ``(B, 1)`` the row each prompt lies in.
        columns: ``(B, L)`` the places of its tokens there, 0 before short ones.
    """

    rows: tuple[int, ...]
    trees: TreePass
    prefix: PrefixUse | None
    keep: torch.Tensor
    answers: torch.Tensor
    lines: torch.Tensor
    columns: torch.Tensor

    def read(self, model: Any, prefixes: PrefixReader) -> tuple[torch.Tensor, KeyValues]:
        """See `PromptPass.read`."""
        cache = prefixes.cache(self.prefix, len(self.trees.input_ids))
        output = model(
            input_ids=self.trees.input_ids, attention_mask=self.trees.attention_mask(model.dtype),
            position_ids=self.trees.position_ids, past_key_values=cache, use_cache=True, logits_to_keep=self.keep,
        )  # fmt: skip
        columns = self.columns + self.trees.prefix_length
        found = [
            (layer.keys[self.lines, :, columns].transpose(1, 2), layer.values[self.lines, :, columns].transpose(1, 2))
            for layer in cache.layers
        ]
        return output.logits.view(-1, output.logits.shape[-1])[self.answers], found


def lay_out_padded(prompts: Prompts, pad_token_id: int, size: PassSize, device: torch.device) -> list[PromptPass]:
    """Prompts by length, longest first.

    Args:
        prompts: token ids.
        pad_token_id: what fills short rows.
        size: of the passes.
        device: where the tensors go.
    """
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    passes: list[PromptPass] = []
    for start, end in size.cut([len(prompts[row]) for row in order]):
        rows = tuple(order[start:end])
        width = len(prompts[rows[0]])
        ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, width - len(prompts[row]) :] = torch.tensor(prompts[row], dtype=torch.long)
            mask[line, width - len(prompts[row]) :] = 1
        passes.append(PaddedPrompts(rows, ids.to(device), None if bool(mask.all()) else mask.to(device)))
    return passes


def lay_out_packed(
    prompts: Prompts, prefix: PrefixUse | None, size: PassSize, device: torch.device
) -> list[PromptPass]:
    """Prompts in trees, in an order that brings together what begins alike.

    Args:
        prompts: token ids.
        prefix: what all of them begin with.
        size: of the passes.
        device: where the tensors go.
    """
    skipped = 0 if prefix is None else prefix.length
    order = sorted(range(len(prompts)), key=lambda row: (tuple(prompts[row]), row))
    groups = [[tuple(prompts[row])[skipped:]] for row in order]
    return [_packed(rows, order, prefix, device) for rows in rows_of_passes(groups, size)]


def _packed(
    rows: Sequence[TreeRow], order: Sequence[int], prefix: PrefixUse | None, device: torch.device
) -> PackedPrompts:
    found = [
        (order[group], line, places)
        for line, row in enumerate(rows)
        for (group, _), places in zip(row.members, row.places, strict=True)
    ]
    width = max(len(row.tokens) for row in rows)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    columns = torch.zeros((len(found), max(len(places) for _, _, places in found)), dtype=torch.long)
    for number, (_, line, places) in enumerate(found):
        keep[line, places[-1]] = True
        columns[number, -len(places) :] = torch.tensor(places)
    position = torch.cumsum(keep.flatten(), 0).view_as(keep) - 1
    answers = torch.tensor([int(position[line, places[-1]]) for _, line, places in found])
    lines = torch.tensor([[line] for _, line, _ in found])
    return PackedPrompts(
        rows=tuple(row for row, _, _ in found),
        trees=TreePass.of(rows, 0 if prefix is None else prefix.length, device),
        prefix=prefix,
        keep=keep.to(device),
        answers=answers.to(device),
        lines=lines.to(device),
        columns=columns.to(device),
    )
