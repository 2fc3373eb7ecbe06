"""Candidates that were stopped before their last document, among those that were not: the one policy for all ranks.

Nothing that was scored on some documents is ever compared with what was scored on all. A candidate is stopped because
it is behind, so within what an optimizer ranks together every complete candidate comes first, then the stopped ones by
their standing, then failures. Optimizers that look at ranks only lose nothing but the order of candidates they would
have put near the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Standing = tuple[float, ...]


def stopped_last(values: Sequence[float], standings: Sequence[Standing | None]) -> list[float]:
    """Values to minimise, with numbers for stopped candidates that keep the order.

    Args:
        values: ``(C,)`` to minimise; +inf for those without a fitness.
        standings: ``(C,)`` of stopped candidates where they stand among each other, larger is better; None for others.

    Returns:
        ``(C,)``: the given values; for the stopped ones the worst finite value, 0 where there is none, plus 1, 2, ...
        with equal numbers for equal standings; +inf stays for failures.
    """
    worst = max((value for value in values if math.isfinite(value)), default=0.0)
    places = {one: at for at, one in enumerate(sorted({one for one in standings if one is not None}, reverse=True), 1)}
    return [value if one is None else worst + places[one] for value, one in zip(values, standings, strict=True)]
