"""Routes written as plain checkpoints, their scales folded into weights: against the live model that runs the hops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.engine.checkpoint import Checkpoint
from evomerge.engine.folding import CannotFold, TensorFold, route_factors
from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.recipes.recipe import Hop, Recipe, Route, Source, route_through

from .conftest import CONFIGS, GROUPED, SMALL, tiny_config, tiny_model

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "gemma2": WINDOW, "gemma3_text": WINDOW, "gpt2": {}, "gpt_neox": {},
    "phi3": {},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "granite": {**GROUPED, "residual_multiplier": 0.22, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "olmo2": SMALL,
    "mixtral": {**GROUPED, "num_local_experts": 4},
}
# Without the epsilons of norms, which tiny random models feel, folding is exact but for rounding.
EPSILON = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}


def saved(root: Path, kind: str, name: str = "a", seed: int = 1, **changes: Any) -> Source:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = tiny_config(kind, **changes) if kind in CONFIGS else CONFIG_MAPPING[kind](**changes)
    tiny_model(config, seed).save_pretrained(root / name)
    return Source(str(root / name))


def scaled_route(models: dict[str, Source], target: str, seed: int = 0, num_hops: int = 7) -> Route:
    """Random blocks, the models in turn, with scales from +-[0.5, 1.5]."""
    random, names = np.random.default_rng(seed), list(models)
    hops = [
        Hop(names[k % len(names)], int(random.integers(2)), float(random.choice([-1, 1]) * random.uniform(0.5, 1.5)))
        for k in range(num_hops)
    ]
    return route_through(models, hops, names[0], target, -0.7 if target == "stream" else 1.0)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def exported(directory: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return logits(model.eval())


def live_of(models: dict[str, Source]) -> LiveModel:
    sources = list(models.items())
    return LiveModel(sources[0][1], sources[1:], dtype="float32", device="cpu", any_depth=True)


def routed(live: LiveModel, route: Route) -> torch.Tensor:
    live.apply(Recipe(route))
    return logits(live.model)


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_plain_checkpoint_gives_what_the_routed_model_gives(kind: str, tmp_path: Path) -> None:
    exact = {EPSILON.get(kind, "rms_norm_eps"): 1e-12}
    models = {"a": saved(tmp_path, kind, **{**KINDS, **OTHERS}[kind], **exact)}
    live = live_of(models)
    for target in ("stream", "branch"):
        route = scaled_route(models, target, seed=len(kind))
        wanted = routed(live, route)
        found = exported(merge_to_disk(Recipe(route), tmp_path / target))
        assert difference(found, wanted) < 2e-5
        unscaled = route_through(models, [Hop(hop.model, hop.block) for hop in route.hops], "a")
        assert difference(routed(live, unscaled), wanted) > 0.1


@pytest.mark.parametrize("target", ["stream", "branch"])
def test_two_models_of_different_depth_keep_their_windows(target: str, tmp_path: Path) -> None:
    models = {
        "a": saved(tmp_path, "gemma2", **WINDOW),
        "b": saved(tmp_path, "gemma2", "b", 2, num_hidden_layers=3, sliding_window=4,
                   layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
    }  # fmt: skip
    hops = [Hop("a", 0, 0.6), Hop("b", 2, -1.2), Hop("b", 0, 1.5), Hop("a", 1, 0.7), Hop("b", 2, -0.9)]
    route = route_through(models, hops, "b", target)
    out = merge_to_disk(Recipe(route), tmp_path / "out")
    from transformers import AutoConfig

    expected = ["sliding_attention", "sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert AutoConfig.from_pretrained(out).layer_types == expected
    assert difference(exported(out), routed(live_of({"b": models["b"], "a": models["a"]}), route)) < 2e-4


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_scale_is_exact_where_the_embeddings_are_as_small_as_the_epsilon(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tiny_config("llama", tie_word_embeddings=tied), 1)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 0.01  # mean square 1e-6, as the epsilon
    model.save_pretrained(tmp_path / "a")
    models = {"a": Source(str(tmp_path / "a"))}
    for target in ("stream", "branch"):
        route = route_through(models, [Hop("a", 0, 3.0), Hop("a", 1)], "a", target)
        out = merge_to_disk(Recipe(route), tmp_path / target)
        assert difference(exported(out), routed(live_of(models), route)) < 1e-5


def test_folded_weights_are_rounded_once(tmp_path: Path) -> None:
    models = {"a": saved(tmp_path, "llama")}
    route = route_through(models, [Hop("a", 0), Hop("a", 1, 0.3)], "a")
    out = merge_to_disk(Recipe(route, dtype="bfloat16"), tmp_path / "out")
    name = "model.layers.1.self_attn.o_proj.weight"
    exact = Checkpoint(tmp_path / "a").tensor(name).double() / 0.3
    assert torch.equal(Checkpoint(out).tensor(name), exact.bfloat16())
    gains = torch.rand(4, dtype=torch.float32)
    written = torch.empty(4, dtype=torch.bfloat16)
    TensorFold(-1.0, 1.0).write(gains, written)
    assert torch.equal(written, (-(gains.double() + 1) - 1).bfloat16())


def test_factors_are_products_of_the_stream_or_single_writes() -> None:
    hops = [Hop("a", 0, 2.0), Hop("a", 1, -0.5), Hop("a", 0, 4.0)]
    stream = route_factors(Route((), tuple(hops), "a", "stream", 3.0), into_embeddings=True)
    assert (stream.embeddings, stream.last) == (2.0, -6.0)
    assert [hop.stream for hop in stream.hops] == [1.0, -0.5, -2.0]
    assert [hop.last_write for hop in stream.hops] == [1.0, -2.0, -0.5]
    branch = route_factors(Route((), tuple(hops), "a", "branch"), into_embeddings=False)
    assert [(hop.stream, hop.writes, hop.last_write) for hop in branch.hops] == [
        (2.0, 0.5, -0.25), (2.0, 0.5, 2.0), (2.0, 0.5, 0.5),
    ]  # fmt: skip


BLOCKS = [Hop("a", 0), Hop("a", 1), Hop("a", 0)]


@pytest.mark.parametrize(
    ("kind", "scales", "ends", "reason"),
    [
        ("llama", (1, 0, 1), {}, "scale 0 at hop 1 erases the stream"),
        ("llama", (0, 1, 1), {"scale_target": "branch"}, "scale 0 at hop 0 erases the stream"),
        ("llama", (1, 1, 1), {"output_scale": 0.0}, "output_scale 0 erases the stream"),
        ("llama", (1e-6, 1e-6, 1e-6), {}, "the product of the scales up to hop 2 is 1e-12"),
        ("olmo", (1, -1, 1), {}, "hop 1 is negative, and input_layernorm has no gain whose sign could be turned"),
    ],
)
def test_what_cannot_fold_is_said(
    kind: str, scales: tuple[float, ...], ends: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    models = {"a": saved(tmp_path, kind, **({} if kind in CONFIGS else SMALL))}
    hops = [Hop(hop.model, hop.block, float(scale)) for hop, scale in zip(BLOCKS, scales)]
    with pytest.raises(CannotFold, match=reason):
        merge_to_disk(Recipe(route_through(models, hops, "a", **ends)), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_branch_of_scale_zero_is_a_write_of_zero(tmp_path: Path) -> None:
    models = {"a": saved(tmp_path, "gemma2")}
    route = route_through(models, [Hop("a", 0), Hop("a", 1, 0.0), Hop("a", 0)], "a", "branch")
    out = merge_to_disk(Recipe(route), tmp_path / "out")
    assert difference(exported(out), routed(live_of(models), route)) < 1e-5
    assert (Checkpoint(out).tensor("model.layers.0.post_feedforward_layernorm.weight") == -1).all()
