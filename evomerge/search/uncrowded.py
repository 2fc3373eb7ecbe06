"""Uncrowded hypervolume improvement for two objectives: how much a candidate adds to a front, or how far it is off it.

Where plain improvement is zero on the whole dominated side, this goes on falling with the distance to the front, so an
optimizer is led to gaps of the front from anywhere.

Reference: Toure et al. 2019, Uncrowded hypervolume improvement: COMO-CMA-ES and the Sofomore framework,
https://arxiv.org/abs/1904.08823, eq. 7.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

Point = tuple[float, float]


def staircase(fitness: Sequence[Sequence[float]]) -> list[Point]:
    """The non-dominated points, each once, by rising first and so falling second objective.

    Args:
        fitness: ``(F, 2)``, maximised and finite.
    """
    found: list[Point] = []
    for first, second in sorted(((float(row[0]), float(row[1])) for row in fitness), reverse=True):
        if not found or second > found[-1][1]:
            found.append((first, second))
    return found[::-1]


def uncrowded_improvement(fitness: Sequence[float], front: Sequence[Point], reference: Sequence[float]) -> float:
    """Hypervolume a candidate adds to a front; where it adds none, minus its distance to where it would.

    Args:
        fitness: ``(2,)``, maximised.
        front: as ``staircase`` gives it, without the candidate; points beyond the reference do not matter.
        reference: ``(2,)``, the corner of the hypervolume.

    Returns:
        Positive for candidates that add volume, zero for copies of front members, else negative.
    """
    x, y = float(fitness[0]), float(fitness[1])
    low_x, low_y = float(reference[0]), float(reference[1])
    steps = [point for point in front if point[0] > low_x and point[1] > low_y]
    if (x, y) in steps:
        return 0.0
    beyond = bisect_left(
        [point[0] for point in steps], x
    )  # from here on the front is at least as good in the first objective
    dominated = beyond < len(steps) and steps[beyond][1] >= y
    if x <= low_x or y <= low_y or dominated:
        return -_distance(x, y, steps, (low_x, low_y))
    # Strips from left to right: at each first coordinate the front is as high as its next point to the right.
    inner = [point for point in steps if point[0] <= x and point[1] <= y]
    floor = steps[beyond][1] if beyond < len(steps) else low_y
    left = max((point[0] for point in steps if point[1] > y), default=low_x)
    edges = [left, *(point[0] for point in inner), x]
    floors = [*(point[1] for point in inner), floor]
    return math.fsum((edges[i + 1] - edges[i]) * (y - floors[i]) for i in range(len(floors)))


def _distance(x: float, y: float, steps: Sequence[Point], reference: Point) -> float:
    """To the nearest inner corner of the staircase, beyond which a point adds volume."""
    xs = [reference[0], *(point[0] for point in steps)]
    ys = [*(point[1] for point in steps), reference[1]]
    return min(math.hypot(max(0.0, corner_x - x), max(0.0, corner_y - y)) for corner_x, corner_y in zip(xs, ys))
