"""Log-likelihoods of many documents in one row: the choices of a question branch off its one context.

Each token sees its ancestors and the shared prefix only, by a mask and position numbers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.evaluation.likelihood_pass import Block, PassSize, Reading
from evomerge.evaluation.shared_prefix import PrefixPlan, PrefixReader, PrefixUse
from evomerge.evaluation.token_tree import TreePass, TreeRow, rows_of_passes


@dataclass(frozen=True)
class PackedPass:
    """Trees of whole documents.

    Attributes:
        trees: the rows.
        prefix: what they begin with.
        keep: ``(R, L)`` positions whose next-token distribution is scored.
        reading: what is read of the logits.
    """

    trees: TreePass
    prefix: PrefixUse | None
    keep: torch.Tensor
    reading: Reading

    @property
    def num_tokens(self) -> int:
        """See `LikelihoodPass.num_tokens`."""
        return self.trees.input_ids.numel()

    def logits(self, model: Any, prefixes: PrefixReader) -> torch.Tensor:
        """See `LikelihoodPass.logits`."""
        cached: dict[str, Any] = {"use_cache": False}
        if self.prefix is not None:
            cache = prefixes.cache(self.prefix, len(self.trees.input_ids))
            cached = {"use_cache": True, "past_key_values": cache}
        output = model(
            input_ids=self.trees.input_ids, attention_mask=self.trees.attention_mask(model.dtype),
            position_ids=self.trees.position_ids, logits_to_keep=self.keep, **cached,
        )  # fmt: skip
        logits: torch.Tensor = output.logits
        return logits.view(-1, logits.shape[-1])


def lay_out(block: Block, plan: PrefixPlan, size: PassSize, device: torch.device) -> list[PackedPass]:
    """The passes of one block.

    Documents whose beginning is cut off share no prefix with the others and are packed apart.
    """
    whole = [document for document in block if not any(scored.is_cut for scored in document)]
    cut = [document for document in block if any(scored.is_cut for scored in document)]
    sequences = [scored.inputs for document in whole for scored in document]
    limit = min((scored.context_length for document in whole for scored in document), default=1) - 1
    passes = _passes(whole, plan.find(sequences, limit), size, device)
    return passes + _passes(cut, None, size, device)


def _passes(
    documents: Sequence[Any], prefix: PrefixUse | None, size: PassSize, device: torch.device
) -> list[PackedPass]:
    if not documents:
        return []
    skipped = 0 if prefix is None else prefix.length
    # Neighbours in this order share most: questions about one passage come together.
    ordered = sorted(documents, key=lambda document: min(scored.inputs for scored in document))
    groups = [[scored.inputs[skipped:] for scored in document] for document in ordered]
    return [_pass(rows, ordered, prefix, device) for rows in rows_of_passes(groups, size)]


def _pass(
    rows: Sequence[TreeRow], documents: Sequence[Any], prefix: PrefixUse | None, device: torch.device
) -> PackedPass:
    width = max(len(row.tokens) for row in rows)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    found = []
    for line, row in enumerate(rows):
        for (document, index), places in zip(row.members, row.places, strict=True):
            scored = documents[document][index]
            mine = places[-len(scored.targets) :]
            keep[line, list(mine)] = True
            found.append((scored, line, mine))
    position = torch.cumsum(keep.flatten(), 0).view_as(keep) - 1
    entries = [(scored, position[line, list(mine)].tolist()) for scored, line, mine in found]
    trees = TreePass.of(rows, 0 if prefix is None else prefix.length, device)
    return PackedPass(trees, prefix, keep.to(device), Reading.of(entries, device))
