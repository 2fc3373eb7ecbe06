from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from evomerge.engine.architecture import Architecture, describe
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


def test_names_without_prefix_and_tied_heads_are_found() -> None:
    architecture = of_config(tiny_config("gpt2"))
    stored = {"wte.weight", "h.0.ln_1.weight"}
    assert architecture.stored_name("transformer.h.0.ln_1.weight", stored) == "h.0.ln_1.weight"
    assert architecture.stored_name("lm_head.weight", stored) == "wte.weight"
    assert architecture.stored_name("transformer.ln_f.weight", stored) is None


def test_untying_makes_the_head_a_tensor_of_its_own(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    names = [slot.name for slot in Architecture.of_directory(tmp_path).slots]
    untied = [slot.name for slot in Architecture.of_directory(tmp_path, tie=False).slots]
    assert untied == [*names, "lm_head.weight"]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no_such_architecture"},
        {"model_type": "mine", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}},
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
)
def test_unusable_configurations_are_refused(config: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=str(tmp_path)):
        Architecture.of_directory(tmp_path)
