"""Worker processes as Ray actors, and the Ray they live on. The only module that imports ray."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import exceptions as ray_errors

from evomerge.errors import EvomergeError, UserError
from evomerge.evaluation.failures import WorkerBroken
from evomerge.runtime.deadlines import Deadlines
from evomerge.runtime.executor import CandidateWorker, Job, WorkerFactory
from evomerge.runtime.resources import Machine, ResourcePlan, free_memory_bytes, worker_environment
from evomerge.runtime.scheduler import Scheduler
from evomerge.runtime.worker_pool import LogLine, Lost, Raised, Ran, Reply, Started
from evomerge.terms import FailureKind

LOG = logging.getLogger(__name__)

INIT_ATTEMPTS = 3
SHUTDOWN_SECONDS = 6.0
OBJECT_STORE_BYTES = 200 * 10**6


class RayFailed(EvomergeError):
    """Ray itself could not be started on this machine."""


class RaySession:
    """A Ray to work on: one already connected in this process, one that was asked for by address, or one of our own.

    Only a Ray of our own is shut down by ``close``, and then none of its processes stays behind. Other people's
    clusters are never searched for.

    Args:
        address: cluster to join, None = the connected one if there is one, else a new local one.
        num_cpus: CPU slots of a new local Ray: the number of workers.
        num_gpus: GPUs of a new local Ray, None = as detected.

    Raises:
        UserError: no cluster answers at the address.
        RayFailed: a local Ray does not start.
    """

    def __init__(self, address: str | None = None, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
        self.owned = False
        self.ended = threading.Event()
        self._joined = False
        self._processes: list[psutil.Process] = []
        if self.connected():
            LOG.info("using the Ray this process is connected to")
        elif address is not None:
            self._join(address)
        else:
            self._start(num_cpus, num_gpus)

    @staticmethod
    def connected() -> bool:
        """Whether this process is connected to a Ray already."""
        return bool(ray.is_initialized())

    def machine(self) -> Machine:
        """What this Ray has to offer, whether or not others use it now."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
        memory = free_memory_bytes() if len(alive) == 1 else int(sum(node.get("memory", 0) for node in alive))
        return Machine(
            cores=max(1, int(sum(cpus for cpus, _ in nodes))),
            memory_bytes=memory,
            gpus=sum(gpus for _, gpus in nodes),
            nodes=nodes,
            local=False,
        )

    def cpus_of(self, plan: ResourcePlan) -> float:
        """CPU slots of one worker. Our own Ray has one slot for each worker, as many processes as it starts ahead."""
        if plan.device == "cuda":
            return 0
        return 1 if self.owned else plan.threads

    def close(self) -> None:
        """Shut a Ray of our own down within seconds, by force where it does not go by itself."""
        if self._joined:
            self._joined = False
            ray.shutdown()
        if not self.owned:
            self.ended.set()
            return
        self.owned = False
        family = _with_children(self._processes)
        # A loaded machine has been seen to take 11 s for a polite shutdown.
        polite = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
        polite.start()
        polite.join(SHUTDOWN_SECONDS)
        _end_processes(family + _with_children(self._processes))
        polite.join(1.0)
        self.ended.set()

    def _join(self, address: str) -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
            raise UserError(
                f"runtime.address: no Ray cluster answers at {address!r} ({_first_line(error)}). "
                "Start one with `ray start --head`, or leave the address out to use this machine."
            ) from error
        self._joined = True

    def _start(self, num_cpus: int | None, num_gpus: int | None) -> None:
        before = set(psutil.Process().children())
        for attempt in range(1, INIT_ATTEMPTS + 1):
            try:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=OBJECT_STORE_BYTES,
                )
                break
            # Ray gives up on a slow start after 30 s with a bare Exception.
            except Exception as error:
                LOG.warning("Ray did not start (attempt %d of %d): %s", attempt, INIT_ATTEMPTS, _first_line(error))
                ray.shutdown()
                if attempt == INIT_ATTEMPTS:
                    raise RayFailed(
                        f"Ray did not start: {_first_line(error)}. runtime.executor: inline works without it."
                    ) from error
        self.owned = True
        self._processes = [child for child in psutil.Process().children() if child not in before and _is_ray(child)]


class RayPool:
    """Worker processes as actors: no restarts and no retries of Ray's own, so that every loss is seen and counted.

    Args:
        session: where actors live.
        factory: builds the worker inside its actor.
        plan: threads and GPUs of one worker.
        environment: further environment variables of the workers.
        import_paths: folders put on the workers' ``sys.path``, for a factory that is not in an installed package.
    """

    def __init__(
        self,
        session: RaySession,
        factory: WorkerFactory,
        plan: ResourcePlan,
        environment: Mapping[str, str] | None = None,
        import_paths: Sequence[str] = (),
    ) -> None:
        self._session = session
        self._factory = factory
        self._environment = {**worker_environment(plan), **(environment or {})}
        self._import_paths = tuple(import_paths)
        self._scratch_dir = Path(tempfile.mkdtemp(prefix="evomerge-"))
        self._scratch_dirs: dict[Any, Path] = {}
        self._launches = 0
        self._actor_class = ray.remote(
            num_cpus=session.cpus_of(plan), num_gpus=plan.gpus_per_worker, max_restarts=0, max_task_retries=0
        )(_Actor)

    def launch(self, index: int) -> tuple[Any, Any]:
        """Start an actor; building its worker is its first call."""
        self._launches += 1
        scratch_dir = self._scratch_dir / f"worker-{index}-{self._launches}"
        actor = self._actor_class.remote(str(scratch_dir), self._environment, self._import_paths)
        self._scratch_dirs[actor] = scratch_dir
        return actor, actor.start.remote(self._factory, index)

    def run(self, handle: Any, job: Job) -> Any:
        """Queue a job on an actor."""
        return handle.run.remote(job)

    def collect(self, calls: Sequence[Any], timeout_seconds: float) -> list[tuple[Any, Reply]]:
        """Replies of the calls that have ended."""
        ended, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_seconds)
        if ended and len(calls) > 1:
            ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [(call, _reply(call)) for call in ended]

    def kill(self, handle: Any) -> None:
        """Kill an actor and remove its scratch folder."""
        with contextlib.suppress(Exception):
            ray.kill(handle, no_restart=True)
        scratch_dir = self._scratch_dirs.pop(handle, None)
        if scratch_dir is not None:
            shutil.rmtree(scratch_dir, ignore_errors=True)

    def close(self) -> None:
        """Kill what is left, then the Ray of our own; remove all scratch."""
        for handle in list(self._scratch_dirs):
            self.kill(handle)
        self._session.close()
        shutil.rmtree(self._scratch_dir, ignore_errors=True)


class RayExecutor(Scheduler):
    """The scheduler over Ray actors.

    Args:
        session: where actors live; closed with the executor if it is our own.
        factory: builds the worker inside its actor.
        plan: workers, threads and GPUs.
        max_attempts: how often a job may lose its worker before it counts as failed.
        deadlines: when a job counts as hung.
        environment: further environment variables of the workers.
        import_paths: folders put on the workers' ``sys.path``.
    """

    def __init__(
        self,
        session: RaySession,
        factory: WorkerFactory,
        plan: ResourcePlan,
        max_attempts: int = 2,
        deadlines: Deadlines | None = None,
        environment: Mapping[str, str] | None = None,
        import_paths: Sequence[str] = (),
    ) -> None:
        room = session.machine().room_for(session.cpus_of(plan), plan.gpus_per_worker)
        # Ray would wait for ever for actors that fit nowhere, without a word.
        if room < plan.workers:
            raise UserError(f"{plan.describe()}: this Ray has room for {room}. Lower runtime.workers or threads.")
        pool = RayPool(session, factory, plan, environment, import_paths)
        super().__init__(pool, plan.workers, max_attempts, deadlines)


class _Actor:
    """Lives in the worker's process: builds the worker, runs jobs, carries log records home."""

    def __init__(self, scratch_dir: str, environment: dict[str, str], import_paths: tuple[str, ...]) -> None:
        # In time for torch and CUDA, which nobody has loaded here yet; a runtime_env would cost seconds at start-up.
        os.environ.update(environment)
        sys.path.extend(path for path in import_paths if path not in sys.path)
        os.makedirs(scratch_dir, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = scratch_dir
        self._log = _LogKeeper()
        logging.getLogger("evomerge").addHandler(self._log)
        logging.getLogger("evomerge").setLevel(logging.DEBUG)
        self._worker: CandidateWorker | None = None

    def start(self, factory: WorkerFactory, index: int) -> Reply:
        try:
            self._worker = factory(index)
            return Started(self._worker.report(), self._log.drain())
        except UserError as error:
            return Raised(str(error), by_user=True, log=self._log.drain())
        except Exception as error:
            return self._raised(error)

    def run(self, job: Job) -> Reply:
        assert self._worker is not None, "run before start"
        started = time.time()
        try:
            evaluation = self._worker.run(job)
        except WorkerBroken as error:
            return Lost(error.kind, str(error))
        except Exception as error:
            return self._raised(error)
        return Ran(evaluation, started, time.time(), self._log.drain())

    def _raised(self, error: Exception) -> Raised:
        lines = (*self._log.drain(), LogLine(__name__, logging.WARNING, traceback.format_exc()))
        return Raised(f"{type(error).__name__}: {error}", log=lines)


class _LogKeeper(logging.Handler):
    """Keeps the latest log records as text until they are fetched: what is worth telling, and every traceback."""

    def __init__(self, limit: int = 200) -> None:
        super().__init__()
        self._limit = limit
        self._lines: list[LogLine] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO and not record.exc_info:
            return
        text = logging.Formatter().format(record)
        self._lines = [*self._lines, LogLine(record.name, record.levelno, text)][-self._limit :]

    def drain(self) -> tuple[LogLine, ...]:
        lines, self._lines = tuple(self._lines), []
        return lines


def _reply(call: Any) -> Reply:
    try:
        reply: Reply = ray.get(call)
        return reply
    except ray_errors.OutOfMemoryError as error:
        return Lost(FailureKind.OUT_OF_MEMORY, f"the worker process was ended for lack of memory: {_first_line(error)}")
    except (ray_errors.RayActorError, ray_errors.ObjectLostError, ray_errors.WorkerCrashedError) as error:
        return Lost(FailureKind.WORKER_DIED, _cause_of_death(error))
    # A task error here is one that _Actor could not catch: arguments or results that do not pickle.
    except ray_errors.RayError as error:
        return Raised(_last_line(error))


def _cause_of_death(error: Exception) -> str:
    for line in str(error).splitlines():
        _, found, detail = line.partition("Worker exit detail: ")
        if found:
            return f"the worker process died: {detail.split('. Some common causes')[0]}"
    return f"the worker process died: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _is_ray(process: psutil.Process) -> bool:
    try:
        return any(f"{os.sep}ray{os.sep}" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _with_children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    family: list[psutil.Process] = []
    for process in processes:
        family.append(process)
        with contextlib.suppress(psutil.Error):
            family += process.children(recursive=True)
    return family


def _end_processes(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=2.0)
