"""Log-likelihoods in two stages: contexts of equal length behind the shared prefix, then the choices behind them.

It needs no mask of its own, so it suits models that only take plain ones: attention windows, flash attention.
Shapes: B contexts, C choices of more than one token, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from evomerge.evaluation import head_skip
from evomerge.evaluation.head_skip import HeadSkipPass
from evomerge.evaluation.likelihood_pass import Block, PassSize, Reading, Scored
from evomerge.evaluation.shared_prefix import PrefixPlan, PrefixReader, PrefixUse

_Context = tuple[tuple[int, ...], list[Scored]]


@dataclass(frozen=True)
class TwoStagePass:
    """Contexts of equal length and what follows them.

    Attributes:
        contexts: ``(B, L)`` tokens behind the prefix; the last ones predict the first tokens of the choices.
        prefix: what they begin with.
        parents: ``(C,)`` the context of each choice of more than one token.
        choices: ``(C, L)`` all their tokens but the last, padded on the right with 0.
        keep: ``(C, L)`` positions of ``choices`` that are scored.
        reading: what is read of the logits: B rows of the contexts, then the kept ones of the choices.
    """

    contexts: torch.Tensor
    prefix: PrefixUse | None
    parents: torch.Tensor
    choices: torch.Tensor
    keep: torch.Tensor
    reading: Reading

    @property
    def num_tokens(self) -> int:
        """See `LikelihoodPass.num_tokens`."""
        return self.contexts.numel() + self.choices.numel()

    def logits(self, model: Any, prefixes: PrefixReader) -> torch.Tensor:
        """See `LikelihoodPass.logits`."""
        cache = prefixes.cache(self.prefix, len(self.contexts))
        first = model(input_ids=self.contexts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if not len(self.parents):
            return torch.as_tensor(first)
        cache.reorder_cache(self.parents)
        second = model(input_ids=self.choices, past_key_values=cache, use_cache=True, logits_to_keep=self.keep).logits
        return torch.cat([first, second.view(-1, second.shape[-1])])


def lay_out(block: Block, plan: PrefixPlan, size: PassSize, device: torch.device) -> list[TwoStagePass | HeadSkipPass]:
    """The passes of one block. Documents whose beginning is cut off go through padded batches."""
    whole = [scored for document in block for scored in document if not scored.is_cut]
    cut = tuple((scored,) for document in block for scored in document if scored.is_cut)
    contexts: dict[tuple[int, ...], list[Scored]] = {}
    for scored in whole:
        contexts.setdefault(scored.inputs[: scored.context_length], []).append(scored)
    limit = min((len(context) for context in contexts), default=1) - 1
    prefix = plan.find(list(contexts), limit)
    skipped = 0 if prefix is None else prefix.length
    lengths: dict[int, list[_Context]] = {}
    for context, members in sorted(contexts.items(), key=lambda item: (-len(item[0]), item[0])):
        lengths.setdefault(len(context), []).append((context[skipped:], members))
    passes: list[TwoStagePass | HeadSkipPass] = []
    for alike in lengths.values():
        widest = max(len(scored.inputs) - skipped for _, members in alike for scored in members)
        choices = max(len(members) for _, members in alike)
        # A context counts as all its choices side by side.
        limited = replace(size, tokens=min(size.tokens, size.rows * widest))
        for first, last in limited.cut([choices * widest] * len(alike)):
            passes.append(_pass(alike[first:last], prefix, device))
    return passes + (head_skip.lay_out(cut, plan, size, device) if cut else [])


def _pass(contexts: Sequence[_Context], prefix: PrefixUse | None, device: torch.device) -> TwoStagePass:
    long = [(row, scored) for row, (_, members) in enumerate(contexts) for scored in members if len(scored.targets) > 1]
    width = max((len(scored.targets) - 1 for _, scored in long), default=0)
    choices = torch.zeros((len(long), width), dtype=torch.long)
    keep = torch.zeros((len(long), width), dtype=torch.bool)
    behind: dict[int, list[int]] = {}
    place = len(contexts)
    for line, (_, scored) in enumerate(long):
        tokens = scored.targets[:-1]
        choices[line, : len(tokens)] = torch.tensor(tokens)
        keep[line, : len(tokens)] = True
        behind[scored.index] = list(range(place, place + len(tokens)))
        place += len(tokens)
    entries = [
        (scored, [row, *behind.get(scored.index, ())])
        for row, (_, members) in enumerate(contexts)
        for scored in members
    ]
    return TwoStagePass(
        contexts=torch.tensor([context for context, _ in contexts], dtype=torch.long, device=device),
        prefix=prefix,
        parents=torch.tensor([row for row, _ in long], dtype=torch.long, device=device),
        choices=choices.to(device),
        keep=keep.to(device),
        reading=Reading.of(entries, device),
    )
