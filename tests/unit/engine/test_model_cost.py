"""What models cost, against counts by hand and against the operations torch itself counts."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evomerge.engine.architecture import Architecture, describe
from evomerge.engine.live_model import LiveModel
from evomerge.engine.model_cost import model_cost, source_cost
from evomerge.errors import UserError
from evomerge.evaluation.cost_fitness import CostFitness
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.recipes.recipe import Hop, Recipe, route_through
from evomerge.terms import with_unit
from tests.unit.engine.conftest import Family, tiny_config, tiny_model

WIDTH, WIDE, HEAD, WORDS = 16, 32, 8, 64
BLOCK = (
    WIDTH * WIDTH * 2 + 2 * WIDTH * HEAD + 3 * WIDTH * WIDE
)  # q and o, k and v of one head, three matrices of the MLP


def cost_of(kind: str, context: int, **changes: Any) -> tuple[Any, Any]:
    model = tiny_model(tiny_config(kind, **changes), 0).eval()
    return model, model_cost(model, describe(model), context)


def test_counts_by_hand() -> None:
    _, found = cost_of("llama", 10)
    assert found.num_hops == 2
    assert found.num_parameters == 2 * (BLOCK + 2 * WIDTH) + WIDTH + WORDS * WIDTH  # tied embeddings once
    assert found.flops_per_token == 2 * (2 * BLOCK + WORDS * WIDTH + 2 * 10 * 2 * 2 * HEAD)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma3_text", "phi3", "qwen3"])
def test_torch_counts_the_same(kind: str) -> None:
    """Without a cache and with all positions attended, as torch's own counter sees a whole prompt."""
    length = 8
    model, found = cost_of(kind, length, attn_implementation="eager")
    ids = torch.arange(length)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    assert counter.get_total_flops() / length == found.flops_per_token


def test_a_sliding_window_and_routed_experts_save() -> None:
    _, wide = cost_of("mistral", 100, sliding_window=None)
    _, narrow = cost_of("mistral", 100, sliding_window=10)
    assert wide.flops_per_token - narrow.flops_per_token == 2 * 2 * 90 * 2 * 2 * HEAD
    from transformers import MixtralConfig, MixtralForCausalLM

    small = {"hidden_size": WIDTH, "intermediate_size": WIDE, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": HEAD, "vocab_size": WORDS, "num_local_experts": 4}  # fmt: skip
    one, two = (MixtralForCausalLM(MixtralConfig(**small, num_experts_per_tok=count)) for count in (1, 2))
    expert = 3 * WIDTH * WIDE
    costs = [model_cost(model, describe(model), 10) for model in (one, two)]
    assert costs[1].flops_per_token - costs[0].flops_per_token == 2 * expert
    assert costs[0].num_parameters == costs[1].num_parameters == sum(p.numel() for p in two.parameters())


def test_a_route_counts_what_runs_and_holds_each_block_once(family: Family) -> None:
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    plain = model_cost(live.model, live.architecture, 10)
    assert plain == source_cost(family.base, 10)
    models = {"base": family.base, **dict(family.experts)}
    hops = [Hop("math", 0), Hop("base", 1), Hop("math", 0), Hop("base", 1, 0.5), Hop("base", 1)]
    live.apply(Recipe(route_through(models, hops, "base")))
    routed = model_cost(live.model, live.architecture, 10)
    assert routed.num_hops == 5
    assert routed.num_parameters == plain.num_parameters  # two stored blocks, as in the base
    per_block = (plain.flops_per_token - 2 * WORDS * WIDTH) / 2
    assert routed.flops_per_token == 5 * per_block + 2 * WORDS * WIDTH
    live.apply(Recipe(family.base))
    assert model_cost(live.model, live.architecture, 10) == plain


def test_latency_runs_every_hop_whatever_earlier_passes_left(family: Family) -> None:
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    hops = [Hop("math", 0), Hop("base", 1), Hop("math", 0)]
    live.apply(Recipe(route_through({"base": family.base, **dict(family.experts)}, hops, "base")))
    [config] = load_fitness({"cost": "latency", "tokens": 8, "repeats": 2})
    fitness = CostFitness(config)
    fitness.bind(live.model, live.tokenizer)
    runs: list[int] = []
    block = next(iter(live.model.model.layers)).mlp
    block.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):
        with torch.no_grad():
            assert fitness.score("search", 0)[0].value > 0
    assert len(runs) == 2 * 3 * 2  # twice three forwards of two hops
    [long] = load_fitness({"cost": "latency"})
    with pytest.raises(UserError, match="the model has 64 positions, got 128"):
        CostFitness(long).bind(live.model, live.tokenizer)


def test_values_for_people() -> None:
    values = [(0.43751, ""), (1, "hops"), (12, "hops"), (134_515_008, "parameters"), (2.8e6, "FLOP"), (23.411, "ms")]
    shown = [with_unit(value, unit) for value, unit in values]
    assert shown == ["0.4375", "1 hop", "12 hops", "134.5M parameters", "2.8M FLOP", "23.41 ms"]


def test_files_of_no_known_class_have_no_cost(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    from evomerge.recipes.recipe import Source

    save_file(
        {"blocks.0.w.weight": torch.ones(2, 2), "blocks.1.w.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors"
    )
    assert Architecture.of_directory(tmp_path).model is None
    assert source_cost(Source(str(tmp_path)), 10) is None
