"""Greedy generation over fixed blocks of prompts: rows stop one by one and leave the batch.

lm-eval's own loop lets every row run until all rows have shown a stop string; the text that counts is the same.
A block's prompts are read in chunks of similar length, then all its rows are decoded together.
Shapes: B rows of a block, L tokens, H key-value heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.request_plans import PassSize
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
class PromptChunk:
    """Prompts of similar length that are read in one forward pass.

    Attributes:
        rows: their places in the block.
        input_ids: ``(rows, L)``, padded on the left.
        attention_mask: ``(rows, L)``, None where nothing is padded.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None


@dataclass(frozen=True)
class GenerationBlock:
    """Prompts that are generated together.

    Attributes:
        chunks: the prompts.
        lengths: ``(B,)`` tokens of each prompt.
        stops: strings that end a row.
        max_new_tokens: longest answer.
        requests: ``(B,)`` the request of each row.
    """

    chunks: tuple[PromptChunk, ...]
    lengths: torch.Tensor
    stops: tuple[str, ...]
    max_new_tokens: int
    requests: tuple[int, ...]


def plan_block(
    prompts: Sequence[Sequence[int]], requests: Sequence[int], stops: Sequence[str], max_new_tokens: int,
    pad_token_id: int, size: PassSize, device: torch.device,
) -> GenerationBlock:  # fmt: skip
    """Lay out one block.

    Args:
        prompts: token ids of each row.
        requests: the request of each row.
        stops: strings that end a row.
        max_new_tokens: longest answer.
        pad_token_id: what fills short rows of a chunk.
        size: of the forward passes that read the prompts.
        device: where the tensors go.
    """
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    chunks = []
    for start, end in size.cut([len(prompts[row]) for row in order]):
        rows = tuple(order[start:end])
        width = len(prompts[rows[0]])
        ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, width - len(prompts[row]) :] = torch.tensor(prompts[row], dtype=torch.long)
            mask[line, width - len(prompts[row]) :] = 1
        chunks.append(PromptChunk(rows, ids.to(device), None if bool(mask.all()) else mask.to(device)))
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long, device=device)
    return GenerationBlock(tuple(chunks), lengths, tuple(stops), max_new_tokens, tuple(requests))


def why_not_greedy(model: Any, tokenizer: Any, stops: Sequence[str], longest: int, config: Any = None) -> str | None:
    """Why the loop here would not give lm-eval's text for this model and these stop strings; None when it does.

    Args:
        model: the live model.
        tokenizer: its tokenizer.
        stops: strings that end a row.
        longest: tokens of the longest prompt and answer together.
        config: what the model is like; None = the model's configuration.
    """
    config = model.config if config is None else config
    parameters = inspect.signature(model.forward).parameters
    missing = [name for name in ("position_ids", "past_key_values", "logits_to_keep") if name not in parameters]
    if missing:
        return f"the model's forward takes no {missing[0]}"
    if config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    kinds = {type(layer).__name__ for layer in layers}
    if not kinds <= {"DynamicLayer", "DynamicSlidingWindowLayer"}:
        return f"the model's cache has layers of other kinds ({', '.join(sorted(kinds))})"
    windows = [layer.sliding_window for layer in layers if getattr(layer, "sliding_window", None) is not None]
    if windows and min(windows) < longest:
        return f"prompt and answer ({longest} tokens) are longer than the model's attention window ({min(windows)})"
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
def generate_block(model: Any, tokenizer: Any, block: GenerationBlock) -> list[list[int]]:
    """Generate one block.

    Returns:
        For each row its new tokens, up to and including what ended it.

    Raises:
        ScoringFailed: the model's logits are not finite.
    """
    stopper = _Stopper(tokenizer, block.stops, end_token_ids(model))
    tokens, cache = _read_prompts(model, block)
    rows = [[token] for token in tokens.tolist()]
    alive = list(range(len(rows)))  # the row of each line of the running batch
    open_rows = set(alive) - stopper.finished(dict(enumerate(rows)))
    width = int(block.lengths.max())
    mask = (torch.arange(width, device=tokens.device) >= width - block.lengths[:, None]).long()
    positions = block.lengths[:, None] - 1
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
        tokens = _best(output.logits)
        for row, token in zip(alive, tokens.tolist(), strict=True):
            if row in open_rows:
                rows[row].append(token)
        open_rows -= stopper.finished({row: rows[row] for row in alive if row in open_rows})
    return rows


def _best(logits: torch.Tensor) -> torch.Tensor:
    values, tokens = logits[:, -1].float().max(-1)
    if not bool(torch.isfinite(values).all()):
        raise ScoringFailed(FailureKind.NON_FINITE, "the model gives logits that are not finite")
    return tokens


def _read_prompts(model: Any, block: GenerationBlock) -> tuple[torch.Tensor, DynamicCache]:
    """The first new token of each row ``(B,)``, and one cache of the whole block, its rows aligned on the right."""
    width = int(block.lengths.max())
    first = torch.zeros_like(block.lengths)
    rooms: list[tuple[torch.Tensor, torch.Tensor]] = []
    for chunk in block.chunks:
        cache = DynamicCache()
        places = {}
        if chunk.attention_mask is not None:
            places["position_ids"] = (chunk.attention_mask.cumsum(-1) - 1).clamp(min=0)
        output = model(
            input_ids=chunk.input_ids, attention_mask=chunk.attention_mask, past_key_values=cache, use_cache=True,
            logits_to_keep=1, **places,
        )  # fmt: skip
        lines = torch.tensor(chunk.rows, device=first.device)
        first[lines] = _best(output.logits)
        start = width - chunk.input_ids.shape[1]
        for index, layer in enumerate(cache.layers):
            if index == len(rooms):
                # Zeros, not garbage: what the mask hides is still multiplied, and 0 times NaN is NaN.
                heads, size = layer.keys.shape[1], layer.keys.shape[3]
                shape = (len(block.requests), heads, width + block.max_new_tokens - 1, size)
                rooms.append(
                    (layer.keys.new_zeros(shape), layer.values.new_zeros((*shape[:3], layer.values.shape[-1])))
                )
            for room, states in zip(rooms[index], (layer.keys, layer.values), strict=True):
                room[lines, :, start:width] = states
    whole = DynamicCache()
    whole.layers = [_BlockLayer(keys, values, width) for keys, values in rooms]
    return first, whole


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
