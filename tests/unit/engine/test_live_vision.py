"""Image models live: what a recipe makes in memory is what its export loads as, with the preprocessor beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip
TEXT = {**VISION, "num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
# class, model type, settings, list of blocks
CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "vit": ("ViTForImageClassification", "vit", {**VISION, "num_labels": 4}, "vit.layers"),
    "clip tower": ("CLIPVisionModel", "clip_vision_model", {**VISION, "projection_dim": 8}, "encoder.layers"),
    "clip projected": (
        "CLIPVisionModelWithProjection", "clip_vision_model", {**VISION, "projection_dim": 8}, "encoder.layers"
    ),
    "clip": (
        "CLIPModel", "clip", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}, "encoder.layers"
    ),
}  # fmt: skip


def save_models(case: str, root: Path) -> list[Source]:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name, model_type, settings, _ = CASES[case]
    sources = []
    for seed in range(3):
        generator, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        model = getattr(transformers, name)(CONFIG_MAPPING[model_type](**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                start = torch.randn(parameter.shape, generator=generator) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0)
                parameter.copy_(start + torch.randn(parameter.shape, generator=noise) * 0.05 * bool(seed))
        folder = root / str(seed)
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
        sources.append(Source(str(folder)))
    return sources


@pytest.mark.parametrize("case", CASES)
def test_the_live_merge_is_what_its_export_loads_as(case: str, tmp_path: Path) -> None:
    import transformers

    base, *experts = save_models(case, tmp_path)
    named = tuple(zip(("a", "b"), experts))
    rules = (Rule(0.9, blocks=(0, 1), component="attention", expert="a"), Rule(0.2, component="mlp"), Rule(0.6))
    recipe = Recipe(Merge("task_arithmetic", named, base, (("coefficient", rules),)))
    live = LiveModel(base, named, device="cpu")
    before = {name: parameter.clone() for name, parameter in live.model.named_parameters()}
    live.apply(recipe)
    name = CASES[case][0]
    assert type(live.model).__name__ == name
    assert live.tokenizer is None
    assert not all(torch.equal(before[key], parameter) for key, parameter in live.model.named_parameters())

    out = merge_to_disk(recipe, tmp_path / "out")
    assert (out / "preprocessor_config.json").read_bytes() == (tmp_path / "0" / "preprocessor_config.json").read_bytes()
    back, info = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = back.state_dict()
    assert theirs
    for key, tensor in live.model.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("case", CASES)
def test_blocks_of_towers_have_depth_and_components(case: str, tmp_path: Path) -> None:
    base, *experts = save_models(case, tmp_path)
    architecture = LiveModel(base, tuple(zip(("a", "b"), experts)), device="cpu").architecture
    vision = next(stack for stack in architecture.stacks if "text" not in stack.name)
    assert vision.count == 3
    assert vision.name.endswith(CASES[case][3])
    for block in range(vision.start, vision.start + 3):
        found = {slot.component for slot in architecture.slots if slot.block == block}
        assert found == {"attention", "mlp", "norms"}
