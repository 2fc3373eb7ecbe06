"""What the scheduler asks of a pool of worker processes, and the plain data that comes back from it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.runtime.executor import Job, WorkerReport
from evomerge.terms import Evaluation, FailureKind

Handle = Any
Call = Hashable


@dataclass(frozen=True)
class LogLine:
    """A log record of a worker process, as text, traceback included."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class Started:
    """The worker is built."""

    report: WorkerReport
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True)
class Ran:
    """The worker finished a job. ``started``/``finished`` are Unix times of its own clock."""

    evaluation: Evaluation
    started: float
    finished: float
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True)
class Raised:
    """The call ended in an exception; the process lives on. ``by_user`` marks a UserError."""

    message: str
    by_user: bool = False
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True)
class Lost:
    """The process is gone, and every call on it."""

    kind: FailureKind
    message: str


Reply = Started | Ran | Raised | Lost


class WorkerPool(Protocol):
    """Processes that hold one worker each. Calls on one worker run in order, one at a time."""

    def launch(self, index: int) -> tuple[Handle, Call]:
        """Start a process for slot ``index`` and build its worker; the call ends in Started, Raised or Lost."""
        ...

    def run(self, handle: Handle, job: Job) -> Call:
        """Queue a job on a worker, also on one that is still starting."""
        ...

    def collect(self, calls: Sequence[Call], timeout_seconds: float) -> list[tuple[Call, Reply]]:
        """Those of the calls that have ended, after at most the timeout; at once when there are some.

        Asking again about an ended call gives the same reply again.
        """
        ...

    def kill(self, handle: Handle) -> None:
        """End a process for good, whatever it is doing. Never raises."""
        ...

    def close(self) -> None:
        """End every process and free what the pool holds, within seconds."""
        ...
