"""Experiments over paths through blocks: models of different depth, what is checked when, and their baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import InvalidInput
from evomerge.experiment.baselines import baseline_recipes
from evomerge.experiment.load import Experiment, resolve_experiment
from evomerge.experiment.writing import format_experiment
from evomerge.recipes.recipe import Route
from evomerge.recipes.validate import recipe_problems
from evomerge.spaces.space_yaml import space_presets
from evomerge.yaml_files import parse_yaml_mapping

FLOW: dict[str, Any] = {"kind": "data_flow", "encoding": "sequence"}
JOINT: dict[str, Any] = {"kind": "joint", "parameters": "linear_soup", "route": {"encoding": "slices"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny Llamas: two of 2 blocks, one of 3, and one that is wider."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    for name, depth, width, eps in (
        ("base", 2, 16, 1e-6),
        ("math", 2, 16, 1e-6),
        ("deep", 3, 16, 1e-5),
        ("wide", 2, 32, 1e-6),
    ):
        config = LlamaConfig(
            hidden_size=width, intermediate_size=32, num_hidden_layers=depth, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=64, tie_word_embeddings=True, rms_norm_eps=eps,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(root / name)
    return root


def load(folder: Path, experts: list[str], space: Any, **models: Any) -> Experiment:
    named = {name.rpartition("/")[2]: name if "/" in name else str(folder / name) for name in experts}
    mapping = {
        "name": "paths",
        "models": {"experts": named, **models},
        "search_space": space,
        "fitness": ["micro_add"],
        "optimizer": {"name": "random"},
        "budget": {"evaluations": 20},
    }
    return resolve_experiment(mapping, "exp.yaml", folder)


def test_models_of_different_depth(folder: Path) -> None:
    loaded = load(folder, ["math", "deep"], FLOW, base=str(folder / "base"))
    assert loaded.space is not None
    assert loaded.space.genes[0].choices == ("math:0", "math:1", "deep:0", "deep:1", "deep:2", "-")
    assert loaded.space.num_lanes == 2
    assert loaded.depths == {"math": 2, "deep": 3, "base": 2}
    assert [note for note in loaded.notes if "rms_norm_eps" in note] == [
        "deep: rms_norm_eps is 1e-05, that of math is 1e-06, which counts for all blocks of a path"
    ]
    again = resolve_experiment(parse_yaml_mapping(format_experiment(loaded.resolved), "again"), "again", folder)
    assert again.fingerprint == loaded.fingerprint


def test_limits_count_the_weights_of_the_models(folder: Path) -> None:
    block, ends = 512 + 256 + 3 * 512 + 32, 64 * 16 + 16
    limited = {**FLOW, "max_parameters": ends + 2 * block, "pool": ["deep", "math"]}
    space = load(folder, ["math", "deep"], limited).space
    assert space is not None
    route = space.decode(np.array([0.0, 3, 0, 0, 1, 2])).model
    assert isinstance(route, Route)
    assert [(hop.model, hop.block) for hop in route.hops] == [("deep", 0), ("math", 0), ("deep", 0), ("deep", 0)]
    with pytest.raises(InvalidInput, match=r"search_space: max_parameters: must allow the first and last of deep's"):
        load(folder, ["math", "deep"], {**limited, "max_parameters": ends + 2 * block - 1})


def test_models_that_cannot_be_one_path(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"wide: the hidden size of wide is 32, that of math \(.*math\) 16"):
        load(folder, ["math", "wide"], FLOW)
    with pytest.raises(InvalidInput, match="joint search space needs models of one depth: math has 2, deep has 3"):
        load(folder, ["math", "deep"], JOINT)
    joint = load(folder, ["math", "base"], JOINT)
    assert joint.space is not None
    assert joint.space.num_lanes == 3
    assert joint.depths == {"math": 2, "base": 2}


def test_models_that_are_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    absent = ["nobody/none-a", "nobody/none-b"]
    waiting = load(folder, absent, {**FLOW, "encoding": "indicator"})
    assert waiting.space is None
    assert any("give the search space `depths`" in note for note in waiting.notes)
    told = load(folder, absent, {**FLOW, "encoding": "indicator", "depths": {"none-a": 32, "none-b": 32}})
    assert told.space is not None
    assert len(told.space.genes) == 192
    assert not any("depths" in note for note in told.notes)
    mapping = {**told.resolved, "search_space": {**FLOW, "depths": {"none-a": 2, "none-b": 3}}}
    with pytest.raises(InvalidInput, match=r"optimizer.name: .*category"):
        resolve_experiment({**mapping, "optimizer": {"name": "cma_es"}}, "exp.yaml", folder)


def test_baselines_of_different_depth_are_the_models_themselves(folder: Path) -> None:
    loaded = load(folder, ["math", "deep"], FLOW, base=str(folder / "base"))
    found = baseline_recipes(loaded.base, loaded.experts, loaded.config.finish, None, loaded.depths)
    assert list(found) == ["base", "expert math", "expert deep"]
    route = found["expert deep"].model
    assert isinstance(route, Route)
    assert [(hop.model, hop.block, hop.scale) for hop in route.hops] == [("deep", n, 1.0) for n in range(3)]
    assert found["expert deep"].reference == dict(loaded.experts)["deep"]
    assert not any(recipe_problems(recipe) for recipe in found.values())
    equal = baseline_recipes(loaded.base, loaded.experts, loaded.config.finish, None, {"base": 2, "math": 2})
    assert "uniform soup" in equal


@pytest.mark.parametrize("name", [name for name in space_presets() if name.startswith("dfs")])
def test_presets_suit_models_of_one_depth(name: str, folder: Path) -> None:
    loaded = load(folder, ["math", "base"], name)
    assert loaded.space is not None
    assert loaded.depths == {"math": 2, "base": 2}
