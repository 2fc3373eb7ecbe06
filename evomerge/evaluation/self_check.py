"""A fast engine against the plain way, on a few requests of the set it is going to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evomerge.evaluation.failures import ScoringFailed, is_out_of_memory
from evomerge.evaluation.greedy_decoding import BlockPlanner, GenerationBlock, generate
from evomerge.evaluation.likelihood_pass import Block, Document, PassSize, Scored
from evomerge.evaluation.request_plans import plan_loglikelihood, run_loglikelihood

_REQUESTS = 2  # of each document that is looked at
_TOKENS = 5  # of each answer that is looked at

StockAnswers = Callable[[list[tuple[None, list[int], list[int]]]], Sequence[tuple[float, bool]]]


def answers_disagree(
    model: Any, engine: str, blocks: Sequence[Block], stock: StockAnswers, size: PassSize
) -> str | None:
    """Compare log-likelihoods with lm-eval's own.

    Args:
        model: the live model.
        engine: what to try.
        blocks: all documents.
        stock: lm-eval's own loop over (text, context, continuation).
        size: of the passes.

    Returns:
        What differs, None when they agree.
    """
    documents = _few([document for block in blocks for document in block if document], engine)
    requests = [scored for document in documents for scored in document]
    plan = plan_loglikelihood([tuple(documents)], engine, size, model.device)
    ours = run_loglikelihood(model, plan)
    theirs = stock([(None, list(scored.inputs[: scored.context_length]), list(scored.targets)) for scored in requests])
    apart = [
        (abs(mine[0] - other[0]) / len(scored.targets), abs(other[0]) / len(scored.targets))
        for mine, other, scored in zip(ours, theirs, requests, strict=True)
    ]
    if model.dtype == torch.float32:  # large numbers have large rounding
        off, tolerance = max(gap / max(1.0, size) for gap, size in apart), 1e-3
    else:  # lm-eval's logits and softmax round by up to 0.1 themselves; a wrong engine is off by far more
        off, tolerance = sum(gap for gap, _ in apart) / len(apart), 0.15
    return f"log-probabilities differ by {off:.3g} a token from lm-eval's" if off > tolerance else None


def _few(documents: list[Document], engine: str) -> list[Document]:
    """The shortest documents and the longest one, some requests of each, numbered anew."""
    documents = sorted(documents, key=lambda document: sum(len(scored.inputs) for scored in document))
    chosen = documents[:2]
    if engine != "head_skip" and len(documents) > 2:
        chosen = [*chosen, max(documents, key=lambda document: max(len(scored.inputs) for scored in document))]
    few, count = [], 0
    for document in chosen:
        kept = document[:_REQUESTS]
        few.append(tuple(Scored(count + place, one.inputs, one.targets, one.is_cut) for place, one in enumerate(kept)))
        count += len(kept)
    return few


@torch.no_grad()
def texts_disagree(
    model: Any, tokenizer: Any, engine: str, blocks: Sequence[GenerationBlock], size: PassSize
) -> str | None:
    """Each generated token must be the best one, within rounding, without cache, mask, padding or batch.

    Args:
        model: the live model.
        tokenizer: its tokenizer.
        engine: what to try.
        blocks: all blocks.
        size: of the passes.

    Returns:
        What differs, None when they agree.
    """
    ordered = sorted((prompt for block in blocks for prompt in block.prompts), key=lambda prompt: (len(prompt), prompt))
    shortest, longest = ordered[0], ordered[-1]
    batches = [[shortest, longest]]
    if len(shortest) == len(longest):  # what fills short rows is looked at too
        batches.append([shortest[len(shortest) // 2 :], longest])
    planner = BlockPlanner(engine, tokenizer.pad_token_id, size, model.device)
    for batch in batches:
        planner.add(batch, range(len(batch)), blocks[0].stops, min(blocks[0].max_new_tokens, _TOKENS))
    tolerance = 1e-2 if model.dtype == torch.float32 else 0.5
    for batch, answers in zip(batches, generate(model, tokenizer, planner.plan()), strict=True):
        for prompt, tokens in zip(batch, answers, strict=True):
            whole = torch.tensor([[*prompt, *tokens[:-1]]], device=model.device)
            logits = model(input_ids=whole, logits_to_keep=len(tokens)).logits[0, -len(tokens) :].float()
            new = torch.tensor(tokens, device=model.device)
            behind = float((logits.max(-1).values - logits.gather(1, new[:, None])[:, 0]).max())
            if not behind <= tolerance:
                return f"a generated token is {behind:.3g} behind the best one of an uncached pass"
    return None


def failed_check(check: Callable[[], str | None]) -> str | None:
    """Run a check; what it found, or the error that the engine raised with this model.

    Raises:
        Exception: memory ran out.
    """
    try:
        return check()
    except ScoringFailed:
        return None  # the weights are at fault, not the engine; the candidate will say so
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:200]
        return f"it raised {type(error).__name__}: {text}"
