"""Accuracy and length of generated answers, on the micro zoo's sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import UserError
from evomerge.evaluation.answer_length import answer_length

SUMS = Path(__file__).resolve().parents[3] / "fitness" / "tasks" / "micro" / "data" / "micro_add.search.jsonl"
NUM_SUMS = 12


@pytest.fixture(scope="module")
def adder(micro_zoo: dict[str, Path]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = micro_zoo["micro-base"]
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def sums() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SUMS.read_text().splitlines()[:NUM_SUMS]]


def one_by_one(model: Any, tokenizer: Any, prompt: str, most: int) -> str:
    """Greedy text without cache, padding or `generate`, up to and with the line end."""
    ids, text = tokenizer(prompt).input_ids, ""
    while len(text) < most and not text.endswith("\n"):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        text += tokenizer.decode(ids[-1:])
    return text


def test_batches_give_what_one_prompt_alone_gives(adder: tuple[Any, Any]) -> None:
    model, tokenizer = adder
    documents = sums()
    texts = [one_by_one(model, tokenizer, document["prompt"], 6) for document in documents]
    found = answer_length(model, tokenizer, documents, 0, max_new_tokens=6, stop=["\n"], batch_size=5)
    assert found["tokens"] == [float(len(text)) for text in texts]
    wanted = [float(text.strip() == document["answer"]) for text, document in zip(texts, documents)]
    assert found["accuracy"] == wanted
    assert 0 < sum(wanted) < len(wanted) or sum(wanted) == len(wanted)
    assert len(set(found["tokens"])) > 1


def test_templates_matches_and_the_longest_answer(adder: tuple[Any, Any]) -> None:
    model, tokenizer = adder
    documents = [{"left": document["question"], "sum": int(document["answer"])} for document in sums()]
    found = answer_length(
        model, tokenizer, documents, 0, max_new_tokens=4, prompt="{left}=", answer="{sum}", match="exact", stop=["\n"]
    )
    assert found["accuracy"] == answer_length(model, tokenizer, sums(), 0, max_new_tokens=4, stop=["\n"])["accuracy"]
    assert set(answer_length(model, tokenizer, sums(), 0, max_new_tokens=3)["tokens"]) == {3.0}


def test_what_cannot_be_generated_is_told(adder: tuple[Any, Any]) -> None:
    model, tokenizer = adder
    with pytest.raises(UserError, match="no tokenizer"):
        answer_length(model, None, sums(), 0)
    with pytest.raises(UserError, match="does not fit a document with id, prompt"):
        answer_length(model, tokenizer, sums(), 0, prompt="{question_text}")
