"""Accuracy and length of generated answers: the ``python:`` function of long-to-short experiments.

The two are natural objectives of one search: arXiv 2503.20641 merges a quick and a slow reasoner for right answers that
are short. Copy this file as a start for your own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from evomerge.errors import UserError

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
Match = Literal["last_number", "exact", "last_word"]


def answer_length(
    model: Any,
    tokenizer: Any,
    documents: Sequence[Mapping[str, Any]],
    seed: int,
    *,
    max_new_tokens: int = 256,
    prompt: str = "{prompt}",
    answer: str = "{answer}",
    match: Match = "last_number",
    stop: Sequence[str] = (),
    chat_template: bool = False,
    batch_size: int = 32,
) -> dict[str, list[float]]:
    """Generate greedily; ``accuracy`` is 1 where the answer is right, ``tokens`` how many were generated.

    The end-of-text token counts, padding does not; an answer that never ends has ``max_new_tokens`` and may be right.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        documents: whatever ``prompt`` and ``answer`` name.
        seed: not used; nothing is drawn.
        max_new_tokens: longest answer.
        prompt: template of the prompt, filled in from the document.
        answer: template of the right answer.
        match: what must equal it: the last number of the text, the last word, or the whole text without outer spaces.
        stop: texts that end an answer; they count as tokens and are no part of the answer.
        chat_template: whether the prompt is one turn of a user in the tokenizer's chat template.
        batch_size: prompts that are generated side by side.

    Raises:
        UserError: no tokenizer, or a document lacks what a template names.
    """
    if tokenizer is None:
        raise UserError(f"answers cannot be generated: this {type(model).__name__} has no tokenizer beside it")
    prompts = [_fill(prompt, document) for document in documents]
    if chat_template:
        prompts = [_as_turn(tokenizer, text) for text in prompts]
    ids = [tokenizer(text, add_special_tokens=not chat_template).input_ids for text in prompts]
    # Like lengths side by side: less padding, and rows end at about the same time.
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    accuracy, tokens = [0.0] * len(ids), [0.0] * len(ids)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        for index, new in zip(chosen, _generate(model, tokenizer, [ids[i] for i in chosen], max_new_tokens, stop)):
            text = _until(tokenizer.decode(new, skip_special_tokens=True), stop)
            accuracy[index] = float(
                _extract(text, match) == _extract(_fill(answer, documents[index]), match) is not None
            )
            tokens[index] = float(len(new))
    return {"accuracy": accuracy, "tokens": tokens}


def _as_turn(tokenizer: Any, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _generate(
    model: Any, tokenizer: Any, ids: Sequence[list[int]], max_new_tokens: int, stop: Sequence[str]
) -> list[list[int]]:
    """The new tokens of each prompt, up to and with the one that ended it."""
    from transformers import GenerationConfig

    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    width = max(len(row) for row in ids)
    # Left padding: every prompt ends where generation begins.
    batch = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    # What is left out here would be taken from the model's own settings, penalties among them.
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=ends or None,
        repetition_penalty=1.0, no_repeat_ngram_size=0,
    )  # fmt: skip
    stops = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    with torch.inference_mode():
        out: Tensor = model.generate(input_ids=batch, attention_mask=mask, generation_config=settings, **stops)
    return [_ended(row, tokenizer, ends, stop) for row in out[:, width:].tolist()]


def _ended(row: list[int], tokenizer: Any, ends: Sequence[int], stop: Sequence[str]) -> list[int]:
    """A row without what was generated or padded behind its end."""
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    if stop and any(text in tokenizer.decode(row) for text in stop):
        low, high = 0, len(row)  # the fewest tokens whose text holds a stop; decoding only grows
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if any(text in tokenizer.decode(row[:middle]) for text in stop) else (middle, high)
            )
        return row[:high]
    return row


def _ends(model: Any, tokenizer: Any) -> list[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None})


def _until(text: str, stop: Sequence[str]) -> str:
    return min((text.partition(each)[0] for each in stop), key=len, default=text)


def _extract(text: str, match: Match) -> str | None:
    if match == "exact":
        return text.strip()
    if match == "last_word":
        return words[-1] if (words := text.split()) else None
    return numbers[-1].replace(",", "") if (numbers := NUMBER.findall(text)) else None


def _fill(template: str, document: Mapping[str, Any]) -> str:
    try:
        return template.format_map(document)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"the template {template!r} does not fit a document with {', '.join(document)}: {error}"
        ) from None
