from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from evomerge.engine.architecture import Architecture, describe
from evomerge.engine.checkpoint import Checkpoint
from evomerge.errors import UserError

from .conftest import CONFIGS, tiny_config

# Tensors of one block by component (attention, mlp, norms), and of the whole model outside the blocks.
EXPECTED = {
    "llama": ((4, 3, 2), {"embeddings": 1, "norms": 1}),
    "mistral": ((4, 3, 2), {"embeddings": 1, "norms": 1, "head": 1}),
    "qwen2": ((7, 3, 2), {"embeddings": 1, "norms": 1}),
    "qwen3": ((4, 3, 4), {"embeddings": 1, "norms": 1, "head": 1}),
    "gemma2": ((4, 3, 4), {"embeddings": 1, "norms": 1}),
    "gemma3_text": ((4, 3, 6), {"embeddings": 1, "norms": 1}),
    "phi3": ((2, 2, 2), {"embeddings": 1, "norms": 1, "head": 1}),
    "gpt_neox": ((4, 4, 4), {"embeddings": 1, "norms": 2, "head": 1}),
    "gpt2": ((4, 4, 4), {"embeddings": 2, "norms": 2}),
}


def of_config(config: object) -> Architecture:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return describe(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", CONFIGS)
def test_blocks_and_components(kind: str) -> None:
    architecture = of_config(tiny_config(kind))
    attention, mlp, norms = EXPECTED[kind][0]
    assert architecture.num_blocks == 2
    for block in range(2):
        found = Counter(slot.component for slot in architecture.slots if slot.block == block)
        assert found == {"attention": attention, "mlp": mlp, "norms": norms}
    assert Counter(slot.component for slot in architecture.slots if slot.block is None) == EXPECTED[kind][1]
    assert architecture.is_tied == ("head" not in EXPECTED[kind][1])


def test_experts_of_a_block_are_not_its_blocks() -> None:
    config = tiny_config("llama")
    config.num_hidden_layers = 3
    model = torch.nn.Module()
    model.config = config
    model.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(3))
    for layer in model.layers:
        layer.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(8))
    architecture = describe(model)
    assert architecture.num_blocks == 3
    assert {(slot.block, slot.component) for slot in architecture.slots} == {(0, "mlp"), (1, "mlp"), (2, "mlp")}


def test_names_without_prefix_and_tied_heads_are_found(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    architecture = of_config(tiny_config("gpt2"))
    save_file({"wte.weight": torch.ones(2), "h.0.ln_1.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    layout = architecture.layout(Checkpoint(tmp_path))
    assert layout.stored_names("transformer.h.0.ln_1.weight") == ("h.0.ln_1.weight",)
    assert layout.stored_names("lm_head.weight") == ("wte.weight",)
    assert layout.stored_names("transformer.ln_f.weight") == ()


def test_untying_makes_the_head_a_tensor_of_its_own(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    names = [slot.name for slot in Architecture.of_directory(tmp_path).slots]
    untied = [slot.name for slot in Architecture.of_directory(tmp_path, tie=False).slots]
    assert untied == [*names, "lm_head.weight"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}), "quantised"),
        (json.dumps({"model_type": "unknown", "quantization_config": {"bits": 4}}), "quantised"),
        ("{", "not a readable configuration"),
        ("[]", "expected a JSON object"),
    ],
)
def test_unusable_configurations_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}.*{message}"):
        Architecture.of_directory(tmp_path)
