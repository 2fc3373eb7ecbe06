"""Fixed passes over tokenised log-likelihood requests, laid out once, and the run through them.

Shapes: K rows of logits, T continuation tokens of a pass, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation import head_skip, packed_choices, two_stage
from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.likelihood_pass import Block, Document, LikelihoodPass, PassSize, Scored
from evomerge.evaluation.output_head import float32_head
from evomerge.evaluation.shared_prefix import PrefixPlan, PrefixReader
from evomerge.terms import FailureKind

_LOGIT_ROWS = 512  # rows of (K, V) turned to float32 at once

Tokens = tuple[Sequence[int], Sequence[int]]  # context, continuation

_LAYOUTS: dict[str, Callable[[Block, PrefixPlan, PassSize, torch.device], Sequence[LikelihoodPass]]] = {
    "packed": packed_choices.lay_out,
    "two_stage": two_stage.lay_out,
    "head_skip": head_skip.lay_out,
}


@dataclass(frozen=True)
class LoglikelihoodPlan:
    """All passes of a request set.

    Blocks hold whole documents and are laid out one by one, so a score depends on no document of a later block.

    Attributes:
        engine: which way to score the passes take.
        blocks: the passes of each block.
        num_requests: answers a run gives.
        prefixes: what the blocks' documents begin with alike.
    """

    engine: str
    blocks: tuple[tuple[LikelihoodPass, ...], ...]
    num_requests: int
    prefixes: PrefixPlan = field(default_factory=PrefixPlan)

    @property
    def passes(self) -> tuple[LikelihoodPass, ...]:
        """Of all blocks."""
        return tuple(one for block in self.blocks for one in block)

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes in one run."""
        return sum(one.num_tokens for one in self.passes) + sum(map(len, self.prefixes.prefixes))

    @functools.cached_property
    def owners(self) -> npt.NDArray[np.int64]:
        """The request of every continuation token, in the order the passes give them."""
        return np.array([owner for one in self.passes for owner in one.reading.owners], dtype=np.int64)


def as_document(requests: Sequence[Tokens], first: int, max_length: int) -> Document:
    """The requests of one document, cut on the left where they are longer than the model takes, as in lm-eval.

    Args:
        requests: (context, continuation) token ids.
        first: number of the first request.
        max_length: longest input of the model.
    """
    scored = []
    for index, (context, continuation) in enumerate(requests, first):
        tokens = (*context, *continuation)
        inputs = tokens[-(max_length + 1) :][:-1]
        scored.append(Scored(index, inputs, tuple(continuation), len(tokens) > max_length + 1))
    return tuple(scored)


def plan_loglikelihood(blocks: Sequence[Block], engine: str, size: PassSize, device: torch.device) -> LoglikelihoodPlan:
    """Lay out the forward passes.

    Args:
        blocks: the documents.
        engine: ``packed``, ``two_stage`` or ``head_skip``.
        size: of a forward pass.
        device: where the tensors go.
    """
    prefixes = PrefixPlan()
    laid_out = tuple(tuple(_LAYOUTS[engine](block, prefixes, size, device)) for block in blocks)
    return LoglikelihoodPlan(engine, laid_out, sum(len(document) for block in blocks for document in block), prefixes)


@torch.no_grad()
def run_loglikelihood(model: Any, plan: LoglikelihoodPlan) -> list[tuple[float, bool]]:
    """Score a plan: the output head runs on the positions that are read, in float32, and so does the softmax.

    Returns:
        For each request the summed log-probability of its continuation, and whether it is the greedy one.

    Raises:
        ScoringFailed: the model gives numbers that are not finite.
    """
    scores, hits = [], []
    prefixes = PrefixReader(model, plan.prefixes)
    with float32_head(model):
        for one in plan.passes:
            logits, reading = one.logits(model, prefixes), one.reading
            normaliser, best = [], []
            for chunk in torch.split(logits, _LOGIT_ROWS):
                numbers = chunk.float()
                normaliser.append(numbers.logsumexp(-1))
                best.append(numbers.argmax(-1))
            rows, targets = reading.rows, reading.targets
            scores.append(logits[rows, targets].float() - torch.cat(normaliser)[rows])  # (T,)
            hits.append(torch.cat(best)[rows] == targets)
    # Summed on the CPU in fixed order: atomic adds on a GPU would differ from run to run.
    sums = np.bincount(plan.owners, weights=torch.cat(scores).cpu().numpy(), minlength=plan.num_requests)
    misses = np.bincount(plan.owners, weights=~torch.cat(hits).cpu().numpy(), minlength=plan.num_requests)
    if not np.isfinite(sums).all():
        raise ScoringFailed(FailureKind.NON_FINITE, "the model gives log-probabilities that are not finite")
    return [(total, missed == 0) for total, missed in zip(sums.tolist(), misses.tolist(), strict=True)]
