"""Models of several modules (text and vision), each merged in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from evomerge.engine.block_places import module_of
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.recipe_yaml import parse_recipe

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64}  # fmt: skip
VISION = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
          "patch_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("modules")
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
        model = Gemma3ForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name)
        # transformers writes older names of this model; the tensors here have the names of its modules.
        named = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
        save_file(named, root / name / "model.safetensors", metadata={"format": "pt"})
    return root


def loaded(path: Path) -> dict[str, torch.Tensor]:
    return dict(Gemma3ForConditionalGeneration.from_pretrained(path, dtype=torch.float32).state_dict())


def test_every_module_is_merged_in_its_own_way(models: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        f"""
        merge_method: linear
        modules:
          text_decoder:
            slices:
              - sources: [{{model: {models}/a, layer_range: [0, 2], parameters: {{weight: 1}}}}]
              - sources:
                  - {{model: {models}/a, layer_range: [1, 3], parameters: {{weight: [1, 3]}}}}
                  - {{model: {models}/b, layer_range: [1, 3], parameters: {{weight: [3, 1]}}}}
          vision_tower:
            models: [{{model: {models}/b, parameters: {{weight: 1}}}}]
          multi_modal_projector:
            models: [{{model: {models}/a}}, {{model: {models}/b}}]
            parameters: {{weight: 1}}
        """
    )
    ours = loaded(merge_to_disk(recipe, tmp_path / "out"))
    a, b = loaded(models / "a"), loaded(models / "b")
    for name, tensor in ours.items():
        if "vision_tower" in name:
            torch.testing.assert_close(tensor, b[name])
        elif "multi_modal_projector" in name:
            torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
        elif "layers." not in name:
            continue
        elif ".layers.3." in name:
            old = name.replace(".layers.3.", ".layers.2.")
            torch.testing.assert_close(tensor, (3 * a[old] + b[old]) / 4)
        elif ".layers.2." in name:
            old = name.replace(".layers.2.", ".layers.1.")
            torch.testing.assert_close(tensor, (a[old] + 3 * b[old]) / 4)
        else:
            torch.testing.assert_close(tensor, a[name])
    assert sum("layers.3.self_attn.q_proj" in name for name in ours) == 1


def test_what_modules_cannot_do(models: Path, tmp_path: Path) -> None:
    source = f"{models}/a"
    merge = f"{{method: linear, experts: {{a: {source}}}, parameters: {{coefficient: [1, 2]}}}}"
    with pytest.raises(UserError, match=r"no module of the recipe .vision_tower. holds the tensor"):
        merge_to_disk(parse_recipe(f"modules: {{vision_tower: {source}}}"), tmp_path / "out")
    text = f"modules: {{text_decoder: {source}, vision_tower: {merge}}}"
    with pytest.raises(InvalidInput, match=r"modules.vision_tower: only the module that holds most blocks"):
        merge_to_disk(parse_recipe(text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_module_names() -> None:
    vision = ("text_decoder", "vision_tower", "multi_modal_projector")
    assert module_of("model.visual.blocks.0.norm1.weight", vision) == "vision_tower"
    assert module_of("model.visual.merger.ln_q.weight", vision) == "multi_modal_projector"
    assert module_of("lm_head.weight", vision) == "text_decoder"
    assert module_of("encoder.block.0.layer.0.SelfAttention.q.weight", ("encoder", "decoder", "shared")) == "encoder"
    assert module_of("model.layers.0.x", ("default",)) == "default"
    assert module_of("model.layers.0.x", ("audio_tower",)) is None


def test_a_whole_source_as_modules_is_the_source(models: Path, tmp_path: Path) -> None:
    source = f"{models}/a"
    out = merge_to_disk(parse_recipe(f"modules: {{text_decoder: {source}, vision_tower: {source}}}"), tmp_path / "out")
    stored, original = load_file(out / "model.safetensors"), loaded(models / "a")
    ours = loaded(out)
    assert len(stored) > 10
    assert all(torch.equal(ours[name], original[name]) for name in original)
