"""A worker without a model, for the scheduling half of the executor contract. The job's seed says what happens to it.

Faults that end after the first time leave a flag file in the folder named by EVOMERGE_TEST_FLAGS.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from evomerge.errors import UserError
from evomerge.evaluation.failures import WorkerBroken
from evomerge.runtime.executor import Job, WorkerReport
from evomerge.terms import Evaluation, Failure, FailureKind, Seconds

RAISE, HANG, HANG_ONCE, KILLED, KILLED_ONCE, SCRATCH, ENVIRONMENT, OUT_OF_MEMORY, UNPICKLABLE = range(101, 110)
BROKEN, BROKEN_ONCE = 110, 111


class PlainWorker:
    """Fitness is twice the seed."""

    def __init__(self, index: int) -> None:
        self.index = index
        fail = os.environ.get("EVOMERGE_TEST_START", "")
        if fail == "user_error":
            raise UserError("models.base: no such directory")
        if fail == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if fail == f"raises {index}":
            raise RuntimeError("cannot start here")

    def report(self) -> WorkerReport:
        return WorkerReport(self.index, "cpu", "float32", 0, f"pid {os.getpid()}", 0.0)

    def run(self, job: Job) -> Evaluation:
        if job.seed == RAISE:
            raise ValueError("the task is broken")
        if job.seed == HANG or (job.seed == HANG_ONCE and _first_time(job)):
            time.sleep(600)
        if job.seed == KILLED or (job.seed == KILLED_ONCE and _first_time(job)):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.seed == BROKEN or (job.seed == BROKEN_ONCE and _first_time(job)):
            raise WorkerBroken(FailureKind.WORKER_DIED, "the engine beside the worker died")
        if job.seed == OUT_OF_MEMORY:
            return Evaluation(failure=Failure(FailureKind.OUT_OF_MEMORY, "no memory"))
        if job.seed == SCRATCH:
            path = Path(tempfile.mkdtemp()) / "scratch"
            path.write_text("left behind")
            return Evaluation(fitness=(1.0,), metrics={str(path): 1.0})
        if job.seed == ENVIRONMENT:
            text = os.environ.get("CUDA_VISIBLE_DEVICES", "unset") + "/" + os.environ.get("OMP_NUM_THREADS", "unset")
            return Evaluation(fitness=(1.0,), metrics={text: 1.0})
        if job.seed == UNPICKLABLE:
            return Evaluation(fitness=(1.0,), metrics={"lock": (x for x in ())})  # type: ignore[dict-item]
        time.sleep(0.01 * (job.seed % 3))
        return Evaluation(fitness=(2.0 * job.seed,), metrics={"seed": float(job.seed)}, seconds=Seconds(merge=0.5))


def _first_time(job: Job) -> bool:
    flag = Path(os.environ["EVOMERGE_TEST_FLAGS"]) / job.key
    seen = flag.exists()
    flag.touch()
    return not seen
