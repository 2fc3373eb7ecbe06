"""Feasibility first: the order of candidates under constraints, for optimizers that only look at ranks.

Reference: Deb 2000, An efficient constraint handling method for genetic algorithms,
https://doi.org/10.1016/S0045-7825(99)00389-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def feasible_first(values: Sequence[float | None], violations: Sequence[float]) -> list[float]:
    """Ranks to minimise: candidates that keep every constraint by value, then the others by violation.

    Args:
        values: ``(C,)`` to minimise, None for a failure.
        violations: ``(C,)``, zero where all constraints are kept.

    Returns:
        ``(C,)`` whole numbers from 0, equal ones for equal candidates; +inf for failures.
    """
    keys = [
        None if value is None else (violation, 0.0 if violation > 0 else value)
        for value, violation in zip(values, violations, strict=True)
    ]
    places = {key: float(place) for place, key in enumerate(sorted({key for key in keys if key is not None}))}
    return [math.inf if key is None else places[key] for key in keys]
