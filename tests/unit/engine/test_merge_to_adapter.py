"""Merges of LoRA adapters written as an adapter, loaded with peft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.engine import low_rank
from evomerge.engine.low_rank import cut_matrix, sum_of_products
from evomerge.engine.merge_to_adapter import merge_to_adapter
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import UserError
from evomerge.experiment.merging import merge
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source, Vocabulary
from evomerge.recipes.recipe_yaml import load_recipe

from .conftest import Family, tiny_config, tiny_model

PLAIN = {"target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Source]]:
    """Makes a base and adapters on it: kind of model, then the settings of each adapter."""
    import peft

    def make(kind: str, *settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Source]:
        root = tmp_path_factory.mktemp("adapters")
        tiny_model(tiny_config(kind), 0, dtype).save_pretrained(root / "base")
        sources = []
        for number, changes in enumerate(settings):
            config = peft.LoraConfig(**{"r": 2 + number, "lora_alpha": 5, "task_type": "CAUSAL_LM", **PLAIN, **changes})
            wrapped = peft.get_peft_model(tiny_model(tiny_config(kind), 0, dtype), config)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in wrapped.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            wrapped.save_pretrained(root / str(number))
            sources.append(Source(str(root / "base"), adapter=str(root / str(number))))
        return sources

    return make


def recipe_of(method: str, sources: list[Source], **values: Any) -> Recipe:
    experts = tuple((f"e{number}", source) for number, source in enumerate(sources))
    given = {"coefficient": [0.7, -0.4, 0.5], **values}
    parameters = []
    for name, value in given.items():
        if isinstance(value, list):
            rules = tuple(Rule(number, expert=expert) for number, (expert, _) in zip(value, experts))
            parameters.append((name, rules))
        else:
            parameters.append((name, (Rule(value),)))
    base = None if method == "linear" else Source(sources[0].model)
    return Recipe(Merge(method, experts, base, tuple(parameters)))


def loaded(base: Path, adapter: Path) -> dict[str, Tensor]:
    """The base with the adapter baked in by peft."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return dict(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().named_parameters())


def dense(recipe: Recipe, out: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    full = Recipe(recipe.model, dtype="float32")
    return dict(AutoModelForCausalLM.from_pretrained(merge_to_disk(full, out)).named_parameters())


SETS: dict[str, tuple[str, tuple[dict[str, Any], ...], int]] = {
    "plain": ("mistral", ({}, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}), 5),
    "conv1d": ("gpt2", ({"target_modules": ["c_attn"], "fan_in_fan_out": True},) * 2, 5),
    "embeddings": ("mistral", ({"target_modules": ["embed_tokens", "k_proj"]}, {"rank_pattern": {"q_proj": 4}}), 7),
}  # fmt: skip


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_sum_is_exact_with_enough_rank(case: str, method: str, adapters: Callable[..., Any], tmp_path: Path) -> None:
    kind, settings, rank = SETS[case]
    sources = adapters(kind, *settings)
    recipe = recipe_of(method, sources, **({"coefficient": [0.7, 0.5]} if method == "linear" else {}))
    report = merge_to_adapter(recipe, tmp_path / "adapter", rank)
    assert report.residual < 1e-6
    assert report.num_exact >= 2
    ours, expected = loaded(Path(sources[0].model), tmp_path / "adapter"), dense(recipe, tmp_path / "dense")
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=2e-6)
    assert load_recipe(tmp_path / "adapter" / "evomerge_recipe.yaml") == recipe


@pytest.mark.parametrize(("method", "rank"), [("task_arithmetic", 2), ("ties", 16), ("ties", 4), ("dare_linear", 3)])
def test_what_the_rank_cuts_off_is_told(method: str, rank: int, adapters: Callable[..., Any], tmp_path: Path) -> None:
    sources = adapters("mistral", {}, {})
    values = {"density": 0.5} if method in ("ties", "dare_linear") else {}
    recipe = recipe_of(method, sources, **values)
    report = merge_to_adapter(recipe, tmp_path / "adapter", rank)
    ours, expected = loaded(Path(sources[0].model), tmp_path / "adapter"), dense(recipe, tmp_path / "dense")
    base = dense(Recipe(Source(sources[0].model)), tmp_path / "base")
    lost = whole = 0.0
    for name, tensor in expected.items():
        change, missing = tensor - base[name], tensor - ours[name]
        told = dict(report.residuals).get(name)
        if told is None:
            assert torch.equal(tensor, base[name])
            continue
        assert float(missing.norm() / change.norm()) == pytest.approx(told, abs=1e-4)
        left = torch.linalg.svdvals(change)
        assert told == pytest.approx(float(left[rank:].norm() / left.norm()), abs=1e-4)  # no other cut loses less
        lost, whole = lost + float(missing.norm()) ** 2, whole + float(change.norm()) ** 2
    assert report.residual == pytest.approx((lost / whole) ** 0.5, abs=1e-4)
    assert (report.residual < 1e-5) == (rank == 16)
    assert "Cut off by the rank" in (tmp_path / "adapter" / "README.md").read_text()


def test_dora_and_bfloat16_bases_are_cut_from_full_precision(adapters: Callable[..., Any], tmp_path: Path) -> None:
    sources = adapters("mistral", {"use_dora": True}, {}, dtype=torch.bfloat16)
    report = merge_to_adapter(recipe_of("task_arithmetic", sources), tmp_path / "dora", 16)
    assert report.residual < 1e-5
    sources = adapters("mistral", {}, {}, dtype=torch.bfloat16)
    recipe = recipe_of("breadcrumbs", sources, density=1.0, gamma=0.0)  # keeps everything: a sum in all but name
    report = merge_to_adapter(recipe, tmp_path / "adapter", 5)
    assert report.num_exact == 0
    assert report.residual < 1e-5  # rounding to bfloat16 would leave more


def test_what_no_adapter_can_hold_is_refused(adapters: Callable[..., Any], family: Family, tmp_path: Path) -> None:
    sources = adapters("mistral", {"modules_to_save": ["norm"]}, {})
    plain = adapters("mistral", {}, {})
    other = adapters("mistral", {}, {})
    cases = [
        (recipe_of("task_arithmetic", sources), r"cannot express: .*layernorm\.weight"),
        (recipe_of("linear", plain, normalize=False), "cannot express"),
        (recipe_of("task_arithmetic", [plain[0], other[1]]), "adapters on one base"),
        (recipe_of("task_arithmetic", [plain[0], Source(plain[0].model)]), "not: e1"),
        (Recipe(plain[0]), "a merge of adapters"),
        (recipe_of("task_arithmetic", plain, coefficient=[0.0, 0.0]), "changes nothing"),
    ]
    for recipe, message in cases:
        with pytest.raises(UserError, match=message):
            merge_to_adapter(recipe, tmp_path / "out", 4)
    for change in ({"chat_template": "chatml"}, {"parity": "mergekit"}, {"vocabulary": Vocabulary("union")}):
        with pytest.raises(UserError, match="an adapter keeps its base's"):
            merge_to_adapter(replace(recipe_of("task_arithmetic", plain), **change), tmp_path / "changed", 2)
    with pytest.raises(UserError, match="at least 1"):
        merge_to_adapter(recipe_of("task_arithmetic", plain), tmp_path / "out", 0)
    assert list(tmp_path.iterdir()) == []


def test_recipe_options_and_arguments_choose_the_output(adapters: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of("task_arithmetic", adapters("mistral", {}, {}))
    chosen = Recipe(recipe.model, options=(("output", "adapter"), ("rank", 3)))
    assert merge(chosen, tmp_path / "a").rank == 3  # type: ignore[union-attr]
    assert merge(recipe, tmp_path / "b", output="adapter", rank=2).rank == 2  # type: ignore[union-attr]
    assert (tmp_path / "a" / "adapter_config.json").is_file()
    assert merge(chosen, tmp_path / "c", output="model") == tmp_path / "c"
    for output, rank, message in (
        ("adapter", None, "--rank 16"),
        ("model", 4, "only an adapter"),
        ("x", 1, "expected"),
    ):
        with pytest.raises(UserError, match=message):
            merge(recipe, tmp_path / "d", output=output, rank=rank)
    assert not (tmp_path / "d").exists()


def test_large_matrices_are_cut_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(0, 8, 150).neg().exp()
    left, right = (torch.linalg.qr(torch.randn(size, 150, generator=generator)).Q for size in (300, 200))
    matrix = (left * spectrum) @ right.T
    exact = cut_matrix(matrix, 10, "x")
    monkeypatch.setattr(low_rank, "EXACT_SIZE", 8)
    quick, again = cut_matrix(matrix, 10, "x"), cut_matrix(matrix, 10, "x")
    assert torch.equal(quick.up @ quick.down, again.up @ again.down)
    torch.testing.assert_close(quick.up @ quick.down, exact.up @ exact.down, rtol=1e-4, atol=1e-5)
    assert quick.residual == pytest.approx(exact.residual, rel=1e-3)
    assert exact.residual == pytest.approx(float(spectrum[10:].norm() / spectrum.norm()), rel=1e-4)


def test_sum_of_products_equals_the_dense_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    ups = [torch.randn(20, rank, generator=generator) for rank in (2, 3)]
    downs = [torch.randn(rank, 12, generator=generator) for rank in (2, 3)]
    total = sum(up @ down for up, down in zip(ups, downs))
    found = sum_of_products(ups, downs, 5)
    torch.testing.assert_close(found.up @ found.down, total, rtol=1e-5, atol=1e-5)
    assert found.residual < 1e-7
    padded = sum_of_products(ups, downs, 15)
    assert (padded.up.shape, padded.down.shape) == ((20, 15), (15, 12))
    torch.testing.assert_close(padded.up @ padded.down, total, rtol=1e-5, atol=1e-5)
