"""A fitness of the front tests: for each question minus the loss on its answer, which no two merges share."""

from typing import Any

import torch

from evomerge.zoo.micro import PAD_ID, vocabulary


def minus_losses(model: Any, tokenizer: Any, documents: list[dict[str, Any]], seed: int) -> list[float]:
    ids = vocabulary()
    rows = [[ids[character] for character in document["prompt"] + document["answer"]] for document in documents]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows])
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    starts = [len(document["prompt"]) - 1 for document in documents]
    return [
        -float(losses[row, start : start + len(document["answer"])].mean())
        for row, (start, document) in enumerate(zip(starts, documents))
    ]
