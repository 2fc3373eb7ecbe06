"""Merges of LoRA adapters by their factors: live, on disk and as an adapter; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.engine.live_model import LiveModel
from evomerge.engine.lora import LoraAdapter
from evomerge.engine.merge_to_adapter import merge_to_adapter
from evomerge.errors import InvalidInput
from evomerge.experiment.merging import merge
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.recipes.recipe_yaml import format_recipe, load_recipe

from .test_merge_to_adapter import adapters as adapters
from .test_merge_to_adapter import dense, loaded

KEEP, SCALE = (1.0, 0.5, 0.2), (0.6, -0.9, 1.2)


def recipe_of(sources: list[Source], keep: tuple[float, ...] = KEEP, scale: tuple[float, ...] = SCALE) -> Recipe:
    names = [f"e{number}" for number in range(len(sources))]
    parameters = tuple(
        (key, tuple(Rule(value, expert=name) for name, value in zip(names, values)))
        for key, values in (("keep", keep), ("scale", scale))
    )
    return Recipe(Merge("evo_merging", tuple(zip(names, sources)), Source(sources[0].model), parameters), "float32")


def live_weights(recipe: Recipe, sources: list[Source], *before: Recipe) -> dict[str, Tensor]:
    live = LiveModel(Source(sources[0].model), [(str(s), s) for s in sources], dtype="float32", device="cpu")
    for one in (*before, recipe):
        live.apply(one)
    return {name: tensor.clone() for name, tensor in live.model.named_parameters()}


SETS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "linear": ("mistral", ({"r": 4}, {"r": 4, "target_modules": ["q_proj", "k_proj"]}, {"r": 4, "use_rslora": True})),
    "conv1d": ("gpt2", ({"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True},) * 3),
}


@pytest.mark.parametrize("case", SETS)
def test_live_disk_and_adapter_are_one_model(case: str, adapters: Callable[..., Any], tmp_path: Path) -> None:
    kind, settings = SETS[case]
    sources = adapters(kind, *settings)
    recipe = recipe_of(sources)
    other = recipe_of(sources, keep=(0.1, 1.0, 0.7), scale=(1.0, 1.0, -1.0))
    live = live_weights(recipe, sources, other)
    on_disk = dense(recipe, tmp_path / "dense")
    assert [name for name in on_disk if not torch.equal(live[name], on_disk[name])] == []
    report = merge_to_adapter(recipe, tmp_path / "adapter", 4)
    assert (report.rank, report.residual) == (4, 0.0)
    assert report.num_exact >= len(report.residuals) > 0
    ours = loaded(Path(sources[0].model), tmp_path / "adapter")
    for name, tensor in on_disk.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=2e-6)
    assert merge_to_adapter(recipe, tmp_path / "small", 2).residual > 0.01
    assert merge_to_adapter(recipe, tmp_path / "large", 6).residual < 1e-6


def test_it_is_the_formula_on_the_stored_factors(adapters: Callable[..., Any]) -> None:
    settings = {"r": 4, "target_modules": ["q_proj"]}
    sources = adapters("mistral", settings, settings, settings)
    merged = live_weights(recipe_of(sources), sources)
    base = live_weights(Recipe(Source(sources[0].model)), sources)
    changed = [name for name in merged if not torch.equal(merged[name], base[name])]
    assert changed
    assert all("q_proj" in name for name in changed)
    for name in changed:
        up, down = 0.0, 0.0
        for source, keep, scale in zip(sources, KEEP, SCALE):
            b, a = LoraAdapter(Path(source.adapter)).factors(name)
            a = a.clone()
            a.view(-1)[a.abs().view(-1).argsort(descending=True)[int(keep * a.numel()) :]] = 0.0
            up, down = up + scale * b, down + scale * a
        torch.testing.assert_close(merged[name].double(), base[name].double() + up @ down, rtol=1e-5, atol=1e-6)


def test_one_whole_adapter_is_that_adapter(adapters: Callable[..., Any]) -> None:
    sources = adapters("mistral", {"r": 4}, {"r": 4}, {"r": 4})
    merged = live_weights(recipe_of(sources, (1.0, 1.0, 0.0), (0.0, 1.0, 0.0)), sources)
    for name, tensor in live_weights(Recipe(sources[1]), sources).items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)


def test_merge_verb_reads_the_recipe_and_its_options(adapters: Callable[..., Any], tmp_path: Path) -> None:
    sources = adapters("mistral", {"r": 4}, {"r": 4}, {"r": 4})
    recipe = replace(recipe_of(sources), options=(("output", "adapter"), ("rank", 4)))
    (tmp_path / "recipe.yaml").write_text(format_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    merge(tmp_path / "recipe.yaml", tmp_path / "out")
    assert LoraAdapter(tmp_path / "out").rank("model.layers.0.self_attn.q_proj.weight") == 4


def test_what_is_no_pool_of_adapters_is_refused_at_once(adapters: Callable[..., Any], tmp_path: Path) -> None:
    sources = adapters("mistral", {"r": 4}, {"r": 3}, {"r": 4, "use_dora": True})
    with pytest.raises(InvalidInput) as caught:
        live_weights(recipe_of(sources), sources)
    text = str(caught.value)
    assert "one rank, got e0 4, e1 3" in text
    assert "task_arithmetic" in text
    assert "e2: has more than factors" in text
    whole = [Source(sources[0].model), sources[0], *adapters("mistral", {"r": 4})]
    merged = recipe_of(whole)
    with pytest.raises(InvalidInput) as caught:
        live_weights(merged, whole)
    assert "e0: expected a LoRA adapter" in str(caught.value)
    assert "they must be one model" in str(caught.value)


def test_values_outside_are_told_by_name(tmp_path: Path) -> None:
    text = "method: evo_merging\nbase: b\nexperts: {a: {model: b, adapter: c}}\nparameters: {keep: 1.2, scale: 0.5}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=r"from 0 to 1, got 1\.2"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text.replace("keep: 1.2, scale: 0.5", "keep: 1.0"))
    with pytest.raises(InvalidInput, match="scale"):
        load_recipe(tmp_path / "recipe.yaml")
