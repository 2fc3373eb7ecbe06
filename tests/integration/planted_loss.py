"""A fitness of the planted-route test: minus the loss on the answers of one fixed batch of questions."""

import random
from typing import Any

import torch

from evomerge.zoo.micro import _batch, vocabulary


def minus_loss(model: Any, tokenizer: Any, documents: list[dict[str, Any]], seed: int) -> float:
    tokens, learned = (rows[:24] for rows in _batch(random.Random(7), {"copy": 0.6, "add": 0.4}, vocabulary()))
    picked = learned[:, 1:]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[picked]
    return -float(torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][picked]))
