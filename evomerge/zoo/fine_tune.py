"""The plain training loop of the 135M experts.

Full fine-tuning of everything but the tied embedding, AdamW in float32, batches bucketed by length, loss on the
completion's tokens only. The result is saved in bfloat16. One thread: same bits on the same kind of CPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from evomerge.zoo import lessons
from evomerge.zoo.lessons import BATCH_SIZE, Phase

BATCHES_PER_BUCKET = 8
LEARNING_RATE = 1e-4
WARM_UP_STEPS = 20
FINAL_FRACTION = 0.05
BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0
PAD_TOKEN_ID = 2

StepReport = Callable[[int, int, float], None]
"""Called as report(steps done, steps in all, loss)."""


def fine_tune(parent_dir: Path, output_dir: Path, phase: Phase, report: StepReport) -> dict[str, Any]:
    """Fine-tune a checkpoint and save the result in bfloat16.

    Args:
        parent_dir: checkpoint to start from; its tokenizer is copied.
        output_dir: an existing folder.
        phase: what to train on and for how long.
        report: called after each step.

    Returns:
        What the manifest records of the run.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parent_dir)
    # float32 compute on the master weights: on CPUs without bfloat16 units it is also several times faster.
    model = AutoModelForCausalLM.from_pretrained(parent_dir, dtype=torch.float32)
    losses = _train(model, _batches(tokenizer, phase), phase.num_steps, report)
    model.to(torch.bfloat16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return {
        "num_steps": phase.num_steps,
        "shuffle_seed": phase.shuffle_seed,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "last_losses": [round(loss, 4) for loss in losses[-5:]],
    }


TokenPair = tuple[list[int], list[int]]


def _batches(tokenizer: Any, phase: Phase) -> list[list[TokenPair]]:
    """Token ids of prompt and completion in batches of similar length; same draws as `Phase.used_examples`."""
    rng = random.Random(phase.shuffle_seed)
    examples = phase.examples()
    encoded = [(tokenizer(prompt).input_ids, tokenizer(completion).input_ids) for prompt, completion in examples]
    order = lessons.example_order(len(examples), phase.num_steps * BATCH_SIZE, rng)
    batches: list[list[TokenPair]] = []
    bucket_size = BATCH_SIZE * BATCHES_PER_BUCKET
    for start in range(0, len(order), bucket_size):
        bucket = sorted(order[start : start + bucket_size], key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
        group = [[encoded[i] for i in bucket[k : k + BATCH_SIZE]] for k in range(0, len(bucket), BATCH_SIZE)]
        rng.shuffle(group)
        batches += group
    return batches


def _train(model: Any, batches: list[list[TokenPair]], num_steps: int, report: StepReport) -> list[float]:
    """Train in place; returns the loss of every step."""
    model.train()
    embedding = model.get_input_embeddings().weight
    embedding.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    losses = []
    for step in range(num_steps):
        loss = completion_loss(model, batches[step])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * learning_rate_factor(step, num_steps)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        # Zeroed, not freed: asking the system for 400 MB of fresh pages each step is slow.
        optimizer.zero_grad(set_to_none=False)
        losses.append(float(loss.item()))
        report(step + 1, num_steps, losses[-1])
    model.eval()
    return losses


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Linear warm-up over 20 steps times linear decay to 5 %."""
    decay = max(0.0, 1 - step / num_steps) * (1 - FINAL_FRACTION) + FINAL_FRACTION
    return min(1.0, (step + 1) / WARM_UP_STEPS) * decay


def completion_loss(model: Any, batch: list[TokenPair]) -> torch.Tensor:
    """Mean cross-entropy over the completion tokens of a batch, a scalar.

    Right padding needs no attention mask under causal attention: no real token sees a pad.
    """
    length = max(len(prompt) + len(completion) for prompt, completion in batch)
    tokens = torch.full((len(batch), length), PAD_TOKEN_ID)
    learned = torch.zeros((len(batch), length), dtype=torch.bool)
    for row, (prompt, completion) in enumerate(batch):
        end = len(prompt) + len(completion)
        tokens[row, :end] = torch.tensor(prompt + completion)
        learned[row, len(prompt) : end] = True
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    chosen = learned[:, 1:]
    # Only the rows that count go through the head, the largest matrix of the model.
    logits = model.lm_head(hidden[chosen])
    return functional.cross_entropy(logits.float(), tokens[:, 1:][chosen])
