"""Helpers of the tests of routes: pairs of tiny models, routes through them, what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evomerge.engine.live_model import LiveModel
from evomerge.recipes.recipe import Hop, Node, Recipe, Source, route_through

from .conftest import tiny_config, tiny_model

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
WINDOW: dict[str, Any] = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma2": WINDOW, "gemma3_text": WINDOW, "mistral": {"sliding_window": 4},
    "qwen3": {**WINDOW, "use_sliding_window": True},
}  # fmt: skip
LONG = [("a", 0), ("b", 1), ("b", 1), ("a", 1), ("b", 0), ("a", 0)]


def route(models: dict[str, Node], hops: list[tuple[Any, ...]], ends: str = "a", **scales: Any) -> Recipe:
    return Recipe(route_through(models, [Hop(*hop) for hop in hops], ends, **scales))


def pair(root: Path, kind: str, **changes: Any) -> dict[str, Node]:
    """Two models on disk; the second is deeper where ``depth`` says so."""
    depth = changes.pop("depth", 2)
    tiny_model(tiny_config(kind, **changes), 0).save_pretrained(root / "a")
    layers = {"n_layer" if kind == "gpt2" else "num_hidden_layers": depth}
    tiny_model(tiny_config(kind, **{**changes, **layers}), 1).save_pretrained(root / "b")
    return {"a": Source(str(root / "a")), "b": Source(str(root / "b"))}


def live_of(models: dict[str, Node], **options: Any) -> LiveModel:
    sources = [(name, node) for name, node in models.items() if isinstance(node, Source)]
    return LiveModel(sources[0][1], sources[1:], dtype="float32", device="cpu", **options)


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, **inputs).logits
    return found


def generated(model: Any, use_cache: bool) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    found: torch.Tensor = model.generate(IDS, max_new_tokens=5, do_sample=False, use_cache=use_cache, pad_token_id=0)
    return found


def loaded(directory: Path | str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()
