from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.engine import output_directory
from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import UserError
from evomerge.methods.catalogue import SPECS
from evomerge.recipes.recipe import Merge, Recipe, Rule
from evomerge.recipes.recipe_yaml import load_recipe

from .conftest import CONFIGS, Family, recipe_of, save_family


def assert_loads_as(live: LiveModel, out: Path, dtype: torch.dtype) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).state_dict()
    held = live.model.state_dict()
    assert loaded.keys() == held.keys()
    assert [name for name in held if not torch.equal(held[name], loaded[name])] == []


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_checkpoint_equals_live_model(method: str, dtype: str | None, family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, method, seed=1, dtype=dtype)
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    live.apply(recipe_of(family, method, seed=2))
    live.apply(recipe)
    out = merge_to_disk(recipe, tmp_path / "out")
    assert_loads_as(live, out, torch.float32)
    stored = {parameter.dtype for parameter in AutoModelForCausalLM.from_pretrained(out).parameters()}
    assert stored == {torch.float32 if dtype else torch.bfloat16}


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "llama"])
def test_every_architecture_loads(kind: str, family_of: Callable[[str], Family], tmp_path: Path) -> None:
    family = family_of(kind)
    recipe = recipe_of(family, "task_arithmetic", seed=1, dtype="bfloat16")
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    live.apply(recipe)
    assert_loads_as(live, merge_to_disk(recipe, tmp_path / "out"), torch.float32)


def test_files_beside_the_weights(family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, "ties", seed=1, dtype="float16")
    steps: list[tuple[int, int]] = []
    card = {"summary": "A test.", "scores": {"columns": ["model", "held_out"], "rows": [["merged", 0.5]]},
            "splits": {"search": "100 documents"}}  # fmt: skip
    out = merge_to_disk(recipe, tmp_path / "out", progress=lambda done, total: steps.append((done, total)), card=card)
    size = sum(tensor.nbytes for tensor in load_file(out / "model.safetensors").values())
    assert (steps[0], steps[-1], len(steps)) == ((0, size), (size, size), 21)
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert AutoTokenizer.from_pretrained(out)("w1")["input_ids"] == [5]
    assert (out / "generation_config.json").read_bytes() == (family.directory / "generation_config.json").read_bytes()
    assert load_recipe(out / "evomerge_recipe.yaml").recipe_id == recipe.recipe_id
    assert "merge_method: ties" in (out / "mergekit_config.yml").read_text()
    text = (out / "README.md").read_text()
    for part in ("A test.", "| merged | 0.5000 |", "100 documents", recipe.recipe_id, family.experts[2][1].model):
        assert part in text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shards_and_index_load(family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, "linear", seed=1)
    out = merge_to_disk(recipe, tmp_path / "out", shard_bytes=3000)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    live.apply(recipe)
    assert_loads_as(live, out, torch.float32)


def test_source_alone_is_copied(family: Family, tmp_path: Path) -> None:
    source = family.experts[0][1]
    out = merge_to_disk(Recipe(source), tmp_path / "out")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (out, source.model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_untied_expert_gives_an_untied_checkpoint(family: Family, tmp_path: Path) -> None:
    other = save_family(tmp_path / "untied", "llama", torch.bfloat16, tie_word_embeddings=False)
    parameters = (("coefficient", (Rule(0.5),)),)
    recipe = Recipe(Merge("linear", (("tied", family.base), ("untied", other.base)), None, parameters))
    out = merge_to_disk(recipe, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    live = LiveModel(None, recipe.model.experts, dtype="float32", device="cpu")
    live.apply(recipe)
    assert_loads_as(live, out, torch.float32)


def test_lora_expert(family_of: Callable[[str], Family], tmp_path: Path) -> None:
    from evomerge.recipes.recipe import Source

    from .test_lora import save_adapter

    base = family_of("mistral").base
    save_adapter(tmp_path / "adapter")
    expert = Source(base.model, adapter=str(tmp_path / "adapter"))
    recipe = Recipe(Merge("task_arithmetic", (("lora", expert),), base, (("coefficient", (Rule(0.5),)),)))
    live = LiveModel(base, [("lora", expert)], dtype="float32", device="cpu")
    live.apply(recipe)
    assert_loads_as(live, merge_to_disk(recipe, tmp_path / "out"), torch.float32)
    changed = live.model.model.layers[0].self_attn.q_proj.weight
    original = AutoModelForCausalLM.from_pretrained(base.model).model.layers[0].self_attn.q_proj.weight
    # B @ A of ones with rank 2, times alpha / rank = 2, times the coefficient.
    torch.testing.assert_close(changed, original + 2.0)


def test_full_disk_and_taken_directory_are_refused(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(family, "linear", seed=1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        merge_to_disk(recipe, tmp_path / "taken")
    usage = output_directory.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(output_directory.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="free some space"):
        merge_to_disk(recipe, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", SPECS)
def test_cuda_gives_the_same_up_to_a_rounding(method: str, family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, method, seed=1)
    live = LiveModel(family.base, family.experts, device="cuda")
    live.apply(recipe_of(family, method, seed=2))
    live.apply(recipe)
    loaded = AutoModelForCausalLM.from_pretrained(merge_to_disk(recipe, tmp_path / "out"), dtype=torch.bfloat16)
    held = live.model.cpu().state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(held[name], tensor, rtol=2**-7, atol=1e-6)
