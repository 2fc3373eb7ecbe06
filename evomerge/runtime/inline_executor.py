"""Runs candidates in this process, one in each ``wait``: for tests, debugging, and machines without Ray."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from dataclasses import replace

from evomerge.evaluation.failures import WorkerBroken
from evomerge.runtime.executor import CandidateWorker, Job, Outcome, WorkerFactory, WorkerReport, WorkersLost
from evomerge.terms import Evaluation, Failure, Seconds

LOG = logging.getLogger(__name__)


class InlineExecutor:
    """One worker in the driver's own process and thread.

    A hanging or dying evaluation cannot be survived here; everything else behaves as on Ray.

    Args:
        factory: builds the worker, at once.
        max_attempts: how often a job may break its worker before it counts as failed.

    Raises:
        UserError: models or tasks cannot be used.
        WorkersLost: the worker cannot be started.
    """

    def __init__(self, factory: WorkerFactory, max_attempts: int = 2) -> None:
        self._factory, self._max_attempts = factory, max_attempts
        self._worker: CandidateWorker | None = None
        self._start()
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
        evaluation, attempts = self._run(job)
        # Taken off the queue only now: an interrupted job stays pending.
        self._queue.popleft()
        seconds = replace(evaluation.seconds, wait=max(0.0, started - submitted))
        return [Outcome(job, replace(evaluation, seconds=seconds), 0, attempts, started, time.time())]

    def close(self) -> None:
        """Let go of the model."""
        self._end_worker()
        self._queue.clear()

    def _start(self) -> None:
        try:
            self._worker = self._factory(0)
        except WorkerBroken as error:
            raise WorkersLost(f"the worker does not start: {error}") from error
        self._reports = (self._worker.report(),)

    def _end_worker(self) -> None:
        # Only workers with something beside this process have anything to end.
        close = getattr(self._worker, "close", None)
        self._worker = None
        if close is not None:
            close()

    def _run(self, job: Job) -> tuple[Evaluation, int]:
        """The job's evaluation and how often it was tried; a worker that breaks is replaced."""
        for attempt in itertools.count(1):
            assert self._worker is not None
            began = time.perf_counter()
            try:
                return self._worker.run(job), attempt
            except WorkerBroken as error:
                LOG.warning("worker lost during %s (attempt %d of %d): %s", job.key, attempt, self._max_attempts, error)
                self._end_worker()
                self._start()
                if attempt >= self._max_attempts:
                    failure = Failure(error.kind, str(error))
                    return Evaluation(seconds=Seconds(forward=time.perf_counter() - began), failure=failure), attempt
        raise AssertionError("counting never ends")
