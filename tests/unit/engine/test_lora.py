from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.engine.model_tensors import OpenModels
from evomerge.errors import UserError
from evomerge.recipes.recipe import Source

from .conftest import tiny_config, tiny_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mistral", {"target_modules": ["q_proj", "down_proj"]}),
    "rank and alpha patterns": (
        "mistral",
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 7}},
    ),
    "rslora": ("mistral", {"target_modules": ["v_proj"], "use_rslora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "embeddings": ("mistral", {"target_modules": ["embed_tokens", "k_proj"]}),
    "dora": ("mistral", {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "alpha_pattern": {"q_proj": 3}}),
    "dora conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "dora embeddings": ("mistral", {"target_modules": ["embed_tokens"], "use_dora": True, "use_rslora": True}),
    "tied head": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "modules to save": ("mistral", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_baked_adapter_equals_peft(case: str, tmp_path: Path) -> None:
    import peft

    kind, settings = CASES[case]
    model = tiny_model(tiny_config(kind), 0)
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = wrapped.merge_and_unload().state_dict()

    source = Source(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    models = OpenModels(source, [])
    ours = models.get(source)
    changed = [slot.name for slot in models.architecture.slots if not ours.is_mapped(slot.name)]
    assert changed
    for slot in models.architecture.slots:
        torch.testing.assert_close(ours.tensor(slot.name), merged[slot.name], rtol=1e-6, atol=1e-6)


def save_adapter(directory: Path, **config: Any) -> None:
    import json

    import safetensors.torch

    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, **config}))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {key.format("A"): torch.ones(2, 16), key.format("B"): torch.ones(16, 2)}
    safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [({"lora_bias": True}, "lora_bias"), ({"peft_type": "IA3"}, "expected a LoRA adapter")],
)
def test_other_adapters_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_model(tiny_config("mistral"), 0).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "adapter", **config)
    source = Source(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=message):
        OpenModels(source, [])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"A": (2, 16), "B": (16, 3)}, r"lora_B of .* is \[16, 3\] and lora_A \[2, 16\]; expected"),
        ({"A": (16,), "B": (16, 2)}, "expected"),
        ({"A": (2, 16)}, "lora_A or lora_B is missing"),
        ({"A": (2, 16), "B": (16, 2), "magnitude_vector": (5,)}, r"magnitude vector of .* is \[5\], expected \[16\]"),
        ({"magnitude_vector": (5,)}, "a magnitude vector and no lora_A"),
        ({"A": (2, 16), "B": (16, 2), "C": (5,)}, "no LoRA or DoRA tensor"),
    ],
)
def test_impossible_shapes_are_refused(shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path) -> None:
    import safetensors.torch

    from evomerge.engine.lora import LoraAdapter

    save_adapter(tmp_path / "adapter")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {key.format(side): torch.ones(shape) for side, shape in shapes.items()}
    safetensors.torch.save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        LoraAdapter(tmp_path / "adapter")


def test_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_model(tiny_config("gpt2"), 0).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "adapter")
    source = Source(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=r"adapter changes tensors the model does not have: model\.layers\.0"):
        OpenModels(source, [])
