"""How far a route exported as a plain checkpoint is from the routed model, on SmolLM2-135M.

    python scripts/bench_folding.py [--seeds 5] [--hops 40]

Random routes with scales from +-[0.5, 1.5], as ``stream`` and as ``branch``. Differences are the largest of any logit,
divided by the largest logit; both models compute in float32. The bfloat16 column is the same for weights rounded to
bfloat16 after folding, with the routed model on the source's own bfloat16 weights. Needs ``evomerge zoo build``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.recipes.recipe import Hop, Recipe, Route, Source, route_through

MODEL = Source("zoo:smollm2-135m")
TEXTS = (
    "Question: What is the capital of France? Answer: Paris is the capital and largest city of France. 12 + 35 = 47.",
    "Los números pares son dos, cuatro, seis y ocho; los impares son uno, tres, cinco y siete.",
)


def random_route(seed: int, num_hops: int, target: str, depth: int) -> Route:
    """Even seeds: all blocks in order, then random ones; odd seeds: random blocks throughout."""
    random = np.random.default_rng(seed)
    blocks = [int(block) for block in random.integers(depth, size=num_hops)]
    if seed % 2 == 0:
        blocks[: min(depth, num_hops)] = range(min(depth, num_hops))
    scales = random.choice([-1.0, 1.0], size=num_hops) * random.uniform(0.5, 1.5, size=num_hops)
    hops = [Hop("a", block, float(scale)) for block, scale in zip(blocks, scales)]
    return route_through({"a": MODEL}, hops, "a", target)


@torch.no_grad()
def logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Logits of every text."""
    return [model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits for text in TEXTS]


def difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference divided by the largest logit."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(left, right, strict=True))


def exported(recipe: Recipe, tokenizer: Any) -> tuple[list[torch.Tensor], float]:
    """Logits of the recipe's plain checkpoint, and seconds it took to write."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        out = merge_to_disk(recipe, Path(directory) / "out")
        seconds = time.perf_counter() - started
        return logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), tokenizer), seconds


def main() -> None:
    """Print one line for each route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hops", type=int, default=40)
    options = parser.parse_args()
    live = LiveModel(MODEL, [], dtype="float32", device="cpu")
    print("target  seed  largest |c|  float32    bfloat16   seconds to write")
    for target in ("stream", "branch"):
        for seed in range(options.seeds):
            route = random_route(seed, options.hops, target, live.architecture.num_blocks)
            live.apply(Recipe(route))
            wanted = logits(live.model, live.tokenizer)
            exact, seconds = exported(Recipe(route, dtype="float32"), live.tokenizer)
            rounded, _ = exported(Recipe(route, dtype="bfloat16"), live.tokenizer)
            product = np.abs(np.cumprod([hop.scale for hop in route.hops])).max() if target == "stream" else 1.0
            print(
                f"{target:7} {seed:4}  {product:11.2f}  {difference(exact, wanted):.1e}    "
                f"{difference(rounded, wanted):.1e}    {seconds:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
