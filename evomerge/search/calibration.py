"""What raw fitness is measured against: from scores to what optimizers are told, and whether constraints are kept.

Raw fitness is what the log keeps. Optimizers are told each objective divided by its anchor's score (retention, where
the anchor is an expert), so that objectives of different difficulty weigh the same. The anchors' scores are fixed
before the first candidate is asked and recorded, so a replay computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.search.anchors import Anchor, AnchorScores, Constraint
from evomerge.terms import Objective

Fitness = tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """Numbers that turn raw fitness into what an optimizer is told.

    Attributes:
        scales: ``(M,)`` positive divisors of the objectives.
        thresholds: bound of each constraint, in the objective's natural direction.
        expert_fitness: ``(E, M)`` told fitness of the experts, empty where they were not scored before.
        reference_point: ``(M,)`` of the hypervolume in told fitness, empty when there is none.
    """

    scales: tuple[float, ...]
    thresholds: tuple[float, ...] = ()
    expert_fitness: tuple[Fitness, ...] = ()
    reference_point: Fitness = ()

    def told(self, fitness: Sequence[float]) -> Fitness:
        """Told fitness ``(M,)`` of raw fitness ``(M,)``."""
        return tuple(value / scale for value, scale in zip(fitness, self.scales, strict=True))

    def constraint_values(
        self, fitness: Sequence[float], objectives: Sequence[Objective], constraints: Sequence[Constraint]
    ) -> tuple[float, ...]:
        """For each constraint by what share of its bound it is missed; zero or less where it is kept.

        A bound of zero has no shares; there it is the plain difference.

        Args:
            fitness: raw, ``(M,)`` maximised.
            objectives: M.
            constraints: in the order of ``thresholds``.
        """
        found = []
        for constraint, bound in zip(constraints, self.thresholds, strict=True):
            score = objectives[constraint.objective].natural(fitness[constraint.objective])
            missing = bound - score if constraint.at_least else score - bound
            found.append(missing / (abs(bound) or 1.0))
        return tuple(found)


def calibrate(
    objectives: Sequence[Objective],
    normalise: Sequence[Anchor],
    constraints: Sequence[Constraint],
    scores: AnchorScores,
    reference_point: Sequence[float] = (),
) -> Calibration:
    """Fix the numbers.

    Args:
        objectives: M.
        normalise: of each objective, whose score it is divided by.
        constraints: any number.
        scores: of base and experts on the search documents, as far as they are needed.
        reference_point: ``(M,)`` in raw fitness, empty when there is none.

    Raises:
        ValueError: an anchor's score is zero, so nothing can be divided by it; the message names it.
    """
    scales = []
    for number, (objective, anchor) in enumerate(zip(objectives, normalise, strict=True)):
        # The size of the score: a lowered metric is negated on both sides, so its share stays negative.
        scale = 1.0 if anchor.kind == "raw" else abs(scores.of(anchor, number))
        if scale == 0.0:
            raise ValueError(
                f"{objective.name}: {'the best expert' if str(anchor) == 'expert' else anchor} scores 0 on the search "
                "documents, so no share of it can be computed; set `normalise: raw` for it"
            )
        scales.append(scale)
    thresholds = []
    for constraint in constraints:
        anchored = constraint.anchor.kind != "raw"
        natural = objectives[constraint.objective].natural
        unit = natural(scores.of(constraint.anchor, constraint.objective)) if anchored else 1.0
        thresholds.append(constraint.factor * unit)
    plain = Calibration(tuple(scales), tuple(thresholds))
    return Calibration(
        plain.scales,
        plain.thresholds,
        tuple(plain.told(fitness) for fitness in scores.experts.values()),
        plain.told(reference_point) if reference_point else (),
    )
