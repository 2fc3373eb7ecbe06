"""How long one job may take before its worker counts as hung."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

FIRST_SECONDS = 3600.0
FLOOR_SECONDS = 120.0
MEDIANS = 20.0
LONGEST = 4.0
ENOUGH = 3
REMEMBERED = 200


class Deadlines:
    """A fixed deadline, or one learnt from the jobs that ended well.

    Learnt for each split, because splits differ in size: the greatest of two minutes, 20 times the median and 4 times
    the longest duration. A merge that rambles may well generate ten times the tokens of a good one.

    Args:
        fixed_seconds: the user's own deadline, None = learn it.
    """

    def __init__(self, fixed_seconds: float | None = None) -> None:
        self._fixed = fixed_seconds
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def observe(self, split: str, seconds: float) -> None:
        """Take note of a job that ended well."""
        self._seen[split].append(seconds)

    def allowed_seconds(self, split: str) -> float:
        """Longest duration of a job on this split."""
        if self._fixed is not None:
            return self._fixed
        seen = self._seen[split]
        if len(seen) < ENOUGH:
            return FIRST_SECONDS
        return max(FLOOR_SECONDS, MEDIANS * statistics.median(seen), LONGEST * max(seen))
