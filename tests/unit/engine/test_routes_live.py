"""Routes run in the live model: against the plain model, a hand-written loop, and the same route written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import InvalidInput, MergeFailed, UserError
from evomerge.recipes.recipe import Merge, Node, Recipe, Route, Source, Stack, StackPart

from .conftest import CONFIGS, Family, recipe_of, tiny_config, tiny_model
from .routing import CHANGES, IDS, LONG, WINDOW, generated, live_of, loaded, logits, pair, route


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Node]:
    return pair(tmp_path_factory.mktemp("llamas"), "llama")


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_repeated_and_reordered_hops_of_two_models(kind: str, tmp_path: Path) -> None:
    models = pair(tmp_path, kind, **CHANGES.get(kind, {}))
    live = live_of(models)
    plain = logits(live.model)
    live.apply(route(models, [("a", 0), ("a", 1)]))
    assert torch.equal(logits(live.model), plain)
    recipe = route(models, LONG)
    live.apply(recipe)
    assert torch.equal(generated(live.model, True), generated(live.model, False))
    on_disk = loaded(merge_to_disk(recipe, tmp_path / "merged"))
    assert on_disk.config.get_text_config().num_hidden_layers == len(LONG)
    if "layer_types" in CHANGES.get(kind, {}):
        kinds = [WINDOW["layer_types"][hop[1]] for hop in LONG]
        assert live.model.config.layer_types == on_disk.config.layer_types == kinds
    assert torch.equal(logits(live.model), logits(on_disk))


@torch.no_grad()
def by_hand(models: dict[str, Node], made: Route) -> torch.Tensor:
    """A Llama's route as the papers write it down."""
    each = {name: loaded(str(node)) for name, node in models.items()}
    ends = each[made.ends].model
    stream, branch = made.scale_target == "stream", torch.zeros(())
    hidden = ends.embed_tokens(IDS)
    angles = ends.rotary_emb(hidden, torch.arange(IDS.shape[1])[None])
    hidden, branch = torch.zeros_like(hidden), hidden
    for hop in made.hops:
        block = each[hop.model].model.layers[hop.block]
        hidden = hop.scale * (hidden + branch) if stream else hidden + hop.scale * branch
        hidden = hidden + block.self_attn(block.input_layernorm(hidden), position_embeddings=angles)[0]
        branch = block.mlp(block.post_attention_layernorm(hidden))
    found: torch.Tensor = each[made.ends].lm_head(ends.norm((hidden + branch) * made.output_scale))
    return found


@pytest.mark.parametrize("ends", ["a", "b"])
def test_both_kinds_of_scales_follow_the_hand_written_loop(ends: str, llamas: dict[str, Node]) -> None:
    live = live_of(llamas)
    hops = [("a", 0, 1.5), ("b", 1, 0.5), ("b", 1, -2.0), ("a", 0, 0.0), ("a", 1, 3.0)]
    found = {}
    for target in ("stream", "branch"):
        for scaled in (False, True):
            used = hops if scaled else [hop[:2] for hop in hops]
            recipe = route(
                llamas, used, ends, scale_target=target, output_scale=0.3 if scaled and target == "stream" else 1.0
            )
            live.apply(recipe)
            found[target, scaled] = logits(live.model)
            assert isinstance(recipe.model, Route)
            torch.testing.assert_close(found[target, scaled], by_hand(llamas, recipe.model), rtol=1e-5, atol=1e-5)
            if scaled:
                assert torch.equal(generated(live.model, True), generated(live.model, False))
    assert torch.equal(found["stream", False], found["branch", False])
    assert not torch.allclose(found["stream", True], found["branch", True])
    assert not torch.allclose(found["stream", True], found["stream", False])


def test_every_published_route_runs(llamas: dict[str, Node]) -> None:
    """Two models' blocks one after the other, three times: all of them, none of them."""
    live = live_of(llamas)
    laid_out = [(name, block) for name in ("a", "b") for block in (0, 1)] * 3
    live.apply(route(llamas, [("a", 0), *laid_out, ("a", 1)]))
    assert torch.equal(generated(live.model, True), generated(live.model, False))
    live.apply(route(llamas, [("a", 0), ("a", 1)]))
    assert torch.equal(logits(live.model), logits(loaded(str(llamas["a"]))))
    live.apply(route(llamas, [("b", 1)]))
    assert logits(live.model, use_cache=True).isfinite().all()


def test_hops_cost_no_memory_and_names_stay(llamas: dict[str, Node]) -> None:
    live = live_of(llamas)
    names, config = list(live.model.state_dict()), live.model.config.to_dict()
    places = {p.data_ptr() for p in live.model.parameters()}
    live.apply(route(llamas, [("a", 0), ("b", 1)]))
    once = live.lane_bytes
    block = sum(p.nbytes for p in live.model.model.layers.stored[0].parameters())
    assert once == block
    assert "1 lanes of blocks" in live.memory_plan
    live.apply(route(llamas, [("a", 0), ("b", 1)] * 30))
    assert live.lane_bytes == once
    assert len(live.model.model.layers) == 60 == live.model.config.num_hidden_layers
    assert [hop.self_attn.layer_idx for hop in live.model.model.layers] == list(range(60))
    for hop in live.model.model.layers:
        stored = live.model.model.layers.stored[0]
        assert (hop.mlp.up_proj.weight.data_ptr() == stored.mlp.up_proj.weight.data_ptr()) == (
            hop.self_attn.layer_idx % 2 == 0
        )
    assert list(live.model.state_dict()) == names
    assert {p.data_ptr() for p in live.model.parameters()} == places
    live.apply(Recipe(live.reference))
    assert live.model.config.to_dict() == config
    assert len(live.model.model.layers) == 2


def test_a_plain_merge_after_a_route_is_that_merge(family: Family) -> None:
    merge = recipe_of(family, "ties", 3)
    fresh, used = (LiveModel(family.base, family.experts, dtype="float32", device="cpu") for _ in range(2))
    models: dict[str, Node] = {"base": family.base, **dict(family.experts)}
    for recipe in (route(models, [("math", 1), ("base", 0), ("base", 1)], "spanish"), merge):
        used.apply(recipe)
    fresh.apply(merge)
    state = used.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in fresh.model.state_dict().items())
    # And the other way round: the merge has overwritten the blocks of the base and the ends.
    again = route(models, [("math", 1), ("base", 0), ("base", 1)], "spanish")
    for model in (used, fresh):
        model.apply(again)
    assert torch.equal(logits(used.model), logits(fresh.model))


def test_merges_in_lanes_change_with_the_candidate(family: Family, tmp_path: Path) -> None:
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    inner = [recipe_of(family, "task_arithmetic", seed).model for seed in (1, 2)]
    for number, with_base in ((0, False), (1, True), (0, True), (0, False), (1, False)):
        models = {"merged": inner[number], "math": family.experts[0][1], "base": family.base}
        recipe = route(
            models, [("merged", 0), ("math", 1), ("merged", 1), *([("base", 0)] if with_base else [])], "merged"
        )
        live.apply(recipe)
        target = tmp_path / f"{number}{with_base}"
        if not target.exists():
            merge_to_disk(recipe, target)
        assert torch.equal(logits(live.model), logits(loaded(target)))
    routes = live._routes
    assert routes is not None
    assert len(routes.lanes) == 2  # one for math; one for merges while the base needs the model's own blocks


def test_stacks_lend_the_blocks_of_their_parts(llamas: dict[str, Node], tmp_path: Path) -> None:
    stack = Stack((StackPart(llamas["b"], 1, 2), StackPart(llamas["a"], 0, 2)))
    live = live_of(llamas)
    recipe = route({"s": stack}, [("s", 0), ("s", 2), ("s", 1)], "s")
    live.apply(recipe)
    assert torch.equal(logits(live.model), logits(loaded(merge_to_disk(recipe, tmp_path / "merged"))))


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_models_of_different_depth(kind: str, tmp_path: Path) -> None:
    changes = {} if kind == "gpt2" else {"tie_word_embeddings": False}
    models = pair(tmp_path, kind, depth=3, **changes)
    live = live_of(models, any_depth=True)
    for ends in ("a", "b"):
        recipe = route(models, [("b", 2), ("a", 0), ("b", 0), ("a", 1), ("b", 2)], ends)
        live.apply(recipe)
        target = merge_to_disk(Recipe(recipe.model, tokenizer=models["a"]), tmp_path / f"merged_{ends}")  # type: ignore[arg-type]
        assert torch.equal(logits(live.model), logits(loaded(target)))
        assert torch.equal(generated(live.model, True), generated(live.model, False))
    plain = Merge("linear", tuple(models.items()))
    with pytest.raises(InvalidInput, match="models of different depth"):
        live.apply(Recipe(plain))
    with pytest.raises(InvalidInput, match="models of different depth"):
        live.apply(route({"m": plain, **models}, [("m", 0)]))
    with pytest.raises(InvalidInput, match=r"block 2 of a, which has 0 to 1"):
        live.apply(route(models, [("a", 2)]))
    live.apply(Recipe(live.reference))
    assert torch.equal(logits(live.model), logits(loaded(str(models["a"]))))


def test_other_sizes_are_refused_by_number(llamas: dict[str, Node], tmp_path: Path) -> None:
    deep = {"num_hidden_layers": 3}
    changes: dict[str, dict[str, Any]] = {
        "wide": {"hidden_size": 32, "head_dim": 16}, "tokens": {"vocab_size": 80}, "other": {},
    }  # fmt: skip
    for name, change in changes.items():
        tiny_model(tiny_config("qwen2" if name == "other" else "llama", **deep, **change), 0).save_pretrained(
            tmp_path / name
        )
    others = {name: Source(str(tmp_path / name)) for name in changes}
    with pytest.raises(InvalidInput) as caught:
        live_of({**llamas, **others}, any_depth=True)
    text = str(caught.value)
    for part in (
        "wide: its hidden_size is 32, that of",
        f"{llamas['a']} is 16",
        "its vocab_size is 80",
        "it is a qwen2 model",
    ):
        assert part in text
    live = live_of(llamas)
    with pytest.raises(UserError, match="its hidden_size is 32"):
        live.apply(route({**llamas, "wide": others["wide"]}, [("wide", 0), ("a", 1)]))


def test_broken_weights_fail_only_routes_that_use_them(llamas: dict[str, Node], tmp_path: Path) -> None:
    broken = loaded(str(llamas["b"]))
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 3] = torch.inf
    broken.save_pretrained(tmp_path / "broken")
    models = {**llamas, "broken": Source(str(tmp_path / "broken"))}
    live = live_of(models)
    live.apply(route(models, [("a", 0), ("broken", 0), ("a", 1)]))
    fine = logits(live.model)
    for _ in range(2):
        with pytest.raises(MergeFailed, match="NaN or infinite"):
            live.apply(route(models, [("a", 0), ("broken", 1)]))
    live.apply(route(models, [("a", 0), ("broken", 0), ("a", 1)]))
    assert torch.equal(logits(live.model), fine)


def test_settings_that_only_one_model_can_have_are_named(llamas: dict[str, Node], tmp_path: Path, caplog: Any) -> None:
    config = tiny_config("llama", rms_norm_eps=1e-3)
    tiny_model(config, 4).save_pretrained(tmp_path / "eps")
    live = live_of({**llamas, "eps": Source(str(tmp_path / "eps"))})
    for _ in range(2):
        live.apply(route({**llamas, "eps": Source(str(tmp_path / "eps"))}, [("eps", 0), ("a", 1)]))
    said = [record.message for record in caplog.records if "run with the settings" in record.message]
    assert len(said) == 1
    assert "rms_norm_eps (0.001, not 1e-06)" in said[0]


def test_rounding_is_that_of_the_file(family: Family, tmp_path: Path) -> None:
    """bfloat16 models in a float32 live model."""
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    models = {"m": recipe_of(family, "linear", 1).model, "math": family.experts[0][1]}
    recipe = Recipe(
        route(models, [("m", 0), ("math", 1), ("m", 1)], "m").model, dtype="bfloat16", tokenizer=family.base
    )
    live.apply(recipe)
    assert torch.equal(logits(live.model), logits(loaded(merge_to_disk(recipe, tmp_path / "merged"))))
