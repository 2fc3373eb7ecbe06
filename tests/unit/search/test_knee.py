"""The knee of fronts whose knee is known."""

import numpy as np
import pytest

from evomerge.search.knee import knee


def test_the_knee_of_a_bent_front_is_its_corner() -> None:
    front = [[1.0, 0.0], [0.95, 0.5], [0.9, 0.85], [0.6, 0.9], [0.0, 1.0]]
    assert knee(front) == 2
    assert knee(np.array(front)[::-1]) == 2


def test_units_and_offsets_do_not_matter() -> None:
    front = np.array([[1.0, 0.0], [0.95, 0.5], [0.9, 0.85], [0.6, 0.9], [0.0, 1.0]])
    assert knee(front * [1e9, 1e-6] + [5e9, -3.0]) == 2


def test_of_a_circle_it_is_the_middle_and_of_a_sphere_too() -> None:
    angle = np.linspace(0, np.pi / 2, 21)
    assert knee(np.stack([np.cos(angle), np.sin(angle)], axis=1)) == 10
    corner = np.ones(3) / np.sqrt(3)
    rows = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.8, 0.6, 0], [0, 0.6, 0.8], corner]
    assert knee(rows) == 5


def test_the_plane_goes_through_the_extreme_points_not_the_corners() -> None:
    # The extreme points are high in the third objective too, so the plane lies higher on that side.
    rows = [[1.0, 0.0, 0.6], [0.0, 1.0, 0.6], [0.0, 0.0, 1.0], [0.9, 0.9, 0.0], [0.3, 0.3, 0.85]]
    extremes = np.array(rows)[[0, 1, 2]]
    normal = np.linalg.solve(extremes, np.ones(3))
    expected = int(np.argmax(np.array(rows) @ normal))
    assert knee(rows) == expected == 4


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ([[2.0, 3.0]], 0),
        ([[1.0, 0.0], [0.0, 1.0]], 0),  # two points: no knee, the first of equally near ones
        ([[1.0, 0.0], [0.7, 0.3], [0.5, 0.5], [0.0, 1.0]], 2),  # straight: nearest to the ideal
        ([[1.0, 0.0], [0.3, 0.3], [0.0, 1.0]], 1),  # hollow
        ([[0.5, 0.0, 7.0], [0.4, 0.35, 7.0], [0.0, 0.5, 7.0]], 1),  # an objective in which all are equal
        ([[0.5, 0.5], [0.5, 0.5]], 0),
        ([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.6, 0.6]], 2),  # one point is extreme twice
        ([], None),
        ([[np.nan, 1.0], [np.inf, 0.0]], None),
    ],
)
def test_where_there_is_no_plane_or_no_bulge(front: list[list[float]], expected: int | None) -> None:
    assert knee(front) == expected


def test_dominated_and_failed_rows_are_never_the_knee() -> None:
    rows = [[0.0, 1.0], [0.85, 0.85], [1.0, 0.0], [0.84, 0.84], [np.nan, 5.0], [0.85, 0.85]]
    assert knee(rows) == 1
