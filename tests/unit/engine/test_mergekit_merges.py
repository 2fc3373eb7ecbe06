"""Whole merges of mergekit files, against what mergekit makes of them (scripts/refresh_mergekit_merges.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import UserError
from evomerge.recipes.recipe import Source
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe

GOLDEN = Path(__file__).parents[2] / "golden" / "mergekit_merges"
CASES: dict[str, Any] = json.loads(GOLDEN.with_suffix(".json").read_text())
STORED = load_file(GOLDEN.with_suffix(".safetensors"))


def group(name: str) -> list[Any]:
    found = [(index, case) for index, case in enumerate(CASES["cases"]) if case["group"] == name]
    assert found
    return [pytest.param(index, case, id=case["title"]) for index, case in found]


def below(prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in STORED.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, model in CASES["models"].items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(model["config"]))
        (root / name / "tokenizer.json").write_text(json.dumps(model["tokenizer"]))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
        save_file(below(f"models/{name}/"), root / name / "model.safetensors", metadata={"format": "pt"})
    return root


def merge(case: dict[str, Any], models: Path, out: Path, extra: str = "") -> dict[str, torch.Tensor]:
    text = case["recipe"].replace("./", f"{models}/") + extra
    recipe = parse_recipe(text)
    assert parse_recipe(format_recipe(recipe)) == recipe
    found = load_file(merge_to_disk(recipe, out) / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == case["num_blocks"]
    return found


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # Both compute in float32, in another order.
        torch.testing.assert_close(ours[name].float(), tensor.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("index", "case"), group("stacks"))
def test_blocks_end_up_where_mergekit_puts_them(index: int, case: dict[str, Any], models: Path, tmp_path: Path) -> None:
    assert_close(merge(case, models, tmp_path / "out"), below(f"merged/{index}/"))


@pytest.mark.parametrize(("index", "case"), group("vocabularies"))
def test_every_token_has_mergekits_row(index: int, case: dict[str, Any], models: Path, tmp_path: Path) -> None:
    ours, theirs = merge(case, models, tmp_path / "out"), below(f"merged/{index}/")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer.get_vocab()
    assert tokens.keys() == case["tokens"].keys()
    num_rows = json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert ours[name].shape == theirs[name].shape == (num_rows, 8)
        # mergekit numbers new tokens in the order of a hash map.
        rows = torch.tensor([tokens[token] for token in case["tokens"]] + list(range(len(tokens), num_rows)))
        wanted = torch.tensor([*case["tokens"].values(), *range(len(tokens), num_rows)])
        theirs[name] = theirs[name][wanted]
        ours[name] = ours[name][rows]
    assert_close(ours, theirs)
    assert tokenizer.bos_token == "<s>"


@pytest.mark.parametrize(("index", "case"), group("parity"))
def test_parity_gives_mergekits_bits(index: int, case: dict[str, Any], models: Path, tmp_path: Path) -> None:
    ours = merge(case, models, tmp_path / "out", "evomerge: {parity: mergekit}\n")
    theirs = below(f"merged/{index}/")
    assert ours.keys() == theirs.keys()
    dtype = torch.float32 if "dtype: float32" in case["recipe"] else torch.bfloat16
    assert {tensor.dtype for tensor in ours.values()} == {dtype}
    # Two of mergekit's methods leave float32 behind where the file asks for bfloat16.
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name].to(dtype))] == []


def test_random_masks_have_no_parity(models: Path, tmp_path: Path) -> None:
    text = (
        f"merge_method: dare_ties\nbase_model: {models}/base\nmodels: [{{model: {models}/x, parameters: {{weight: 1, "
    )
    recipe = parse_recipe(text + "density: 0.5}}]\nevomerge: {parity: mergekit}")
    with pytest.raises(UserError, match="its result cannot be reproduced"):
        merge_to_disk(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    live = LiveModel(None, [("x", Source(str(models / "x")))], dtype="float32", device="cpu")
    with pytest.raises(UserError, match="asks for mergekit's arithmetic"):
        live.apply(recipe)


@pytest.mark.parametrize("number", range(len(CASES["settings"])))
def test_parameters_have_mergekits_values(number: int) -> None:
    from evomerge.recipes.recipe import Merge
    from evomerge.recipes.resolve import resolve_values

    case = CASES["settings"][number]
    merge = parse_recipe(json.dumps(case["recipe"])).model
    assert isinstance(merge, Merge)
    for name, block, component, values in case["values"]:
        found = resolve_values(merge, name, block, component, case["num_blocks"])
        assert (found["lambda"], *found["coefficient"]) == pytest.approx(values, rel=1e-12), name
