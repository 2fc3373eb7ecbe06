"""The objectives of an experiment: names, directions, weights, and where their hypervolume starts."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.terms import Objective


def reference_point_of(objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The corner from which hypervolume is measured: zero everywhere, none when a metric is to be lowered.

    Metrics that are to be raised (accuracy, match, F1) start at zero; a lowered one has no natural worst value.
    """
    if all(objective.higher_is_better for objective in objectives):
        return (0.0,) * len(objectives)
    return ()
