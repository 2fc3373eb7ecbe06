"""Files of no class that transformers knows: names and shapes come from the files themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.engine.architecture import Architecture
from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.engine.sources import describe_source, fingerprint
from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

NAME = "diffusion_pytorch_model.safetensors"


def unet(seed: int) -> dict[str, Tensor]:
    """Names and shapes as in a diffusion model's U-Net."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv_in.weight": (8, 4, 3, 3),
        "conv_in.bias": (8,),
        "conv_out.weight": (4, 8, 3, 3),
    }
    for side, count in (("down_blocks", 3), ("up_blocks", 2)):
        for block in range(count):
            inner = f"{side}.{block}.attentions.0.transformer_blocks.0"
            shapes |= {f"{side}.{block}.resnets.{r}.conv1.weight": (8, 8, 3, 3) for r in range(2)}
            shapes |= {f"{side}.{block}.resnets.{r}.norm1.weight": (8,) for r in range(2)}
            shapes |= {f"{inner}.attn1.to_q.weight": (8, 8), f"{inner}.ff.net.0.proj.weight": (16, 8)}
    shapes |= {"mid_block.attentions.0.proj_in.weight": (8, 8), "time_embedding.linear_1.weight": (8, 8)}
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "steps": torch.arange(5)}


def save(folder: Path, tensors: dict[str, Tensor], config: dict[str, object] | None = None) -> Source:
    (folder / "extra").mkdir(parents=True)
    save_file(tensors, folder / NAME)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "extra" / "notes.txt").write_text("kept")
    (folder / "modeling.py").write_text("raise SystemExit('must not be run')")
    (folder / "weights.fp16.bin").write_bytes(b"pickled")
    return Source(str(folder))


def average(*sources: Source) -> Recipe:
    experts = tuple((f"m{number}", source) for number, source in enumerate(sources))
    return Recipe(Merge("linear", experts, None, (("coefficient", (Rule(0.5),)),)))


CONFIGS = (
    None,
    {"_class_name": "UNet2DConditionModel", "sample_size": 8},
    {"model_type": "nobody_knows", "auto_map": {"AutoModel": "modeling.Net"}},
)


@pytest.mark.parametrize("config", CONFIGS)
def test_directory_is_merged_and_everything_else_copied(config: dict[str, object] | None, tmp_path: Path) -> None:
    models = [unet(seed) for seed in range(2)]
    sources = [save(tmp_path / str(seed), model, config) for seed, model in enumerate(models)]
    out = merge_to_disk(average(*sources), tmp_path / "out")
    merged = load_file(out / NAME)
    assert merged.keys() == models[0].keys()
    for name, tensor in merged.items():
        expected = models[0][name] if name == "steps" else (models[0][name] + models[1][name]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    ours = {"README.md", "evomerge_recipe.yaml", "mergekit_config.yml"}
    assert names == {NAME, "extra/notes.txt", "modeling.py", *ours, *(["config.json"] if config else [])}
    if config:
        assert json.loads((out / "config.json").read_text()) == config


def test_blocks_are_found_in_names(tmp_path: Path) -> None:
    architecture = Architecture.of_directory(Path(save(tmp_path / "unet", unet(0)).model))
    assert [(stack.name, stack.start, stack.count) for stack in architecture.stacks] == [
        ("down_blocks", 0, 3), ("up_blocks", 3, 2),
    ]  # fmt: skip
    found = {slot.name: (slot.block, slot.component) for slot in architecture.slots}
    assert found["up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"] == (4, "attention")
    assert found["up_blocks.1.resnets.1.norm1.weight"] == (4, "norms")
    assert found["conv_in.weight"] == (None, "other")
    assert architecture.buffers == ("steps",)


def test_shards_have_the_names_of_the_reference(tmp_path: Path) -> None:
    sources = [save(tmp_path / str(seed), unet(seed)) for seed in range(2)]
    out = merge_to_disk(average(*sources), tmp_path / "out", shard_bytes=9000)
    assert len(list(out.glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    index = json.loads((out / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == unet(0).keys()
    again = merge_to_disk(average(Source(str(out)), Source(str(out))), tmp_path / "again")
    one, other = load_file(again / NAME), load_file(merge_to_disk(average(*sources), tmp_path / "whole") / NAME)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_single_files_are_merged(tmp_path: Path) -> None:
    for seed in range(2):
        save_file(unet(seed), tmp_path / f"lora-{seed}.safetensors")
    sources = [Source(str(tmp_path / f"lora-{seed}.safetensors")) for seed in range(2)]
    assert describe_source(sources[0]).state == "local"
    assert fingerprint(sources[0]) != fingerprint(sources[1])
    out = merge_to_disk(average(*sources), tmp_path / "out")
    merged = load_file(out / "lora-0.safetensors")
    torch.testing.assert_close(merged["conv_in.bias"], (unet(0)["conv_in.bias"] + unet(1)["conv_in.bias"]) / 2)


def test_other_shapes_names_and_dtypes_are_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", unet(0))
    cases = {
        "shape": ({"conv_in.bias": torch.zeros(9)}, r"conv_in.bias is \[9\], expected \[8\]"),
        "integers": ({"conv_in.bias": torch.zeros(8, dtype=torch.int32)}, r"integers.*conv_in.bias \(I32\)"),
        "bytes": ({"conv_in.bias": torch.zeros(8).to(torch.float8_e4m3fn)}, r"8-bit floats.*conv_in.bias \(F8_E4M3\)"),
        "missing": ({"conv_in.bias": None, "other.bias": torch.zeros(8)}, r"lacks 1 of.*conv_in.bias.*other.bias"),
    }
    for case, (changes, message) in cases.items():
        tensors = {name: tensor for name, tensor in {**unet(1), **changes}.items() if tensor is not None}
        with pytest.raises(InvalidInput, match=message):
            merge_to_disk(average(base, save(tmp_path / case, tensors)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_such_a_model_cannot_be_searched(tmp_path: Path) -> None:
    source = save(tmp_path / "unet", unet(0))
    with pytest.raises(UserError, match="unet"):
        LiveModel(source, [("same", source)], device="cpu")
