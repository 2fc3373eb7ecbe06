"""Greedy generation over fixed blocks of prompts: rows stop one by one and leave the batch.

lm-eval's own loop lets every row run until all rows have shown a stop string; the text that counts is the same.
A block's prompts are read in chunks of similar length, then all its rows are decoded together.
Shapes: B rows of a block, L tokens, H key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.likelihood_pass import PassSize
from evomerge.evaluation.prompt_reading import PromptPass, lay_out_packed, lay_out_padded
from evomerge.evaluation.shared_prefix import PrefixPlan, PrefixReader
from evomerge.terms import FailureKind

_COMPACT_BELOW = 0.75  # share of rows still alive below which the finished ones are dropped from the cache

# Generation settings that change greedy text, with the values that do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "num_beams": (None, 1),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1, 1.0),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "watermarking_config": (None,),
    "exponential_decay_length_penalty": (None,),
    "cache_implementation": (None, "dynamic"),
    "stop_strings": (None,),
    "max_time": (None,),
    "remove_invalid_values": (None, False),
}


@dataclass(frozen=True)
class GenerationBlock:
    """Prompts that are generated together.

    Attributes:
        passes: how the prompts are read.
        prompts: their tokens.
        prefix_length: tokens that all prompts begin with and that are read once.
        stops: strings that end a row.
        max_new_tokens: longest answer.
        requests: ``(B,)`` the request of each row.
    """

    passes: tuple[PromptPass, ...]
    prompts: tuple[tuple[int, ...], ...]
    prefix_length: int
    stops: tuple[str, ...]
    max_new_tokens: int
    requests: tuple[int, ...]


@dataclass(frozen=True)
class GenerationPlan:
    """All blocks of a request set; a text depends on no prompt of another block."""

    engine: str
    blocks: tuple[GenerationBlock, ...]
    prefixes: PrefixPlan


class BlockPlanner:
    """Lays out blocks one after the other.

    Args:
        engine: ``packed`` or ``padded``.
        pad_token_id: what fills short rows of a padded pass.
        size: of the forward passes that read the prompts.
        device: where the tensors go.
    """

    def __init__(self, engine: str, pad_token_id: int, size: PassSize, device: torch.device) -> None:
        self._engine, self._pad_token_id, self._size, self._device = engine, pad_token_id, size, device
        self._prefixes = PrefixPlan()
        self._blocks: list[GenerationBlock] = []

    def add(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[int], stops: Sequence[str], max_new_tokens: int
    ) -> None:
        """One more block.

        Args:
            prompts: token ids of each row.
            requests: the request of each row.
            stops: strings that end a row.
            max_new_tokens: longest answer.
        """
        whole = tuple(tuple(prompt) for prompt in prompts)
        prefix = None
        if self._engine == "packed":
            prefix = self._prefixes.find(whole, min(map(len, whole)) - 1)
            passes = lay_out_packed(whole, prefix, self._size, self._device)
        else:
            passes = lay_out_padded(whole, self._pad_token_id, self._size, self._device)
        length = 0 if prefix is None else prefix.length
        self._blocks.append(
            GenerationBlock(tuple(passes), whole, length, tuple(stops), max_new_tokens, tuple(requests))
        )

    def plan(self) -> GenerationPlan:
        """All blocks so far."""
        return GenerationPlan(self._engine, tuple(self._blocks), self._prefixes)


def why_not_greedy(model: Any, tokenizer: Any, stops: Sequence[str]) -> str | None:
    """Why no loop here would give lm-eval's text for this model and these stop strings; None when it does.

    Args:
        model: the live model.
        tokenizer: its tokenizer.
        stops: strings that end a row.
    """
    settings = model.generation_config
    for name, values in _NEUTRAL.items():
        if getattr(settings, name, None) not in values:
            return f"the model's generation config sets {name}"
    ends = end_token_ids(model)
    if tokenizer.eos_token_id not in ends:
        return "the tokenizer's end token is not among the generation config's end tokens"
    if tokenizer.pad_token_id not in tokenizer.all_special_ids:
        return "the padding token is ordinary text"
    special = {tokenizer.decode([index]): index for index in tokenizer.all_special_ids if index not in ends}
    shown = [text for text in special if text and any(text in stop for stop in stops)]
    return f"a stop string holds the special token {shown[0]!r}" if shown else None


def end_token_ids(model: Any) -> frozenset[int]:
    """Tokens that end a generation."""
    ends = model.generation_config.eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


class _BlockLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in room that is there from the start; growing by copies costs a sixth of a step."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self._room = (keys, values)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._show(length)

    def _show(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (room[:, :, :length] for room in self._room)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states ``(B, H, L, D)``."""
        end = self._length + key_states.shape[-2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, self._length : end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self._room = (self._room[0][indices], self._room[1][indices])
        self._show(self._length)


@torch.no_grad()
def generate(model: Any, tokenizer: Any, plan: GenerationPlan) -> list[list[list[int]]]:
    """Generate all blocks.

    Returns:
        For each block and row its new tokens, up to and including what ended it.

    Raises:
        ScoringFailed: the model's logits are not finite.
    """
    prefixes = PrefixReader(model, plan.prefixes)
    return [_generate_block(model, tokenizer, block, prefixes) for block in plan.blocks]


def _generate_block(model: Any, tokenizer: Any, block: GenerationBlock, prefixes: PrefixReader) -> list[list[int]]:
    stopper = _Stopper(tokenizer, block.stops, end_token_ids(model))
    lengths = torch.tensor([len(prompt) for prompt in block.prompts], device=model.device)
    width = int(lengths.max())
    tokens, cache = _read_prompts(model, block, prefixes, width)
    rows = [[token] for token in tokens.tolist()]
    alive = list(range(len(rows)))  # the row of each line of the running batch
    open_rows = set(alive) - stopper.finished(dict(enumerate(rows)))
    places = torch.arange(width, device=tokens.device)
    mask = ((places >= width - lengths[:, None] + block.prefix_length) | (places < block.prefix_length)).long()
    positions = lengths[:, None] - 1
    for _ in range(block.max_new_tokens - 1):
        if not open_rows:
            break
        positions = positions + 1
        if len(open_rows) <= _COMPACT_BELOW * len(alive):
            kept = torch.tensor([line for line, row in enumerate(alive) if row in open_rows], device=mask.device)
            alive = [row for row in alive if row in open_rows]
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
        mask = torch.cat([mask, mask.new_ones((len(alive), 1))], dim=-1)
        output = model(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        tokens = _best(output.logits[:, -1])
        for row, token in zip(alive, tokens.tolist(), strict=True):
            if row in open_rows:
                rows[row].append(token)
        open_rows -= stopper.finished({row: rows[row] for row in alive if row in open_rows})
    return rows


def _best(logits: torch.Tensor) -> torch.Tensor:
    values, tokens = logits.float().max(-1)
    if not bool(torch.isfinite(values).all()):
        raise ScoringFailed(FailureKind.NON_FINITE, "the model gives logits that are not finite")
    return tokens


def _read_prompts(
    model: Any, block: GenerationBlock, prefixes: PrefixReader, width: int
) -> tuple[torch.Tensor, DynamicCache]:
    """The first new token of each row ``(B,)``, and one cache of the whole block.

    Its rows hold the shared prefix, then what is left of the prompt, aligned on the right.
    """
    device = model.device
    first = torch.zeros(len(block.prompts), dtype=torch.long, device=device)
    rooms: list[tuple[torch.Tensor, ...]] = []
    for one in block.passes:
        logits, found = one.read(model, prefixes)
        lines = torch.tensor(one.rows, device=device)
        first[lines] = _best(logits)
        shared = prefixes.key_values(one.prefix) if one.prefix is not None else None
        for index, layer in enumerate(found):
            if index == len(rooms):
                rooms.append(
                    tuple(_room(states, len(block.prompts), width + block.max_new_tokens - 1) for states in layer)
                )
            for part, (room, states) in enumerate(zip(rooms[index], layer, strict=True)):
                room[lines, :, width - states.shape[2] : width] = states
                if shared is not None:
                    room[lines, :, : block.prefix_length] = shared[index][part]
    whole = DynamicCache()
    whole.layers = [_BlockLayer(keys, values, width) for keys, values in rooms]
    return first, whole


def _room(states: torch.Tensor, num_rows: int, length: int) -> torch.Tensor:
    """Zeros, not garbage: what the mask hides is still multiplied, and 0 times NaN is NaN."""
    return states.new_zeros((num_rows, states.shape[1], length, states.shape[3]))


class _Stopper:
    """Tells which rows have ended: by an end token, or by showing a stop string in their decoded text."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ends = ends
        longest = max((len(stop.encode()) for stop in self._stops), default=0)
        self._window = longest + 2  # a token is at least one byte of text
        # Cutting at one stop string can hide another one that began earlier and ends later: then read on a little.
        overlap = any(_overlaps(left, right) for left in self._stops for right in self._stops if left != right)
        self._slack = max((len(stop) for stop in self._stops), default=1) - 1 if overlap else 0

    def finished(self, rows: dict[int, list[int]]) -> set[int]:
        """The rows, by number, that have ended."""
        ended = {row for row, tokens in rows.items() if tokens[-1] in self._ends}
        asked = [row for row in rows if row not in ended]
        if not self._stops or not asked:
            return ended
        window = self._window + self._slack
        tails = self._tokenizer.batch_decode([rows[row][-window:] for row in asked], skip_special_tokens=True)
        for row, tail in zip(asked, tails, strict=True):
            if any(stop in tail for stop in self._stops) and self._is_settled(rows[row]):
                ended.add(row)
        return ended

    def _is_settled(self, tokens: list[int]) -> bool:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        places = [text.find(stop) + len(stop) for stop in self._stops if stop in text]
        return bool(places) and len(text) >= min(places) + self._slack


def _overlaps(left: str, right: str) -> bool:
    """Whether the end of one string is the beginning of the other, or lies inside it."""
    return left in right or any(left[-size:] == right[:size] for size in range(1, min(len(left), len(right))))
