"""A pool whose workers live in simulated time: each job takes as long as it is told to, and no process is started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evomerge.runtime.executor import Job, WorkerReport
from evomerge.runtime.worker_pool import Lost, Ran, Reply, Started
from evomerge.terms import Evaluation

FOREVER = float("inf")


@dataclass
class SimulatedPool:
    """``duration`` and ``reply`` say how long each job takes and how it ends; ``start_reply`` how each start ends."""

    duration: Callable[[Job], float] = lambda job: 1.0
    reply: Callable[[Job], Reply] = lambda job: Ran(Evaluation(fitness=(float(job.seed),)), time.time(), time.time())
    start_reply: Callable[[int], Reply] = lambda index: Started(WorkerReport(index, "cpu", "float32", 0, "", 0.0))
    start_seconds: float = 0.5
    now: float = 0.0
    launches: int = 0
    killed: list[int] = field(default_factory=list)
    closed: bool = False
    busy_seconds: float = 0.0
    _calls: dict[int, tuple[float, Reply]] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def launch(self, index: int) -> tuple[int, int]:
        self.launches += 1
        return self.launches, self._call(self.start_seconds, self.start_reply(index))

    def run(self, handle: int, job: Job) -> int:
        assert handle not in self.killed, "a job for a dead worker"
        self.busy_seconds += self.duration(job)
        return self._call(self.duration(job), self.reply(job))

    def collect(self, calls: Sequence[int], timeout_seconds: float) -> list[tuple[int, Reply]]:
        first = min(self._calls[call][0] for call in calls)
        self.now = max(self.now, min(first, self.now + timeout_seconds))
        return [(call, self._calls[call][1]) for call in calls if self._calls[call][0] <= self.now]

    def kill(self, handle: int) -> None:
        self.killed.append(handle)

    def close(self) -> None:
        self.closed = True

    def _call(self, seconds: float, reply: Reply) -> int:
        self._calls[len(self._calls)] = (self.now + seconds, reply)
        return len(self._calls) - 1


def lost(kind: str) -> Lost:
    from evomerge.terms import FailureKind

    return Lost(FailureKind(kind), f"simulated {kind}")
