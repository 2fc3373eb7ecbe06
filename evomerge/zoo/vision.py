"""The vision zoo: a vision transformer of 60 thousand parameters and two experts, from scratch in seconds.

The base has seen a little of all ten digits; each expert goes on with one half of them and forgets the other. Saved in
float32: at this size the bytes do not matter and CPUs compute it fastest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from evomerge.files import atomic_write_json
from evomerge.zoo.catalogue import zoo_dir
from evomerge.zoo.vision_lessons import HALVES, MAX_PIXEL, Digit, training_digits

BATCH_SIZE = 64
WARM_UP_STEPS = 20
MODEL_SETTINGS = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# How pixels become the model's input, in the form `AutoImageProcessor` reads.
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": False,
    "do_rescale": True,
    "rescale_factor": 1 / MAX_PIXEL,
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.5],
    "size": {"height": 8, "width": 8},
}


@dataclass(frozen=True)
class VisionRun:
    """One training run of the vision zoo.

    Attributes:
        halves: whose images are drawn.
        num_steps: optimizer steps of `BATCH_SIZE` images.
        learning_rate: its highest value; linear warm-up, then linear decay to 5 %.
        seed: of the weights (base only) and of the draws.
    """

    halves: tuple[str, ...]
    num_steps: int
    learning_rate: float
    seed: int


RUNS: dict[str, VisionRun] = {
    "digits-base": VisionRun(("digits_low", "digits_high"), 150, 2e-3, 1),
    "digits-low": VisionRun(("digits_low",), 60, 3e-4, 2),
    "digits-high": VisionRun(("digits_high",), 60, 3e-4, 3),
}


def build(name: str, output_dir: Path, report: Callable[[int, int, float], None]) -> dict[str, Any]:
    """Train one model of the vision zoo and save it with its preprocessor.

    Args:
        name: a key of `RUNS`; experts start from the built base.
        output_dir: an existing folder.
        report: called as report(steps done, steps in all, loss).

    Returns:
        What the manifest records of the run.
    """
    from transformers import ViTForImageClassification

    run = RUNS[name]
    if name == "digits-base":
        model = new_model(run.seed)
    else:
        model = ViTForImageClassification.from_pretrained(zoo_dir() / "digits-base", dtype=torch.float32)
    train(model, run, report)
    model.save_pretrained(output_dir)
    atomic_write_json(output_dir / "preprocessor_config.json", PREPROCESSOR)
    return {**run.__dict__, "batch_size": BATCH_SIZE, **MODEL_SETTINGS}


def new_model(seed: int) -> Any:
    """An untrained model, always the same for one seed."""
    from transformers import ViTConfig, ViTForImageClassification

    labels = {str(label): label for half in HALVES.values() for label in half}
    config = ViTConfig(**MODEL_SETTINGS, label2id=labels, id2label={label: name for name, label in labels.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def as_input(digits: list[Digit]) -> torch.Tensor:
    """Pixels as the preprocessor gives them, ``(digits, 1, 8, 8)``."""
    pixels = torch.tensor([digit.pixels for digit in digits], dtype=torch.float32)
    return ((pixels / MAX_PIXEL - 0.5) / 0.5).unsqueeze(1)


def train(model: Any, run: VisionRun, report: Callable[[int, int, float], None]) -> None:
    """Train in place on the run's images; cross-entropy over all ten digits."""
    rng = random.Random(run.seed)
    digits = [digit for half in run.halves for digit in training_digits(half)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=0.01)
    model.train()
    for step in range(run.num_steps):
        batch = rng.choices(digits, k=BATCH_SIZE)
        logits = model(pixel_values=as_input(batch)).logits
        loss = functional.cross_entropy(logits, torch.tensor([digit.label for digit in batch]))
        loss.backward()  # type: ignore[no-untyped-call]
        factor = min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - 0.95 * step / run.num_steps)
        optimizer.param_groups[0]["lr"] = run.learning_rate * factor
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if (step + 1) % 10 == 0 or step + 1 == run.num_steps:
            report(step + 1, run.num_steps, float(loss.item()))
    model.eval()
