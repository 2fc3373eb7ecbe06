"""Routes written with each block stored once, as mergekit's YAML, or in the form that fits; nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.engine.architecture import Architecture
from evomerge.engine.checkpoint import Checkpoint
from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import MERGEKIT_NAME, RECIPE_NAME, merge_to_disk
from evomerge.errors import UserError
from evomerge.experiment.merging import merge
from evomerge.recipes.recipe import Hop, Merge, Recipe, Route, Rule, Source, route_through
from evomerge.recipes.recipe_yaml import load_recipe

from .conftest import save_tokenizer, tiny_config, tiny_model

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
SCALED = [("a", 0, 1.5), ("b", 1, 0.5), ("b", 1, -2.0), ("a", 0, 0.75), ("a", 1, 3.0), ("b", 1, 1.0)]
PLAIN = [("a", 0), ("a", 1), ("b", 1), ("b", 1), ("a", 0), ("a", 1)]
Models = dict[str, Source]


def pair(root: Path, kind: str, **changes: Any) -> Models:
    for seed, name in enumerate("ab"):
        tiny_model(tiny_config(kind, **changes), seed).save_pretrained(root / name)
        save_tokenizer(root / name)
    return {name: Source(str(root / name)) for name in "ab"}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return pair(tmp_path_factory.mktemp("llamas"), "llama")


def route(models: Models, hops: list[tuple[Any, ...]], ends: str = "a", **scales: Any) -> Recipe:
    return Recipe(route_through(models, [Hop(*hop) for hop in hops], ends, **scales))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def loaded(directory: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options).eval()


def generated(model: Any, use_cache: bool) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    found: torch.Tensor = model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0)
    return found


@pytest.mark.parametrize("target", ["stream", "branch"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_a_compact_checkpoint_runs_the_route(kind: str, target: str, tmp_path: Path) -> None:
    models = pair(tmp_path, kind, **(WINDOW if kind == "gemma2" else {}))
    recipe = route(models, SCALED, scale_target=target, **({"output_scale": -0.5} if target == "stream" else {}))
    out = merge_to_disk(recipe, tmp_path / "out", form="compact")
    live = LiveModel(models["a"], [("b", models["b"])], dtype="float32", device="cpu")
    live.apply(recipe)
    model = loaded(out, trust_remote_code=True)
    assert torch.equal(logits(model), logits(live.model))
    assert torch.equal(generated(model, True), generated(model, False))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again", trust_remote_code=True)), logits(live.model))
    with pytest.raises(ValueError, match="contains custom code"):  # and not another model in silence
        loaded(out, trust_remote_code=False)


def test_what_a_compact_checkpoint_holds(llamas: Models, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    recipe = route(llamas, SCALED)
    out = merge_to_disk(recipe, tmp_path / "out", form="compact")
    stored = Checkpoint(out)
    assert stored.tensor("model.input_layers").tolist() == [0, 1, 1, 0, 2, 1]
    assert stored.tensor("model.input_scales").tolist() == [hop[2] for hop in SCALED]
    for number, (name, block, _) in enumerate([SCALED[0], SCALED[1], SCALED[4]]):
        theirs = Checkpoint(Path(llamas[name].model)).tensor(f"model.layers.{block}.mlp.up_proj.weight")
        assert torch.equal(stored.tensor(f"model.layers.{number}.mlp.up_proj.weight"), theirs)
    assert not any(name.startswith("model.layers.3.") for name in stored.names)
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hops"], config["num_hidden_layers"]) == (6, 6)
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    assert load_recipe(out / RECIPE_NAME) == recipe
    assert AutoTokenizer.from_pretrained(out)("w1 w2").input_ids == [5, 6]
    with pytest.raises(UserError, match=r"a compact export of a route.*evomerge_recipe.yaml"):
        Architecture.of_directory(out)
    with pytest.raises(UserError, match="a compact export of a route"):
        merge_to_disk(route({"a": Source(str(out))}, [("a", 0)]), tmp_path / "again")


def test_a_merge_inside_a_compact_route_is_stored_merged(llamas: Models, tmp_path: Path) -> None:
    half = (Rule(0.5),)
    soup = Merge("linear", tuple(llamas.items()), None, (("coefficient", half), ("normalize", (Rule(False),))))
    path = (Hop("soup", 0), Hop("a", 1, 0.0), Hop("soup", 0))
    out = merge_to_disk(Recipe(Route((("a", llamas["a"]), ("soup", soup)), path, "a")), tmp_path / "o", form="auto")
    name = "model.layers.0.self_attn.q_proj.weight"
    mean = sum(Checkpoint(Path(source.model)).tensor(name) for source in llamas.values()) / 2
    torch.testing.assert_close(Checkpoint(out).tensor(name), mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("hops", "form", "line"),
    [
        (SCALED, "auto", "plain: 6 hops, scales folded into o_proj, down_proj"),
        (PLAIN, "auto", "plain: 6 hops, all scales are 1"),
        ([*SCALED, ("a", 0, 0.0)], "auto", "compact: scale 0 at hop 6 erases the stream"),
        (SCALED, "compact", "compact: 6 hops, as asked for"),
    ],
)
def test_the_form_that_fits_is_taken_and_said(
    hops: list[tuple[Any, ...]], form: str, line: str, llamas: Models, tmp_path: Path
) -> None:
    lines: list[str] = []
    merge(route(llamas, hops), tmp_path / "out", form=form, told=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert line in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "modeling_route.py").exists() == line.startswith("compact")


def test_a_plain_route_is_a_mergekit_file(llamas: Models, tmp_path: Path) -> None:
    recipe = route(llamas, PLAIN)
    plain = merge_to_disk(recipe, tmp_path / "plain")
    out = merge_to_disk(recipe, tmp_path / "out", form="mergekit")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", RECIPE_NAME, MERGEKIT_NAME]
    text = (out / MERGEKIT_NAME).read_text()
    assert text == (plain / MERGEKIT_NAME).read_text()
    assert text.count("layer_range") == 4
    again = Checkpoint(merge_to_disk(load_recipe(out / MERGEKIT_NAME), tmp_path / "again"))
    assert set(again.names) == set(Checkpoint(plain).names)
    assert all(torch.equal(again.tensor(name), Checkpoint(plain).tensor(name)) for name in again.names)


@pytest.mark.parametrize(
    ("hops", "ends", "reason"),
    [
        (SCALED, "a", "no words for scales"),
        (PLAIN, "b", "the first block is of a, the ends are of b"),
        ([*PLAIN, ("b", 0)], "a", "the last block is of b, the ends are of a"),
    ],
)
def test_what_mergekit_cannot_say(
    hops: list[tuple[Any, ...]], ends: str, reason: str, llamas: Models, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        merge_to_disk(route(llamas, hops, ends), tmp_path / "out", form="mergekit")
    assert not list(tmp_path.iterdir())


def test_forms_are_checked_first(llamas: Models, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--form: expected auto, plain, compact, mergekit, got 'gguf'"):
        merge(route(llamas, PLAIN), tmp_path / "out", form="gguf")
    with pytest.raises(UserError, match="--form compact: only routes through blocks have it"):
        merge(Recipe(llamas["a"]), tmp_path / "out", form="compact")
    with pytest.raises(UserError, match="cannot be written as a plain checkpoint: scale 0 at hop 0"):
        merge(route(llamas, [("a", 0, 0.0)]), tmp_path / "out", form="plain")


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_an_interrupted_export_leaves_nothing_half_written(form: str, llamas: Models, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Stopped

    with pytest.raises(Stopped):
        merge_to_disk(route(llamas, SCALED), tmp_path / "out", stop, form=form)
    assert not list(tmp_path.iterdir())
