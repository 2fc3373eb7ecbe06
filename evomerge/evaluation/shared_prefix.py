"""The beginning that many prompts share (instructions, fixed examples): read once for each candidate.

Which prefixes there are and who uses them is laid out once. Keys and values are made anew in every pass over the
documents, so no candidate ever sees another one's.
Shapes: B rows, H key-value heads, P tokens of a prefix, L new tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SHORTEST = 16  # a shorter one costs less to repeat than to look up

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer: (1, H, P, D)


@dataclass(frozen=True)
class PrefixUse:
    """The first tokens of one of the prefixes.

    Attributes:
        number: which prefix.
        length: how many of its tokens.
    """

    number: int
    length: int


class PrefixPlan:
    """The prefixes of a request set. What an earlier block needs never depends on a later one."""

    def __init__(self) -> None:
        self.prefixes: list[tuple[int, ...]] = []

    def find(self, sequences: Sequence[tuple[int, ...]], limit: int) -> PrefixUse | None:
        """What a block's sequences begin with alike, None when that is not worth it.

        Args:
            sequences: token ids of the block.
            limit: most tokens the prefix may have.
        """
        if len(sequences) < 2:
            return None
        first, last = min(sequences), max(sequences)  # what these two share, all between them share too
        common = first[: max(0, min(limit, _num_alike(first, last)))]
        if len(common) < SHORTEST:
            return None
        uses = [PrefixUse(number, _num_alike(common, known)) for number, known in enumerate(self.prefixes)]
        best = max(uses, key=lambda use: use.length, default=None)
        if best is not None and best.length >= SHORTEST:
            repeated = (len(common) - best.length) * (len(sequences) - 1)
            if repeated <= len(common):
                return best
        self.prefixes.append(common)
        return PrefixUse(len(self.prefixes) - 1, len(common))


def _num_alike(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens up to the first that differs."""
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


class PrefixReader:
    """Keys and values of prefixes under the model's present weights; lives as long as one pass over the documents."""

    def __init__(self, model: Any, plan: PrefixPlan) -> None:
        self._model, self._plan = model, plan
        self._read: dict[int, KeyValues] = {}

    def key_values(self, use: PrefixUse) -> KeyValues:
        """Of the part in use, views."""
        if use.number not in self._read:
            tokens = torch.tensor([self._plan.prefixes[use.number]], device=self._model.device)
            cache = DynamicCache()
            self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._read[use.number] = [(layer.keys, layer.values) for layer in cache.layers]
        return [(keys[:, :, : use.length], values[:, :, : use.length]) for keys, values in self._read[use.number]]

    def cache(self, use: PrefixUse | None, num_rows: int) -> DynamicCache:
        """A cache whose rows begin with the prefix; new keys and values do not outlive it."""
        cache = DynamicCache()
        if use is not None:
            cache.layers = [_PrefixedLayer(keys, values, num_rows) for keys, values in self.key_values(use)]
        return cache


class _PrefixedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer that begins with keys and values ``(1, H, P, D)``, the same in all rows."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, num_rows: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1)
        self.is_initialized = True
