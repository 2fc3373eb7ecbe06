"""A text model merged into the language part of a vision-language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.present_models import without_absent
from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.recipe import Merge, Node, Recipe, Rule, Source
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe

from .test_any_architecture import GROUPED, build, load

PREFIX, HEAD = "model.language_model.", "lm_head.weight"


def llama(seed: int, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**GROUPED, **changes})).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("vlm")
    made: dict[str, Any] = {"root": root}
    for name, model in (
        ("vlm", build("llava", 0)),
        ("other", build("llava", 1)),
        ("text", llama(3)),
        ("text2", llama(4)),
    ):
        model.save_pretrained(root / name)
        made[name] = Source(str(root / name), into="language_model" if "text" in name else None)
        made[name + " tensors"] = dict(model.named_parameters())
    return made


def text_tensor(models: dict[str, Any], text: str, name: str) -> Tensor | None:
    own = models[f"{text} tensors"]
    return own.get(HEAD) if name == HEAD else own.get("model." + name.removeprefix(PREFIX))


def merged(models: dict[str, Any], recipe: Recipe, out: Path) -> dict[str, Tensor]:
    assert "LlavaForConditionalGeneration" in (models["root"] / "vlm" / "config.json").read_text()
    return dict(load("llava", merge_to_disk(recipe, out)).named_parameters())


def rules(name: str, **values: float) -> tuple[str, tuple[Rule, ...]]:
    return name, tuple(Rule(value, expert=expert) for expert, value in values.items())


def test_average_takes_the_models_that_hold_a_tensor(models: dict[str, Any], tmp_path: Path) -> None:
    experts = (("vlm", models["vlm"]), ("text", models["text"]), ("other", models["other"]))
    coefficients = (rules("coefficient", vlm=0.2, text=0.5, other=0.3), ("normalize", (Rule(False),)))
    found = merged(models, Recipe(Merge("linear", experts, None, coefficients)), tmp_path / "out")
    checked = 0
    for name, tensor in found.items():
        vlm, other, text = models["vlm tensors"][name], models["other tensors"][name], text_tensor(models, "text", name)
        if text is None:
            expected = 0.4 * vlm + 0.6 * other
        else:
            expected = 0.2 * vlm + 0.5 * text + 0.3 * other
            checked += 1
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    assert checked == len(models["text tensors"])
    assert any("vision" in name for name in found)


def test_task_vectors_of_what_is_not_there_are_zero(models: dict[str, Any], tmp_path: Path) -> None:
    experts = (("text", models["text"]), ("other", models["other"]))
    merge = Merge("task_arithmetic", experts, models["vlm"], (rules("coefficient", text=0.5, other=0.25),))
    for name, tensor in merged(models, Recipe(merge), tmp_path / "out").items():
        vlm, other, text = models["vlm tensors"][name], models["other tensors"][name], text_tensor(models, "text", name)
        expected = vlm + 0.25 * (other - vlm) + (0.0 if text is None else 0.5 * (text - vlm))
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", [True, False])
def test_pairwise_method_copies_the_whole_model(base: bool, models: dict[str, Any], tmp_path: Path) -> None:
    pair = (("vlm", models["vlm"]), ("text", models["text"]))
    merge = Merge("slerp", pair[base:], models["vlm"] if base else None, (("t", (Rule(0.5),)),))
    for name, tensor in merged(models, Recipe(merge), tmp_path / "out").items():
        whole = models["vlm tensors"][name]
        assert torch.equal(tensor, whole) == (text_tensor(models, "text", name) is None)


def test_text_models_alone_need_a_whole_one(models: dict[str, Any], tmp_path: Path) -> None:
    experts = (("text", models["text"]), ("text2", models["text2"]))
    recipe = Recipe(Merge("linear", experts, None, (("coefficient", (Rule(0.5),)),)))
    with pytest.raises(UserError, match="part of a model and cannot lend the architecture"):
        merge_to_disk(recipe, tmp_path / "out")
    lent = Recipe(recipe.model, tokenizer=models["vlm"])
    with pytest.raises(UserError, match=r"none of its models has .*vision"):
        merge_to_disk(lent, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nested_text_merge_goes_into_the_part(models: dict[str, Any], tmp_path: Path) -> None:
    inner = Merge("linear", (("a", models["text"]), ("b", models["text2"])), None, (("coefficient", (Rule(0.5),)),))
    merge = Merge("task_arithmetic", (("texts", inner),), models["vlm"], (("coefficient", (Rule(1.0),)),))
    for name, tensor in merged(models, Recipe(merge), tmp_path / "out").items():
        texts = [text_tensor(models, text, name) for text in ("text", "text2")]
        expected = models["vlm tensors"][name] if texts[0] is None else (texts[0] + texts[1]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_text_model_without_the_map_is_refused(models: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"lacks .*\{model: \.\.\., into:"):
        OpenModels(models["vlm"], [Source(models["text"].model)])


@pytest.mark.parametrize(
    ("changes", "into", "message"),
    [
        ({}, "no_such_part", r"no place under 'no_such_part'.*language_model"),
        ({"num_hidden_layers": 2}, "language_model", r"lacks .*layers\.2\."),
        ({"num_hidden_layers": 4}, "language_model", r"no place under 'language_model' for its tensors.*layers\.3"),
        ({"vocab_size": 70}, "language_model", r"Only the vocabulary differs: 70 tokens, expected 64"),
    ],
)
def test_text_model_of_other_sizes_is_refused(
    changes: dict[str, Any], into: str, message: str, models: dict[str, Any], tmp_path: Path
) -> None:
    llama(0, **changes).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        OpenModels(models["vlm"], [Source(str(tmp_path), into=into)])


def test_recipe_files_hold_the_map_and_ids_of_others_stay(models: dict[str, Any]) -> None:
    text = "method: linear\nexperts: {vlm: ./vlm, text: {model: ./text, into: language_model}}\n"
    text += "parameters: {coefficient: 0.5}\n"
    recipe = parse_recipe(text)
    assert recipe.sources[1] == Source("./text", into="language_model")
    assert parse_recipe(format_recipe(recipe)) == recipe
    without = parse_recipe(text.replace(", into: language_model", ""))
    assert without.recipe_id != recipe.recipe_id
    assert "into" not in str(without.sources[1])


def test_tied_text_model_gives_its_embeddings_as_head(models: dict[str, Any], tmp_path: Path) -> None:
    llama(5, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    source = Source(str(tmp_path / "tied"), into="language_model")
    opened = OpenModels(models["vlm"], [source])
    embeddings = opened.get(source).tensor("model.language_model.embed_tokens.weight")
    assert torch.equal(opened.get(source).tensor(HEAD), embeddings)


def test_what_remains_of_a_merge() -> None:
    a, b, c = Source("a"), Source("b"), Source("c")
    experts: tuple[tuple[str, Node], ...] = (("a", a), ("b", b), ("c", c))
    linear = Merge("linear", experts)
    assert without_absent(linear, ()) is linear
    assert without_absent(linear, (a, b)) == c
    assert without_absent(linear, (a, b, c)) is None
    left = without_absent(linear, (b,))
    assert isinstance(left, Merge)
    assert [name for name, _ in left.experts] == ["a", "c"]
    ties = Merge("ties", experts[:2], c)
    assert without_absent(ties, (a,)) == Merge("ties", (("a", c), ("b", b)), c)
    assert without_absent(ties, (a, b)) == c
    with pytest.raises(UserError, match="base c lacks"):
        without_absent(ties, (c,))
    assert without_absent(Merge("slerp", (("a", a),), b), (a,)) == b
