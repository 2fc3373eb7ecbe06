"""Coordinates for weights of which only the ratios count.

E weights that are divided by their sum have E - 1 degrees of freedom; searching all E would search a null direction.
The coordinates here break a stick: coordinate i in [0, 1] is the part that expert i takes of what the experts before it
left, and the last expert takes the rest. Inside the cube this is one to one with the inside of the simplex, its faces
(weights of 0) are reached, and equal weights 1/E are the coordinates 1/E, 1/(E-1), ..., 1/2.

Coordinates are rounded to multiples of about 1e-12 and computed with whole numbers, so that equal weights come out
exactly and coordinates survive the way to weights and back.
"""

from __future__ import annotations

from collections.abc import Sequence

# Divisible by 1 to 12, so that 1/E is on the grid for up to 12 experts.
GRID = 27720 * 2**25


def weights_of(coordinates: Sequence[float]) -> tuple[float, ...]:
    """Weights ``(E,)`` that sum to 1, of stick-breaking coordinates ``(E-1,)`` in [0, 1]."""
    weights: list[float] = []
    rest, scale = 1, 1
    for coordinate in coordinates:
        steps = round(coordinate * GRID)
        weights.append(rest * steps / (scale * GRID))
        rest, scale = rest * (GRID - steps), scale * GRID
    return (*weights, rest / scale)


def coordinates_of(weights: Sequence[float]) -> tuple[float, ...]:
    """Stick-breaking coordinates ``(E-1,)`` of weights ``(E,)`` >= 0 with a positive sum.

    Where nothing is left to break, the coordinate is that of equal parts.
    """
    count = len(weights)
    coordinates = []
    for index in range(count - 1):
        left = sum(weights[index:])
        share = weights[index] / left if left > 0 else 1 / (count - index)
        coordinates.append(round(share * GRID) / GRID)
    return tuple(coordinates)
