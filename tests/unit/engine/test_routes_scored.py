"""Scoring routes of changing depth, with and without what earlier routes left in the prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.evaluation.greedy_decoding import BlockPlanner, generate
from evomerge.evaluation.likelihood_pass import PassSize
from evomerge.evaluation.request_plans import as_document, plan_loglikelihood, run_loglikelihood
from evomerge.recipes.recipe import Node, Recipe, Source

from .conftest import Family, recipe_of
from .routing import CHANGES, live_of, loaded, pair, route

CPU = torch.device("cpu")
WORDS = torch.randint(4, 60, (6, 14), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [words[: 5 + 2 * row] for row, words in enumerate(WORDS[:5])]


def scores(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Log-likelihoods, and texts of rows that are read in two chunks and decoded together."""
    requests = [(words[:9], words[9 : 9 + size]) for words in WORDS for size in (1, 3)]
    block = tuple(as_document(requests[first : first + 2], first, 64) for first in range(0, len(requests), 2))
    likely = [
        run_loglikelihood(model, plan_loglikelihood([block], engine, PassSize(4, 2**20, 32, 32), CPU))
        for engine in ("packed", "head_skip")
    ]
    planner = BlockPlanner("padded", 0, PassSize(3, 2**20), CPU)
    planner.add(PROMPTS, range(len(PROMPTS)), ["w7"], 3)
    return likely, generate(model, tokenizer, planner.plan())


def tokenizer_of(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def tokenizer(family: Family) -> Any:
    return tokenizer_of(family.directory)


def population(models: dict[str, Node]) -> list[Recipe]:
    """Routes that share first hops, with everything between them that must not be mistaken for them."""
    start = [("a", 0), ("b", 1), ("a", 1)]
    scaled = [("a", 0), ("b", 1, 0.5), ("a", 1)]
    routes = [
        route(models, [*start, ("a", 0), ("b", 0)]),
        route(models, [*start, ("a", 0), ("b", 1), ("b", 0)]),
        route(models, [*start, ("a", 0), ("b", 1), ("b", 0)]),
        route(models, [*start, ("a", 0), ("b", 1), ("b", 0)], output_scale=0.5),
        route(models, [*start, ("b", 0)], "b"),
        route(models, scaled),
        route(models, [*scaled, ("b", 0)]),
        route(models, [*scaled, ("b", 0)], scale_target="branch"),
        route(models, [*scaled, ("b", 0, 2.0)], scale_target="branch"),
        route(models, [*scaled, ("b", 0)]),
        Recipe(models["b"]),
        route(models, [*scaled, ("b", 0)]),
        route(models, start),
    ]
    return routes


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox"])
def test_cached_prefixes_change_no_bit(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    models = pair(tmp_path, kind, **CHANGES.get(kind, {}))
    # 20 kB hold some hops of some prompts.
    sizes = (0, 20_000, 10**8) if kind == "llama" else (0, 10**8)
    live = {size: live_of(models, prefix_cache_bytes=size) for size in sizes}
    counts = {}
    for number, recipe in enumerate(population(models)):
        found = {}
        for size, model in live.items():
            model.apply(recipe)
            found[size] = scores(model.model, tokenizer)
            counts[number, size] = model.take_hop_counts()
            held = 0 if model._routes is None else model._routes.prefixes.num_bytes
            assert held <= size
        assert all(answers == found[0] for answers in found.values())
        assert counts[number, 0].skipped == 0
        total = counts[number, 0].run
        assert total == 0 or counts[number, 10**8].run + counts[number, 10**8].skipped == total
    skipped = [counts[number, 10**8].skipped > 0 for number in range(len(population(models)))]
    assert skipped == [False, True, True, True, False, False, True, False, True, False, False, False, True]
    # The third route is the second: only decoding is left to do.
    again = counts[2, 10**8]
    assert again.share_skipped > 0.8
    total_skipped = {size: sum(counts[number, size].skipped for number in range(len(skipped))) for size in live}
    assert 0 < total_skipped.get(20_000, 1) < total_skipped[10**8]


def test_changed_weights_are_never_taken_for_the_old_ones(family: Family, tokenizer: Any, tmp_path: Path) -> None:
    inner = [recipe_of(family, "task_arithmetic", seed).model for seed in (1, 2)]
    cached, plain = (
        LiveModel(family.base, family.experts, dtype="float32", device="cpu", prefix_cache_bytes=size)
        for size in (10**8, 0)
    )
    hops = [("math", 0), ("merged", 1), ("merged", 0)]
    for number, ends in ((0, "math"), (1, "math"), (1, "merged"), (0, "merged"), (0, "math")):
        recipe = route({"merged": inner[number], "math": family.experts[0][1]}, hops, ends)
        found = []
        for model in (cached, plain):
            model.apply(recipe)
            found.append(scores(model.model, tokenizer))
        assert found[0] == found[1]
    assert cached.take_hop_counts().skipped > 0


def test_routes_score_as_their_checkpoints(family: Family, tokenizer: Any, tmp_path: Path) -> None:
    """Whatever route ran before, and also where its depth differs."""
    models: dict[str, Node] = {"a": family.base, "b": family.experts[0][1]}
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    for number, hops in enumerate(([("a", 0)], [("a", 0), ("b", 1), ("b", 1), ("a", 1)], [("b", 0), ("a", 1)])):
        recipe = route(models, hops)
        live.apply(recipe)
        assert scores(live.model, tokenizer) == scores(loaded(merge_to_disk(recipe, tmp_path / str(number))), tokenizer)


def test_gradients_training_and_other_inputs_bypass_the_cache(family: Family) -> None:
    models: dict[str, Node] = {"a": family.base, "b": family.experts[0][1]}
    live = LiveModel(family.base, [("b", Source(str(models["b"])))], dtype="float32", device="cpu")
    live.apply(route(models, [("a", 0), ("b", 1)]))
    ids = torch.tensor(WORDS[:2])
    for _ in range(2):
        with torch.enable_grad():
            live.model(input_ids=ids)
        with torch.no_grad():
            live.model(inputs_embeds=live.model.get_input_embeddings()(ids))
    assert live._routes is not None
    assert live._routes.prefixes.num_bytes == 0
    with torch.no_grad():
        first, second = (live.model(ids).logits for _ in range(2))
    assert torch.equal(first, second)
    assert live.take_hop_counts().skipped == 2 * ids.numel()
    live.drop_prefixes()
    assert live._routes.prefixes.num_bytes == 0
