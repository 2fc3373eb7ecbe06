"""Models made of blocks of others: which tensor goes where, the configuration, and that transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source, Stack, StackPart
from evomerge.recipes.recipe_yaml import load_recipe

from .conftest import Family, fine_tuned, save_family, tiny_config, tiny_model

DEPTH = 6
BLOCKS = {"llama": "model.layers.", "gpt2": "transformer.h."}
DEPTH_KEY = {"llama": "num_hidden_layers", "gpt2": "n_layer"}
BEFORE = {"llama": ("model.embed_tokens.weight",), "gpt2": ("transformer.wte.weight", "transformer.wpe.weight")}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def deep(kind: str, depth: int = DEPTH) -> dict[str, Any]:
    return {DEPTH_KEY[kind]: depth}


@pytest.fixture(scope="module")
def two(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
    """Two unrelated models whose head is a tensor of its own."""
    root = tmp_path_factory.mktemp(kind)
    for number, name in enumerate(("a", "b")):
        config = tiny_config(kind, **deep(kind), tie_word_embeddings=False)
        tiny_model(config, number).save_pretrained(root / name)
    return Source(str(root / "a")), Source(str(root / "b"))


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict())


def of_block(found: dict[str, torch.Tensor], kind: str, block: int) -> dict[str, torch.Tensor]:
    prefix = f"{BLOCKS[kind]}{block}."
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def stack(*parts: tuple[Any, int, int]) -> Recipe:
    return Recipe(Stack(tuple(StackPart(*part) for part in parts)))


def test_identity_stack_is_the_source(kind: str, two: tuple[Source, Source], tmp_path: Path) -> None:
    out = merge_to_disk(stack((two[0], 0, 2), (two[0], 2, DEPTH)), tmp_path / "out")
    assert equal(weights(out), weights(two[0].model))
    ours, theirs = (json.loads((Path(path) / "config.json").read_text()) for path in (out, two[0].model))
    assert {name: ours[name] for name in theirs if name in ours} == theirs


def test_depth_up_scaling(kind: str, two: tuple[Source, Source], tmp_path: Path) -> None:
    """SOLAR: n blocks without the last m, then n blocks without the first m. Kim 2023, arXiv 2312.15166."""
    out = merge_to_disk(stack((two[0], 0, 4), (two[0], 2, DEPTH)), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config[DEPTH_KEY[kind]] == 8
    ours, theirs = weights(out), weights(two[0].model)
    assert len(ours) == len(theirs) + 2 * len(of_block(theirs, kind, 0))
    for block, origin in enumerate([0, 1, 2, 3, 2, 3, 4, 5]):
        assert equal(of_block(ours, kind, block), of_block(theirs, kind, origin))
    outside = {name for name in theirs if not name.startswith(BLOCKS[kind])}
    assert all(torch.equal(ours[name], theirs[name]) for name in outside)
    assert load_recipe(out / "evomerge_recipe.yaml") == stack((two[0], 0, 4), (two[0], 2, DEPTH))


def test_interleaved_models_give_their_ends(kind: str, two: tuple[Source, Source], tmp_path: Path) -> None:
    first, second = two
    out = merge_to_disk(stack((first, 0, 2), (second, 1, 3), (first, 2, 4), (second, 3, 5)), tmp_path / "out")
    ours, a, b = weights(out), weights(first.model), weights(second.model)
    origins = [(a, 0), (a, 1), (b, 1), (b, 2), (a, 2), (a, 3), (b, 3), (b, 4)]
    for block, (model, origin) in enumerate(origins):
        assert equal(of_block(ours, kind, block), of_block(model, kind, origin))
    for name in (name for name in a if not name.startswith(BLOCKS[kind])):
        assert torch.equal(ours[name], (a if name in BEFORE[kind] else b)[name]), name


RESIDUAL = {"llama": ("o_proj", "down_proj"), "gpt2": ("attn.c_proj", "mlp.c_proj")}


def test_scale_zero_on_what_a_block_adds_skips_it(kind: str, two: tuple[Source, Source], tmp_path: Path) -> None:
    silenced = (*(Rule(0.0, contains=word) for word in RESIDUAL[kind]), Rule(1.0))
    quiet = Merge("passthrough", (("a", two[0]),), None, (("scale", silenced),))
    ids = torch.arange(12).view(1, -1)
    logits = []
    for name, recipe in (
        ("repeated", stack((two[0], 0, 3), (quiet, 1, 3), (two[0], 3, DEPTH))),
        ("plain", stack((two[0], 0, DEPTH))),
    ):
        model = AutoModelForCausalLM.from_pretrained(merge_to_disk(recipe, tmp_path / name), dtype=torch.float32)
        with torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)


def test_a_part_that_merges_different_blocks(kind: str, two: tuple[Source, Source], tmp_path: Path) -> None:
    first, second = two
    experts = (("a", Stack((StackPart(first, 0, 3),))), ("b", Stack((StackPart(second, 1, 4),))))
    # The merge is 3 blocks deep, and its gradient runs over them.
    gradient = (("coefficient", (Rule((1.0, 0.0), expert="a"), Rule((0.0, 1.0), expert="b"))),)
    mixed = Merge("linear", experts, None, (*gradient, ("normalize", (Rule(False),))))
    out = merge_to_disk(stack((mixed, 0, 3), (second, 4, 5)), tmp_path / "out")
    ours, a, b = weights(out), weights(first.model), weights(second.model)
    for block, share in enumerate([1.0, 0.5, 0.0]):
        for name, tensor in of_block(ours, kind, block).items():
            expected = share * of_block(a, kind, block)[name] + (1 - share) * of_block(b, kind, block + 1)[name]
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    assert equal(of_block(ours, kind, 3), of_block(b, kind, 4))
    for name in BEFORE[kind]:
        assert torch.equal(ours[name], a[name])  # outside the blocks the gradient is at its first knot


def test_models_of_different_depth(kind: str, two: tuple[Source, Source], tmp_path: Path) -> None:
    shallow = tiny_model(tiny_config(kind, **deep(kind, 3), tie_word_embeddings=False), 9)
    shallow.save_pretrained(tmp_path / "shallow")
    other = Source(str(tmp_path / "shallow"))
    out = merge_to_disk(stack((two[0], 0, 5), (other, 0, 3)), tmp_path / "out")
    ours = weights(out)
    assert json.loads((out / "config.json").read_text())[DEPTH_KEY[kind]] == 8
    assert equal(of_block(ours, kind, 7), of_block(weights(other.model), kind, 2))
    with pytest.raises(InvalidInput, match=r"stack\[1\].blocks: names blocks 2 to 4, but .*shallow has 0 to 2"):
        merge_to_disk(stack((two[0], 0, 5), (other, 2, 5)), tmp_path / "no")
    wrong = Merge("linear", (("a", two[0]), ("b", other)), None, (("coefficient", (Rule(1.0),)),))
    with pytest.raises(InvalidInput, match=r"models of different depth: .* has 6, .*shallow has 3"):
        merge_to_disk(stack((wrong, 0, 2)), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_tied_models_stay_tied_and_an_untied_one_unties(kind: str, tmp_path: Path) -> None:
    config = tiny_config(kind, **deep(kind, 3), tie_word_embeddings=True)
    tied = tiny_model(config, 1)
    tied.save_pretrained(tmp_path / "tied")
    fine_tuned(tied, 2, frozen=()).save_pretrained(tmp_path / "tuned")
    sources = [Source(str(tmp_path / name)) for name in ("tied", "tuned")]
    out = merge_to_disk(stack((sources[0], 0, 3), (sources[1], 1, 3)), tmp_path / "both")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    tiny_model(tiny_config(kind, **deep(kind, 2), tie_word_embeddings=False), 3).save_pretrained(tmp_path / "untied")
    out = merge_to_disk(stack((sources[0], 0, 3), (Source(str(tmp_path / "untied")), 0, 2)), tmp_path / "mixed")
    ours, untied = weights(out), weights(tmp_path / "untied")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(ours["lm_head.weight"], untied["lm_head.weight"])
    assert not torch.equal(ours["lm_head.weight"], ours[BEFORE[kind][0]])


def test_sliding_windows_go_with_their_blocks(tmp_path: Path) -> None:
    windows = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = tiny_config("gemma2", num_hidden_layers=4, layer_types=windows)
    tiny_model(config, 1).save_pretrained(tmp_path / "a")
    source = Source(str(tmp_path / "a"))
    out = merge_to_disk(stack((source, 0, 2), (source, 1, 4), (source, 0, 1)), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.layer_types == [windows[block] for block in (0, 1, 1, 2, 3, 0)]


def test_a_pattern_of_windows_becomes_a_list(tmp_path: Path) -> None:
    config = tiny_config("gemma3_text", num_hidden_layers=7)
    tiny_model(config, 1).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    plain = {name: value for name, value in json.loads(path.read_text()).items() if name != "layer_types"}
    path.write_text(json.dumps(plain))
    source = Source(str(tmp_path / "a"))
    out = merge_to_disk(stack((source, 4, 7), (source, 4, 7)), tmp_path / "out")
    types = AutoModelForCausalLM.from_pretrained(out).config.layer_types
    assert types == ["sliding_attention", "full_attention", "sliding_attention"] * 2


def test_a_recipe_for_fewer_blocks_cuts_the_model(family: Family, tmp_path: Path) -> None:
    root = tmp_path / "deep"
    deeper = save_family(root, "llama", torch.float32, num_hidden_layers=3)
    merge = Merge("linear", deeper.experts, None, (("coefficient", (Rule(1.0, (0, 1)), Rule(0.5))),))
    out = merge_to_disk(Recipe(merge, options=(("num_blocks", 2),)), tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2
    with pytest.raises(InvalidInput, match="names blocks 0 to 3"):
        merge_to_disk(Recipe(merge, options=(("num_blocks", 4),)), tmp_path / "no")


def test_live_model_takes_stacks_of_its_own_depth(family: Family, tmp_path: Path) -> None:
    names = [source for _, source in family.experts]
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    swapped = stack((names[0], 1, 2), (names[1], 0, 1))
    live.apply(swapped)
    held = live.model.state_dict()
    loaded = weights(merge_to_disk(swapped, tmp_path / "out"))
    assert [name for name in held if not torch.equal(held[name], loaded[name])] == []
    live.apply(stack((names[0], 0, 1), (names[1], 1, 2)))
    loaded = weights(merge_to_disk(stack((names[0], 0, 1), (names[1], 1, 2)), tmp_path / "again"))
    held = live.model.state_dict()
    assert [name for name in held if not torch.equal(held[name], loaded[name])] == []
    with pytest.raises(UserError, match="a model of 3 blocks, the one in memory has 2: merge it to disk"):
        live.apply(stack((names[0], 0, 2), (names[1], 1, 2)))
