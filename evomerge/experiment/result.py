"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_dir: the run directory.
        reason: ``evaluations``, ``wall_time``, ``exhausted``, ``interrupted`` or the optimizer's own reason.
        summary: what summary.json holds, None when interrupted.
        num_failed: evaluations without a fitness.
        earlier: of a staged run, how the stages before the last one ended.
    """

    run_dir: Path
    reason: str
    summary: dict[str, Any] | None
    num_failed: int
    earlier: tuple[RunResult, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 2 ended with failures, 130 interrupted and resumable."""
        if self.reason == "interrupted":
            return 130
        return 2 if self.num_failed else 0
