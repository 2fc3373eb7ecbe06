"""LoRA adapters on the micro base, one for each skill, and one of noise that a search has to leave out.

Written in the form peft reads. The adapters start from the base, not from each other, with A random and B zero.
Reference: Hu 2021, https://arxiv.org/abs/2106.09685; rank and alpha as in Evo-Merging, https://arxiv.org/abs/2509.12951.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evomerge.zoo.catalogue import zoo_dir
from evomerge.zoo.micro import BATCH_SIZE, MicroRun, train

RANK, ALPHA = 8, 16
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NOISE_SIZE = 0.1  # standard deviation of both factors of the noise

RUNS: dict[str, MicroRun] = {
    "micro-lora-add": MicroRun({"add": 1.0}, 90, 4e-3, 12),
    "micro-lora-let": MicroRun({"let": 1.0}, 70, 4e-3, 13),
    "micro-lora-rev": MicroRun({"rev": 1.0}, 70, 4e-3, 14),
    "micro-lora-noise": MicroRun({}, 0, 0.0, 15),
}


class LowRankUpdate(nn.Module):
    """``W + B A alpha / r`` in the place of a weight ``(out, in)``."""

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + (ALPHA / RANK) * (self.up @ self.down)


def build(name: str, output_dir: Path, report: Callable[[int, int, float], None]) -> dict[str, Any]:
    """Train one adapter on the built base and save it.

    Args:
        name: a key of `RUNS`.
        output_dir: an existing folder.
        report: called as report(steps done, steps in all, loss).

    Returns:
        What the manifest records of the run.
    """
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    run = RUNS[name]
    model = LlamaForCausalLM.from_pretrained(zoo_dir() / "micro-base").requires_grad_(False)
    generator = torch.Generator().manual_seed(run.seed)
    updates: dict[str, LowRankUpdate] = {}
    for module_name, module in list(model.named_modules()):
        if module_name.rpartition(".")[2] in MODULES and isinstance(module, nn.Linear):
            updates[module_name] = LowRankUpdate(module.weight, generator)
            parametrize.register_parametrization(module, "weight", updates[module_name])
    if run.num_steps:
        train(model, run, report)
    else:
        with torch.no_grad():
            for update in updates.values():
                for factor in (update.up, update.down):
                    factor.copy_(torch.randn(factor.shape, generator=generator) * NOISE_SIZE)
    tensors = {}
    for module_name, update in updates.items():
        tensors[f"base_model.model.{module_name}.lora_A.weight"] = update.down.detach().contiguous()
        tensors[f"base_model.model.{module_name}.lora_B.weight"] = update.up.detach().contiguous()
    save_file(tensors, output_dir / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "zoo:micro-base",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(MODULES),
        "inference_mode": True,
    }
    (output_dir / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return {**run.__dict__, "batch_size": BATCH_SIZE, "rank": RANK, "alpha": ALPHA}
