"""What figures and tables of a front need to know: its members and the baselines on one split of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.terms import Objective


@dataclass(frozen=True)
class FrontMark:
    """A point on the documents of one split.

    Attributes:
        name: ``c12``, or the baseline's name.
        values: ``(M,)`` in their natural direction.
        low: lower ends of the intervals ``(M,)``, None where there is none.
        high: their upper ends.
        candidate: its id, None for baselines.
        is_member: it is on the front of the search documents.
        is_behind: on this split another member dominates it.
        is_best: it is the winner, or the best so far.
        is_knee: it is at the knee of the front.
        probability: that no member dominates it, over draws of other documents.
        dominated_by: names of the members that do here.
    """

    name: str
    values: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    candidate: int | None = None
    is_member: bool = False
    is_behind: bool = False
    is_best: bool = False
    is_knee: bool = False
    probability: float | None = None
    dominated_by: tuple[str, ...] = ()

    def interval(self, index: int) -> tuple[float, float] | None:
        """The interval of one objective."""
        low = self.low[index] if self.low else None
        high = self.high[index] if self.high else None
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class FrontSplit:
    """A front on the documents of one split; ``cloud`` holds the values of other candidates, for figures."""

    label: str
    marks: tuple[FrontMark, ...]
    cloud: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class FrontData:
    """A front, on search documents and, where it was scored on others, on these too."""

    objectives: tuple[Objective, ...]
    splits: tuple[FrontSplit, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the objectives with their units, as written at axes."""
        return tuple(axis_label(objective) for objective in self.objectives)


def axis_label(objective: Objective) -> str:
    """An objective's name, its unit, and where it is lowered, that."""
    notes = [
        *([objective.unit] if objective.unit else []),
        *([] if objective.higher_is_better else ["lower is better"]),
    ]
    return objective.name + (f" ({', '.join(notes)})" if notes else "")


def thinned_cloud(values: Sequence[tuple[float, ...]], most: int = 500) -> tuple[tuple[float, ...], ...]:
    """At most so many different points, evenly spaced in their order."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) <= most:
        return tuple(distinct)
    return tuple(distinct[int(index * len(distinct) / most)] for index in range(most))


def tooltip(mark: FrontMark, objectives: Sequence[Objective]) -> str:
    """One line on a point."""
    values = ", ".join(f"{objective.name} {value:.4g}" for objective, value in zip(objectives, mark.values))
    return f"{mark.name}: {values}"
