"""Gives jobs to worker processes and sees each job through: deadlines, replacement of lost workers, retries.

Every worker has one job at a time. Free workers are fed before outcomes are handed out, so they work while the driver
records and tells; a second job queued on the worker measured no gain over that.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from evomerge.errors import UserError
from evomerge.runtime.deadlines import Deadlines
from evomerge.runtime.executor import Job, Outcome, WorkerReport, WorkersLost
from evomerge.runtime.worker_pool import Call, Handle, LogLine, Lost, Raised, Ran, Reply, Started, WorkerPool
from evomerge.terms import Evaluation, Failure, FailureKind, Seconds

LOG = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_START_ATTEMPTS = 3
START_SECONDS = 1800.0
FIRST_LOSSES = 4


@dataclass
class _Task:
    """A submitted job and how often it has lost its worker."""

    job: Job
    submitted: float
    losses: int = 0


@dataclass
class _Slot:
    """One place for a worker, whoever fills it at the moment; ``began`` is the start of its task (monotonic)."""

    index: int
    handle: Handle = None
    call: Call | None = None
    task: _Task | None = None
    is_ready: bool = False
    is_retired: bool = False
    began: float = 0.0
    start_failures: int = 0


class Scheduler:
    """An Executor over a pool of worker processes.

    Args:
        pool: starts, feeds and ends the processes.
        num_workers: processes to keep alive.
        max_attempts: how often a job may lose its worker before it counts as failed.
        deadlines: when a job counts as hung.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pool: WorkerPool,
        num_workers: int,
        max_attempts: int = 2,
        deadlines: Deadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._max_attempts = max_attempts
        self._deadlines = deadlines or Deadlines()
        self._clock = clock
        self._queue: deque[_Task] = deque()
        self._finished: list[Outcome] = []
        self._reports: dict[int, WorkerReport] = {}
        self._closed = False
        self._ever_ran = False
        self._losses = 0
        self._slots = [_Slot(index) for index in range(num_workers)]
        for slot in self._slots:
            self._launch(slot)

    @property
    def num_workers(self) -> int:
        """Workers that are alive or being started."""
        return sum(not slot.is_retired for slot in self._slots)

    @property
    def num_pending(self) -> int:
        """Jobs submitted whose outcome has not been handed out."""
        return len(self._queue) + len(self._finished) + self.num_busy

    @property
    def num_busy(self) -> int:
        """Workers that run a job."""
        return sum(slot.task is not None for slot in self._slots)

    @property
    def reports(self) -> tuple[WorkerReport, ...]:
        """The latest report of each worker that has started."""
        return tuple(self._reports[index] for index in sorted(self._reports))

    def submit(self, job: Job) -> None:
        """Queue a job; an idle worker gets it at once."""
        assert not self._closed, "submit after close"
        self._queue.append(_Task(job, time.time()))
        self._feed()

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Outcomes that have arrived, after at most the timeout; empty when none has.

        Raises:
            UserError: a worker cannot start because of what the user gave.
            WorkersLost: no worker can be kept alive.
        """
        assert not self._closed, "wait after close"
        if not self.num_workers:
            raise WorkersLost("no worker is left")
        end = self._clock() + timeout_seconds
        while True:
            calls = {slot.call: slot for slot in self._slots if slot.call is not None}
            patience = 0.0 if self._finished else max(0.0, min(POLL_SECONDS, end - self._clock()))
            for call, reply in self._pool.collect(list(calls), patience) if calls else []:
                self._take(calls[call], reply)
            self._end_late_calls()
            # Workers go on while the driver deals with what is handed out.
            self._feed()
            if self._finished or self._clock() >= end or not (calls or self._queue):
                outcomes, self._finished = self._finished, []
                return outcomes

    def close(self) -> None:
        """End all workers, also in the middle of jobs; pending jobs are dropped."""
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        for slot in self._slots:
            if not slot.is_retired:
                self._pool.kill(slot.handle)
            slot.call = slot.task = None
        self._pool.close()

    def _launch(self, slot: _Slot) -> None:
        slot.is_ready, slot.began = False, self._clock()
        slot.handle, slot.call = self._pool.launch(slot.index)

    def _feed(self) -> None:
        for slot in self._slots:
            if self._queue and slot.is_ready and slot.task is None:
                slot.task = self._queue.popleft()
                slot.call, slot.began = self._pool.run(slot.handle, slot.task.job), self._clock()

    def _take(self, slot: _Slot, reply: Reply) -> None:
        """Act on one ended call."""
        if isinstance(reply, Started | Ran | Raised):
            self._relay(slot, reply.log)
        if slot.task is None:
            self._take_start(slot, reply)
        elif isinstance(reply, Lost):
            self._replace(slot, slot.task, reply)
        else:
            self._take_run(slot, slot.task, reply)

    def _take_start(self, slot: _Slot, reply: Reply) -> None:
        assert not isinstance(reply, Ran), "a start call cannot end a job"
        if isinstance(reply, Started):
            slot.call, slot.is_ready, slot.start_failures = None, True, 0
            self._reports[slot.index] = reply.report
        elif isinstance(reply, Raised) and reply.by_user:
            raise UserError(reply.message)
        else:
            self._start_failed(slot, reply.message)

    def _start_failed(self, slot: _Slot, message: str) -> None:
        slot.start_failures += 1
        attempt = f"{slot.start_failures} of {MAX_START_ATTEMPTS}"
        LOG.warning("worker %d did not start (%s): %s", slot.index, attempt, message)
        self._pool.kill(slot.handle)
        if slot.start_failures < MAX_START_ATTEMPTS:
            self._launch(slot)
            return
        slot.is_retired, slot.call = True, None
        if not self.num_workers:
            raise WorkersLost(f"no worker could be started; the last one failed with: {message}")
        LOG.warning("going on with %d worker(s)", self.num_workers)

    def _take_run(self, slot: _Slot, task: _Task, reply: Reply) -> None:
        assert isinstance(reply, Ran | Raised), "a job cannot end a start call"
        if isinstance(reply, Raised):
            self._fail(slot, task, Failure(FailureKind.EXCEPTION, reply.message), task.losses + 1)
        else:
            if reply.evaluation.failure is None:
                self._ever_ran = True
            # What came out of the cache says nothing about how long a job takes.
            if reply.evaluation.ok and not reply.evaluation.known_documents:
                self._deadlines.observe(task.job.split, reply.finished - reply.started)
            waited = max(0.0, reply.started - task.submitted)
            evaluation = replace(reply.evaluation, seconds=replace(reply.evaluation.seconds, wait=waited))
            outcome = Outcome(task.job, evaluation, slot.index, task.losses + 1, reply.started, reply.finished)
            self._finished.append(outcome)
        slot.call = slot.task = None

    def _replace(self, slot: _Slot, task: _Task, lost: Lost) -> None:
        """Put a new worker in place of a lost one; its job is queued again or, after too many losses, fails."""
        task.losses += 1
        self._losses += 1
        attempt = f"{task.losses} of {self._max_attempts}"
        LOG.warning("worker %d lost during %s (attempt %s): %s", slot.index, task.job.key, attempt, lost.message)
        self._pool.kill(slot.handle)
        if task.losses < self._max_attempts:
            self._queue.appendleft(task)
        else:
            self._fail(slot, task, Failure(lost.kind, lost.message), task.losses)
        slot.task = None
        if not self._ever_ran and self._losses >= FIRST_LOSSES + len(self._slots) * self._max_attempts:
            raise WorkersLost(f"{self._losses} workers were lost before any job ended; the last one: {lost.message}")
        self._launch(slot)

    def _fail(self, slot: _Slot, task: _Task, failure: Failure, attempts: int) -> None:
        now, spent = time.time(), self._clock() - slot.began
        seconds = Seconds(forward=spent, wait=max(0.0, now - spent - task.submitted))
        evaluation = Evaluation(seconds=seconds, failure=failure)
        self._finished.append(Outcome(task.job, evaluation, slot.index, attempts, now - spent, now))

    def _end_late_calls(self) -> None:
        for slot in self._slots:
            if slot.call is None:
                continue
            split = slot.task.job.split if slot.task else None
            allowed = self._deadlines.allowed_seconds(split) if split else START_SECONDS
            # A call that ended while the driver was busy elsewhere is not late.
            if self._clock() - slot.began <= allowed or self._pool.collect([slot.call], 0.0):
                continue
            if slot.task is None:
                self._start_failed(slot, f"not ready after {allowed:.0f} s")
            else:
                message = f"no result within the deadline of {allowed:.0f} s (runtime.deadline sets another one)"
                self._replace(slot, slot.task, Lost(FailureKind.TIMEOUT, message))

    def _relay(self, slot: _Slot, lines: tuple[LogLine, ...]) -> None:
        for line in lines:
            logging.getLogger(line.logger).log(line.level, "worker %d: %s", slot.index, line.text)
