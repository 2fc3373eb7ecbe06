"""Tiny random models on disk: real transformers architectures with two blocks and 64 tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

VOCABULARY = 64
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "vocab_size": VOCABULARY, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "mistral": GROUPED,
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "phi3": GROUPED,
    "gpt_neox": SMALL,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 64, "bos_token_id": 1,
             "eos_token_id": 2},
}  # fmt: skip


def tiny_config(kind: str, **changes: Any) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**{**CONFIGS[kind], **changes})


def tiny_model(config: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose norms and biases are not all ones and zeros."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def fine_tuned(model: Any, seed: int, scale: float = 0.02, frozen: tuple[str, ...] = ("embed",)) -> Any:
    """The model with noise on every parameter whose name has none of the frozen words, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not any(word in name for word in frozen):
                parameter += (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)
    return model


def save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


@dataclass(frozen=True)
class Family:
    """A base and three fine-tunes of it on disk."""

    base: Source
    experts: tuple[tuple[str, Source], ...]

    @property
    def directory(self) -> Path:
        return Path(self.base.model)


def save_family(root: Path, kind: str, dtype: torch.dtype, **changes: Any) -> Family:
    base = tiny_model(tiny_config(kind, **changes), 0, dtype)
    base.save_pretrained(root / "base")
    save_tokenizer(root / "base")
    experts = []
    for number, name in enumerate(("math", "spanish", "capitals"), start=1):
        model = fine_tuned(tiny_model(tiny_config(kind, **changes), 0, dtype), number)
        model.save_pretrained(root / name)
        experts.append((name, Source(str(root / name))))
    return Family(Source(str(root / "base")), tuple(experts))


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Tied bfloat16 Llamas whose embeddings the experts left alone."""
    return save_family(tmp_path_factory.mktemp("llama"), "llama", torch.bfloat16)


@pytest.fixture(scope="session")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Float32 families of any architecture, made once each."""
    made: dict[str, Family] = {}

    def get(kind: str) -> Family:
        if kind not in made:
            made[kind] = save_family(tmp_path_factory.mktemp(kind), kind, torch.float32)
        return made[kind]

    return get


def recipe_of(family: Family, method: str, seed: int = 0, dtype: str | None = None, num_experts: int = 3) -> Recipe:
    """A recipe of any method with values drawn by seed, different in every block."""
    from evomerge.methods.catalogue import get_spec

    spec, random = get_spec(method), np.random.default_rng(seed)
    experts = family.experts[: min(num_experts, spec.max_experts or num_experts)]
    parameters: dict[str, tuple[Rule, ...]] = {}
    for entry in spec.hyperparameters:
        if entry.name == "steps":
            parameters["steps"] = (Rule(5),)  # more of an optimiser take long and show no more
        if entry.kind == "float":
            names = [name for name, _ in experts] if entry.per == "expert" else [None]
            low, high = entry.low if entry.high < 0.2 else max(entry.low, 0.1), entry.high
            if entry.name == "t" and method == "nearswap":
                high = 0.01  # the experts' largest changes are not much more
            parameters[entry.name] = tuple(
                Rule(float(random.uniform(low, high)), blocks=blocks, expert=name)
                for blocks in ((0, 1), None)
                for name in names
            )
    base = family.base if spec.needs_base else None
    merge = Merge(method, experts, base, tuple(sorted(parameters.items())), seed=seed if spec.stochastic else 0)
    return Recipe(merge, dtype=dtype, tokenizer=None if spec.needs_base else family.base)
