"""Greedy generation over fixed blocks of prompts: rows stop one by one and leave the batch.

lm-eval's own loop lets every row run until all rows have shown a stop string; the text that counts is the same.
Shapes: B rows, L prompt tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from evomerge.evaluation.failures import ScoringFailed
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
        input_ids: ``(B, L)``, padded on the left.
        attention_mask: ``(B, L)``.
        stops: strings that end a row.
        max_new_tokens: longest answer.
        requests: ``(B,)`` the request of each row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    stops: tuple[str, ...]
    max_new_tokens: int
    requests: tuple[int, ...]


def why_not_greedy(model: Any, tokenizer: Any, stops: Sequence[str]) -> str | None:
    """Why the loop here would not give lm-eval's text for this model and these stop strings; None when it does."""
    parameters = inspect.signature(model.forward).parameters
    missing = [name for name in ("position_ids", "past_key_values", "logits_to_keep") if name not in parameters]
    if missing:
        return f"the model's forward takes no {missing[0]}"
    if model.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    layers = {type(layer).__name__ for layer in _new_cache(model).layers}
    if not layers <= {"DynamicLayer", "DynamicSlidingWindowLayer"}:
        return f"the model's cache has layers of other kinds ({', '.join(sorted(layers))})"
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


def _new_cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


@torch.no_grad()
def generate_block(model: Any, tokenizer: Any, block: GenerationBlock) -> list[list[int]]:
    """Generate one block.

    Returns:
        For each row its new tokens, up to and including what ended it.

    Raises:
        ScoringFailed: the model's logits are not finite.
    """
    stopper = _Stopper(tokenizer, block.stops, end_token_ids(model))
    rows: list[list[int]] = [[] for _ in block.requests]
    alive = list(range(len(rows)))  # the row of each line of the running batch
    open_rows = set(alive)
    mask = block.attention_mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = _new_cache(model)
    inputs = block.input_ids
    for step in range(block.max_new_tokens):
        output = model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        best, tokens = output.logits[:, -1].float().max(-1)
        if not bool(torch.isfinite(best).all()):
            raise ScoringFailed(FailureKind.NON_FINITE, "the model gives logits that are not finite")
        for row, token in zip(alive, tokens.tolist(), strict=True):
            if row in open_rows:
                rows[row].append(token)
        open_rows -= stopper.finished({row: rows[row] for row in alive if row in open_rows})
        if not open_rows or step + 1 == block.max_new_tokens:
            break
        positions = positions[:, -1:] + 1
        if len(open_rows) <= _COMPACT_BELOW * len(alive):
            kept = torch.tensor([line for line, row in enumerate(alive) if row in open_rows], device=mask.device)
            alive = [row for row in alive if row in open_rows]
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
        mask = torch.cat([mask, mask.new_ones((len(alive), 1))], dim=-1)
        inputs = tokens[:, None]
    return rows


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
