"""What scoring one fitness gives, before directions are turned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.terms import DocumentScores


@dataclass(frozen=True)
class ObjectiveScore:
    """One objective of one candidate.

    Attributes:
        name: of the objective.
        value: in the metric's natural direction.
        table: per-document values, None where the metric has none.
        metrics: further scalars worth showing.
    """

    name: str
    value: float
    table: DocumentScores | None
    metrics: Mapping[str, float] = field(default_factory=dict)
