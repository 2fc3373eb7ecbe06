"""Fixed batches of tokenised requests, made once, and the log-likelihood pass over them.

Shapes: B rows, L tokens, K kept positions of a batch, T continuation tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation.failures import ScoringFailed
from evomerge.terms import FailureKind

_LOGIT_ROWS = 512  # rows of (K, V) turned to float32 at once


@dataclass(frozen=True)
class LoglikelihoodBatch:
    """One forward pass.

    Attributes:
        input_ids: ``(B, L)``, padded on the right with 0; no mask is needed, causal attention never looks right.
        keep: ``(B, L)`` positions whose next-token distribution is scored.
        rows: ``(T,)`` which kept position predicts each continuation token.
        targets: ``(T,)`` continuation tokens.
        owners: ``(T,)`` the request each continuation token belongs to.
    """

    input_ids: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    owners: tuple[int, ...]


@dataclass(frozen=True)
class LoglikelihoodPlan:
    """All forward passes of a request set. Blocks hold whole documents, so a block can be scored alone."""

    blocks: tuple[tuple[LoglikelihoodBatch, ...], ...]
    num_requests: int

    @functools.cached_property
    def owners(self) -> npt.NDArray[np.int64]:
        """The request of every continuation token, in the order the batches give them."""
        return np.array([owner for block in self.blocks for batch in block for owner in batch.owners], dtype=np.int64)


Tokens = tuple[list[int], list[int]]  # context, continuation


@dataclass(frozen=True)
class PassSize:
    """How much one forward pass holds: a CPU is fastest at about a thousand tokens, a GPU wants many more."""

    rows: int
    tokens: int

    @classmethod
    def of(cls, device: torch.device, batch_size: int | None) -> PassSize:
        """The size for a device, or exactly the rows a user asks for."""
        if batch_size is not None:
            return cls(batch_size, 2**40)
        return cls(64, 1024) if device.type == "cpu" else cls(256, 2**14)

    def cut(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Bounds of the passes over rows of these lengths, longest first."""
        bounds = []
        start = 0
        while start < len(lengths):
            rows = max(1, min(self.rows, self.tokens // max(1, lengths[start])))
            bounds.append((start, min(start + rows, len(lengths))))
            start += rows
        return bounds


def plan_loglikelihood(
    requests: Sequence[Tokens], block_ends: Sequence[int], size: PassSize, max_length: int, device: torch.device
) -> LoglikelihoodPlan:
    """Lay out the forward passes.

    Within a block, requests that feed the model the same tokens share a row (all one-token choices of a question do),
    and rows are sorted by length, longest first.

    Args:
        requests: (context, continuation) token ids.
        block_ends: position after the last request of each block.
        size: of a forward pass.
        max_length: longest input of the model; longer ones lose tokens on the left.
        device: where the tensors go.
    """
    blocks = []
    start = 0
    for end in block_ends:
        rows: dict[tuple[int, ...], list[int]] = {}
        for index in range(start, end):
            context, continuation = requests[index]
            inputs = tuple((context + continuation)[-(max_length + 1) :][:-1])
            rows.setdefault(inputs, []).append(index)
        ordered = sorted(rows.items(), key=lambda row: (-len(row[0]), row[0]))
        bounds = size.cut([len(inputs) for inputs, _ in ordered])
        blocks.append(tuple(_batch(ordered[first:last], requests, device) for first, last in bounds))
        start = end
    return LoglikelihoodPlan(tuple(blocks), len(requests))


def _batch(
    rows: Sequence[tuple[tuple[int, ...], list[int]]], requests: Sequence[Tokens], device: torch.device
) -> LoglikelihoodBatch:
    width = len(rows[0][0])
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, (inputs, members) in enumerate(rows):
        input_ids[row, : len(inputs)] = torch.tensor(inputs)
        longest = max(len(requests[index][1]) for index in members)
        keep[row, len(inputs) - longest : len(inputs)] = True
    position = torch.cumsum(keep.flatten(), 0).view_as(keep) - 1  # (B, L): index of a kept position among the kept
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for row, (inputs, members) in enumerate(rows):
        for index in members:
            continuation = requests[index][1]
            places += position[row, len(inputs) - len(continuation) : len(inputs)].tolist()
            targets += continuation
            owners += [index] * len(continuation)
    rows_T, targets_T = (torch.tensor(numbers, dtype=torch.long, device=device) for numbers in (places, targets))
    return LoglikelihoodBatch(input_ids.to(device), keep.to(device), rows_T, targets_T, tuple(owners))


@torch.no_grad()
def run_loglikelihood(model: Any, plan: LoglikelihoodPlan) -> list[tuple[float, bool]]:
    """Score a plan: the output head runs on kept positions only, the softmax in float32.

    Returns:
        For each request the summed log-probability of its continuation, and whether it is the greedy one.

    Raises:
        ScoringFailed: the model gives numbers that are not finite.
    """
    scores, hits = [], []
    for batch in (batch for block in plan.blocks for batch in block):
        output = model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=batch.keep)
        logits = output.logits.view(-1, output.logits.shape[-1])  # (K, V)
        normaliser, best = [], []
        for chunk in logits.split(_LOGIT_ROWS):
            numbers = chunk.float()
            normaliser.append(numbers.logsumexp(-1))
            best.append(numbers.argmax(-1))
        scores.append(logits[batch.rows, batch.targets].float() - torch.cat(normaliser)[batch.rows])  # (T,)
        hits.append(torch.cat(best)[batch.rows] == batch.targets)
    # Summed on the CPU in fixed order: atomic adds on a GPU would differ from run to run.
    sums = np.bincount(plan.owners, weights=torch.cat(scores).cpu().numpy(), minlength=plan.num_requests)
    misses = np.bincount(plan.owners, weights=~torch.cat(hits).cpu().numpy(), minlength=plan.num_requests)
    if not np.isfinite(sums).all():
        raise ScoringFailed(FailureKind.NON_FINITE, "the model gives log-probabilities that are not finite")
    return [(total, missed == 0) for total, missed in zip(sums.tolist(), misses.tolist(), strict=True)]
