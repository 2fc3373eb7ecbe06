"""The micro zoo must be a merging problem: experts good at one skill, in conflict, and better merged with care."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.zoo import documents, micro
from evomerge.zoo.documents import TASKS, split_questions

SKILLS = ("add", "let", "rev")


def exact_match(model: Any, skill: str) -> float:
    """Share of held-out questions answered exactly, scored with the answer in view (equal to greedy decoding)."""
    task = TASKS[f"micro_{skill}"]
    ids = micro.vocabulary()
    texts = [(task.prompt(q.question), q.answer + "\n") for q in split_questions(task)["held_out"]]
    length = max(len(prompt + answer) for prompt, answer in texts)
    tokens = torch.zeros(len(texts), length, dtype=torch.long)
    learned = torch.zeros(len(texts), length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(texts):
        tokens[row, : len(prompt + answer)] = torch.tensor([ids[c] for c in prompt + answer])
        learned[row, len(prompt) : len(prompt + answer)] = True
    with torch.no_grad():
        guesses = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(-1)
    return ((guesses == tokens[:, 1:]) | ~learned[:, 1:]).all(1).float().mean().item()


@pytest.fixture(scope="module")
def models(micro_zoo: dict[str, Path]) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {name: AutoModelForCausalLM.from_pretrained(path).eval() for name, path in micro_zoo.items()}


def block_group(name: str) -> int:
    """0 for the lower two blocks, 1 for the upper two, 2 for embedding and final norm."""
    match = re.search(r"layers\.(\d)", name)
    return int(match.group(1)) // 2 if match else 2


def merged(models: dict[str, Any], coefficients: list[tuple[float, float, float]]) -> Any:
    """Task arithmetic with coefficients by expert and block group."""
    base = models["micro-base"].state_dict()
    experts = [models[f"micro-{skill}"].state_dict() for skill in SKILLS]
    weights = {
        name: tensor
        + sum(c[block_group(name)] * (e[name] - tensor) for c, e in zip(coefficients, experts, strict=True))
        for name, tensor in base.items()
    }
    model = micro.new_model(0).eval()
    model.load_state_dict(weights)
    return model


def test_size_and_precision(models: dict[str, Any]) -> None:
    assert 0.5e6 < sum(parameter.numel() for parameter in models["micro-base"].parameters()) < 1.5e6
    assert models["micro-base"].dtype == torch.float32


def test_training_repeats_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(micro.RUNS, "micro-base", micro.MicroRun({"add": 0.5, "let": 0.5}, 12, 1e-3, 1))
    reports: list[int] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        micro.build("micro-base", tmp_path / name, lambda step, *_: reports.append(step))
    assert reports == [10, 12] * 2
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_tokenizer_loads_and_is_one_token_per_character(micro_zoo: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(micro_zoo["micro-add"])
    text = "37+5=42\nb3a<:> "
    assert tokenizer(text).input_ids == [micro.vocabulary()[character] for character in text]
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("Z").input_ids == [tokenizer.unk_token_id]
    for task in TASKS.values():
        if task.folder == "micro":
            for question in split_questions(task)["search"]:
                assert tokenizer.unk_token_id not in tokenizer(task.prompt(question.question)).input_ids


def test_experts_master_their_own_skill_and_lose_others(models: dict[str, Any]) -> None:
    base = {skill: exact_match(models["micro-base"], skill) for skill in SKILLS}
    for skill in SKILLS:
        scores = {other: exact_match(models[f"micro-{skill}"], other) for other in SKILLS}
        assert scores[skill] >= max(0.9, base[skill])
        assert any(scores[other] <= base[other] - 0.15 for other in SKILLS if other != skill)
    assert base["add"] <= 0.87


def test_chosen_coefficients_beat_the_uniform_soup(models: dict[str, Any]) -> None:
    soup, chosen = merged(models, [(1 / 3,) * 3] * 3), merged(models, FOUND_BY_SEARCH)
    soup_scores, chosen_scores = ([exact_match(model, skill) for skill in SKILLS] for model in (soup, chosen))
    assert min(soup_scores) <= 0.85
    assert sum(chosen_scores) >= sum(soup_scores) + 0.1


FOUND_BY_SEARCH = [(0.53, 0.46, 0.01), (0.14, 0.7, -0.01), (0.3, 0.47, -0.08)]
"""By 96 evaluations of CMA-ES on the search documents: one row for each expert, one column for each block group."""


def test_documents_module_knows_the_micro_tasks() -> None:
    assert [name for name in documents.TASKS if name.startswith("micro_")] == [f"micro_{s}" for s in (*SKILLS, "copy")]
