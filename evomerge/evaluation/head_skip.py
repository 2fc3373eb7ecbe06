"""Log-likelihoods in padded batches, as lm-eval makes them, with the output head on the scored positions only.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.evaluation.likelihood_pass import Block, PassSize, Reading, Scored
from evomerge.evaluation.shared_prefix import PrefixPlan, PrefixReader


@dataclass(frozen=True)
class HeadSkipPass:
    """One padded batch.

    Attributes:
        input_ids: ``(B, L)``, padded on the right with 0; no mask is needed, causal attention never looks right.
        keep: ``(B, L)`` positions whose next-token distribution is scored.
        reading: what is read of the logits.
    """

    input_ids: torch.Tensor
    keep: torch.Tensor
    reading: Reading

    @property
    def num_tokens(self) -> int:
        """See `LikelihoodPass.num_tokens`."""
        return self.input_ids.numel()

    def logits(self, model: Any, prefixes: PrefixReader) -> torch.Tensor:
        """See `LikelihoodPass.logits`."""
        output = model(input_ids=self.input_ids, use_cache=False, logits_to_keep=self.keep)
        logits: torch.Tensor = output.logits
        return logits.view(-1, logits.shape[-1])


def lay_out(block: Block, plan: PrefixPlan, size: PassSize, device: torch.device) -> list[HeadSkipPass]:
    """The passes of one block.

    Requests that feed the model the same tokens share a row (all one-token choices of a question do), and rows are
    sorted by length, longest first.
    """
    rows: dict[tuple[int, ...], list[Scored]] = {}
    for document in block:
        for scored in document:
            rows.setdefault(scored.inputs, []).append(scored)
    ordered = sorted(rows.items(), key=lambda row: (-len(row[0]), row[0]))
    bounds = size.cut([len(inputs) for inputs, _ in ordered])
    return [_batch(ordered[first:last], device) for first, last in bounds]


def _batch(rows: Sequence[tuple[tuple[int, ...], list[Scored]]], device: torch.device) -> HeadSkipPass:
    width = len(rows[0][0])
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, (inputs, members) in enumerate(rows):
        input_ids[row, : len(inputs)] = torch.tensor(inputs)
        longest = max(len(scored.targets) for scored in members)
        keep[row, len(inputs) - longest : len(inputs)] = True
    position = torch.cumsum(keep.flatten(), 0).view_as(keep) - 1  # (B, L): index of a kept position among the kept
    entries = [
        (scored, position[row, len(inputs) - len(scored.targets) : len(inputs)].tolist())
        for row, (inputs, members) in enumerate(rows)
        for scored in members
    ]
    return HeadSkipPass(input_ids.to(device), keep.to(device), Reading.of(entries, device))
