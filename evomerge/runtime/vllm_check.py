"""Whether a vLLM engine really scores the weights it was given last, found out on a few prompts before any candidate.

Weights are swapped from A to B and back. A must answer as before; B, whose weights are half of A's, must answer unlike
A, and as it answers when nothing that was computed earlier may be read: prompts with a salt of their own share no
cached keys and values with others. Texts and log-probabilities are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

SHARED_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 36, 44, 8  # two cache blocks of 16 and some
NUM_PROMPTS = 4
# Equal requests are scheduled equally, so rounding repeats; other weights are off by far more.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answers:
    """Tokens of each prompt's answer and their log-probabilities."""

    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, entries: Sequence[dict[str, Any]]) -> Answers:
        """From what the server sends."""
        return cls(
            tuple(tuple(entry["tokens"]) for entry in entries), tuple(tuple(entry["logprobs"]) for entry in entries)
        )

    def apart(self, other: Answers) -> float:
        """Largest difference of log-probabilities; infinite where the tokens differ."""
        if self.tokens != other.tokens:
            return float("inf")
        pairs = [
            abs(mine - its)
            for left, right in zip(self.logprobs, other.logprobs, strict=True)
            for mine, its in zip(left, right, strict=True)
        ]
        return max((gap if gap == gap else float("inf") for gap in pairs), default=0.0)


def check_prompts(vocab_size: int, max_length: int) -> list[list[int]]:
    """Prompts that begin alike, of tokens from all over the vocabulary; the same on every machine."""
    length = max(2, min(PROMPT_TOKENS, max_length - NEW_TOKENS))
    shared = min(SHARED_TOKENS, length - 1)
    return [
        [(7919 * (place if place < shared else place + 101 * (row + 1)) + 31) % vocab_size for place in range(length)]
        for row in range(NUM_PROMPTS)
    ]


def halved(reference: Source) -> Recipe:
    """The reference with half of every weight: a model whose keys, values and logits are all others."""
    return Recipe(Merge("passthrough", (("whole", reference),), parameters=(("scale", (Rule(0.5),)),)))


def swap_problem(
    apply: Callable[[Recipe], object], ask: Callable[[str | None], Answers], reference: Source, loaded: bool
) -> str | None:
    """What is wrong with swapping weights, None when nothing is. Afterwards the engine holds the reference.

    Args:
        apply: swaps a recipe in.
        ask: answers to the check's prompts, with a salt or none.
        reference: A.
        loaded: whether the engine's own loader has just put A there; else it is swapped in first.
    """
    whole, half = Recipe(reference), halved(reference)
    if not loaded:
        apply(whole)
    first = ask(None)
    apply(half)
    other, fresh = ask(None), ask("evomerge-check")
    apply(whole)
    again = ask(None)
    if first.apart(other) <= TOLERANCE:
        return "weights that were swapped in changed no answer"
    if other.apart(fresh) > TOLERANCE:
        return (
            "after a swap, answers depend on what earlier weights left in the prefix cache "
            f"({_gap(other.apart(fresh))} from an uncached answer)"
        )
    if first.apart(again) > TOLERANCE:
        whose = "its own loader's" if loaded else "the first"
        return f"the reference swapped in again does not answer as with {whose} weights ({_gap(first.apart(again))})"
    return None


def _gap(value: float) -> str:
    return "other tokens" if value == float("inf") else f"log-probabilities differ by {value:.3g}"
