"""Scores that others are measured against: those of the base and the experts, and how users name them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evomerge.errors import did_you_mean

Kind = Literal["raw", "base", "expert"]


@dataclass(frozen=True)
class Anchor:
    """Whose score is meant: nobody's (``raw``), the base's, one expert's, or the best expert's (no name)."""

    kind: Kind
    expert: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.expert}".strip()


@dataclass(frozen=True)
class AnchorScores:
    """Search fitness of the models that are not merged.

    Attributes:
        base: ``(M,)`` maximised, None where there is no base or it was not scored.
        experts: ``(M,)`` by name.
    """

    base: tuple[float, ...] | None = None
    experts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def of(self, anchor: Anchor, objective: int) -> float:
        """The anchor's maximised fitness in one objective; of several experts the best.

        Raises:
            KeyError: it was not scored.
        """
        if anchor.kind == "base":
            if self.base is None:
                raise KeyError("base")
            return self.base[objective]
        if anchor.expert:
            return self.experts[anchor.expert][objective]
        if not self.experts:
            raise KeyError("expert")
        return max(scores[objective] for scores in self.experts.values())


def parse_anchor(text: str, experts: Sequence[str], has_base: bool) -> Anchor:
    """``raw``, ``base``, ``expert`` (the best one in each objective) or ``expert NAME``.

    Args:
        text: what the user wrote.
        experts: names in the experiment.
        has_base: whether the experiment has a base.

    Raises:
        ValueError: anything else; the message says what was expected.
    """
    kind, _, name = text.strip().partition(" ")
    name = name.strip()
    if kind in ("raw", "base") and not name:
        if kind == "base" and not has_base:
            raise ValueError("the experiment has no models.base, so nothing can be measured against it")
        return Anchor("raw" if kind == "raw" else "base")
    if kind == "expert":
        if name and name not in experts:
            raise ValueError(f"no expert is called {name!r}. {did_you_mean(name, experts)}")
        return Anchor("expert", name)
    raise ValueError(f"expected raw, base, expert or expert NAME, got {text.strip()!r}")


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONSTRAINT = re.compile(rf"\s*(\S+)\s*(>=|<=)\s*(?:({_NUMBER})\s*(?:\*\s*(.+))?|([A-Za-z].*))\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on one objective's natural score.

    Attributes:
        text: as the user wrote it, with single spaces.
        objective: its number.
        at_least: whether the bound is a lower one.
        factor: the bound, or what the anchor's score is multiplied by.
        anchor: ``raw`` where the bound is a plain number.
    """

    text: str
    objective: int
    at_least: bool
    factor: float
    anchor: Anchor


def parse_constraint(text: str, objectives: Sequence[str], experts: Sequence[str], has_base: bool) -> Constraint:
    """``NAME >= NUMBER``, ``NAME >= NUMBER * ANCHOR`` or ``NAME >= ANCHOR``; or the same with ``<=``.

    Args:
        text: what the user wrote, for example ``zoo_math_en >= 0.9 * expert math``.
        objectives: names in the order of the fitness.
        experts: names in the experiment.
        has_base: whether the experiment has a base.

    Raises:
        ValueError: the message says what was expected.
    """
    example = "for example `zoo_math_en >= 0.9 * expert math` or `zoo_capitals >= 0.3`"
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(f"expected an objective, >= or <=, and a number or score, {example}; got {text!r}")
    name, sense, number, scaled, alone = match.groups()
    if name not in objectives:
        raise ValueError(f"no searched objective is called {name!r}. {did_you_mean(name, objectives)}")
    written = scaled or alone
    anchor = Anchor("raw") if written is None else parse_anchor(written, experts, has_base)
    if written is not None and anchor.kind == "raw":
        raise ValueError(f"expected base, expert or expert NAME, got {written.strip()!r}; {example}")
    factor = 1.0 if number is None else float(number)
    return Constraint(" ".join(text.split()), objectives.index(name), sense == ">=", factor, anchor)
