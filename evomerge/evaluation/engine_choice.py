"""Which of the faster ways to score suits a model, and what to do when one turns out not to.

Each kind of request has a ladder of engines, the fastest first, lm-eval's own loop last. What a model's configuration
tells rules engines out at once; the others are tried at start-up on a few requests against lm-eval's own loop, and
ruled out when they disagree.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from typing import Any

from transformers import DynamicCache

logger = logging.getLogger(__name__)

STOCK = "lm_eval"
LADDERS: dict[str, tuple[str, ...]] = {
    "loglikelihood": ("packed", "two_stage", "head_skip", STOCK),
    # No two texts share anything, and every position is read: there is nothing to pack.
    "loglikelihood_rolling": ("head_skip", STOCK),
    "generate_until": ("packed", "padded", STOCK),
}
_NEEDS = {
    "packed": ("attention_mask", "position_ids", "past_key_values", "logits_to_keep"),
    "two_stage": ("past_key_values", "logits_to_keep"),
    "padded": ("position_ids", "past_key_values", "logits_to_keep"),
    "head_skip": ("logits_to_keep",),
}
# Attention that adds or applies whatever four-dimensional mask it is given.
_MASKED_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Choice:
    """The engine for one set of requests.

    Attributes:
        engine: its name.
        passed_over: the faster ones and why they do not suit.
    """

    engine: str
    passed_over: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The engine, and why it is not a faster one."""
        why = "; ".join(f"not {engine}: {reason}" for engine, reason in self.passed_over)
        return f"{self.engine} ({why})" if why else self.engine


@dataclass
class EngineChooser:
    """Chooses engines for one model and remembers what was found out about them.

    Attributes:
        config: what the model is like.
        choices: the last choice for each kind of request.
    """

    config: Any
    choices: dict[str, Choice] = field(default_factory=dict)
    _ruled_out: dict[tuple[str, str], str] = field(default_factory=dict)
    _checked: dict[tuple[str, str], int] = field(default_factory=dict)

    def choose(self, kind: str, model: Any, longest: int, other: str | None = None) -> Choice:
        """The fastest engine that suits.

        Args:
            kind: of the requests.
            model: the live model.
            longest: tokens of the longest request, its answer included.
            other: why only lm-eval's own loop answers these requests, whatever the model.
        """
        passed_over = []
        engine = STOCK
        for engine in LADDERS[kind]:
            if engine == STOCK:
                break
            reason = other or self._ruled_out.get((kind, engine)) or why_not(engine, model, self.config, longest)
            if reason is None:
                break
            passed_over.append((engine, reason))
        # The same reason again and again is one reason.
        distinct = {reason: name for name, reason in reversed(passed_over)}
        choice = Choice(engine, tuple((name, reason) for name, reason in passed_over if distinct[reason] == name))
        if self.choices.get(kind) != choice:
            logger.info("%s: engine %s", kind, choice)
        self.choices[kind] = choice
        return choice

    def needs_check(self, kind: str, engine: str, longest: int) -> bool:
        """Whether an engine has not been tried on requests about as long as these; it counts as tried from now on."""
        if engine == STOCK or self._checked.get((kind, engine), 0) * 1.5 >= longest:
            return False
        self._checked[kind, engine] = longest
        return True

    def rule_out(self, kind: str, engine: str, reason: str) -> None:
        """An engine does not give lm-eval's answers."""
        logger.warning("%s: engine %s does not suit this model: %s", kind, engine, reason)
        self._ruled_out[kind, engine] = reason

    @property
    def notes(self) -> dict[str, str]:
        """Each kind of request and how it is scored."""
        return {kind: str(choice) for kind, choice in self.choices.items()}


def why_not(engine: str, model: Any, config: Any, longest: int) -> str | None:
    """What in a model's configuration rules an engine out; None when nothing does.

    Args:
        engine: its name.
        model: the live model.
        config: what the model is like, outside any route.
        longest: tokens of the longest sequence.
    """
    if config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    parameters = inspect.signature(model.forward).parameters
    missing = [name for name in _NEEDS[engine] if name not in parameters]
    if missing:
        return f"the model's forward takes no {missing[0]}"
    if engine == "head_skip":
        return None
    text = config.get_text_config(decoder=True)
    layers = DynamicCache(config=text).layers
    kinds = {type(layer).__name__ for layer in layers}
    if not kinds <= {"DynamicLayer", "DynamicSlidingWindowLayer"}:
        return f"the model's cache has layers of other kinds ({', '.join(sorted(kinds))})"
    if engine == "two_stage":
        return None
    windows = [layer.sliding_window for layer in layers if getattr(layer, "sliding_window", None) is not None]
    if windows and min(windows) < longest:
        return f"a sequence of {longest} tokens is longer than the model's attention window ({min(windows)})"
    attention = getattr(text, "_attn_implementation", None)
    if engine == "packed" and attention not in _MASKED_ATTENTION:
        return f"attention {attention!r} takes no mask of our own"
    if engine == "packed" and getattr(text, "alibi", False):
        return "ALiBi counts positions by the place in the row"
    return None
