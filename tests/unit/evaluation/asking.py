"""Requests over random texts of the tiny tokenizer's characters."""

from __future__ import annotations

import random
from typing import Any

from lm_eval.api.instance import Instance


def prompts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice("abcdef 123.?\n") for _ in range(rng.randint(1, 30))) + "x" for _ in range(count)]


def generations(texts: list[str], **arguments: Any) -> list[Instance]:
    return [
        Instance("generate_until", {}, (text, dict(arguments)), 0, ("task", index, 1))
        for index, text in enumerate(texts)
    ]


def likelihoods(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, 0, ("task", index, 1)) for index, pair in enumerate(pairs)]
