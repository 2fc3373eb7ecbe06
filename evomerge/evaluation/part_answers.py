"""What identifies the answers to one part of a task's documents, and their form as plain data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from evomerge.evaluation.documents import FitnessPlan, SplitPlan
from evomerge.evaluation.lm_eval_scorer import PreparedRequests, PreparedScorer

PartKey = dict[str, Any]
_TYPES = {"loglikelihood": tuple, "loglikelihood_rolling": float, "generate_until": str}


def part_key(
    plan: FitnessPlan, splits: Sequence[tuple[str, SplitPlan]], prepared: Sequence[PreparedRequests],
    scorer: PreparedScorer, batch_size: int | None,
) -> PartKey:  # fmt: skip
    """Everything answers depend on beside the model, and everything scores depend on beside the answers.

    Args:
        plan: the fitness.
        splits: task and documents of each member, all of them: few-shot examples avoid them.
        prepared: the requests of the part.
        scorer: answers them.
        batch_size: rows of a forward pass, None = the scorer's.
    """
    return {
        "is": "answers",
        "metric": [plan.metric, plan.filter, plan.higher_is_better, plan.weight_by_size, plan.is_mean],
        "settings": plan.settings,
        "documents": _digest([name, *entry] for name, split in splits for entry in zip(split.ids, split.hashes)),
        "prompts": [split.prompts for _, split in splits],
        "is_sampled": any(one.is_sampled for one in prepared),
        "asked": [
            {
                "kind": one.kind,
                "requests": _digest([one.kind, request.task_name, request.args] for request in one.requests),
                **scorer.conditions(one, batch_size),
            }
            for one in prepared
        ],
    }


def pack_answers(answers: Sequence[Sequence[Any]]) -> list[list[Any]] | None:
    """Answers, for each kind of request, as plain data; None where reading them would give anything else.

    A float32 for example would come back as a float, and sums of those have other bits.
    """
    if not all(_is_sound(answer) for mine in answers for answer in mine):
        return None
    return [[list(answer) if type(answer) is tuple else answer for answer in mine] for mine in answers]


def read_answers(kept: Any, prepared: Sequence[PreparedRequests]) -> list[list[Any]] | None:
    """The inverse of `pack_answers`; None where it does not hold an answer of the right kind to each request."""
    if not isinstance(kept, list) or len(kept) != len(prepared) or not all(isinstance(mine, list) for mine in kept):
        return None
    answers = [[tuple(answer) if isinstance(answer, list) else answer for answer in mine] for mine in kept]
    for one, mine in zip(prepared, answers, strict=True):
        if len(mine) != len(one.requests):
            return None
        if not all(type(answer) is _TYPES[one.kind] and _is_sound(answer) for answer in mine):
            return None
    return answers


def _is_sound(answer: Any) -> bool:
    if type(answer) is tuple:
        return len(answer) == 2 and type(answer[0]) is float and math.isfinite(answer[0]) and type(answer[1]) is bool
    return type(answer) is str or (type(answer) is float and math.isfinite(answer))


def _digest(entries: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(entry, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
