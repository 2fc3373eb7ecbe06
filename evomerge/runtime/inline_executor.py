"""Runs candidates in this process, one in each ``wait``: for tests, debugging, and machines without Ray."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace

from evomerge.runtime.executor import CandidateWorker, Job, Outcome, WorkerFactory, WorkerReport

LOG = logging.getLogger(__name__)


class InlineExecutor:
    """One worker in the driver's own process and thread.

    A hanging or dying evaluation cannot be survived here; everything else behaves as on Ray.

    Args:
        factory: builds the worker, at once.

    Raises:
        UserError: models or tasks cannot be used.
    """

    def __init__(self, factory: WorkerFactory) -> None:
        self._worker: CandidateWorker | None = factory(0)
        self._reports = (self._worker.report(),)
        self._queue: deque[tuple[Job, float]] = deque()

    @property
    def num_workers(self) -> int:
        """Always one."""
        return 1

    @property
    def num_pending(self) -> int:
        """Jobs submitted whose outcome has not been handed out."""
        return len(self._queue)

    @property
    def reports(self) -> tuple[WorkerReport, ...]:
        """What the worker says of itself."""
        return self._reports

    def submit(self, job: Job) -> None:
        """Queue a job for the next ``wait``."""
        self._queue.append((job, time.time()))

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Run the oldest job to its end and hand it out, however long it takes."""
        assert self._worker is not None, "wait after close"
        if not self._queue:
            return []
        job, submitted = self._queue[0]
        started = time.time()
        evaluation = self._worker.run(job)
        # Taken off the queue only now: an interrupted job stays pending.
        self._queue.popleft()
        seconds = replace(evaluation.seconds, wait=max(0.0, started - submitted))
        return [Outcome(job, replace(evaluation, seconds=seconds), 0, 1, started, time.time())]

    def close(self) -> None:
        """Let go of the model."""
        self._worker = None
        self._queue.clear()
