"""How many workers, with how many threads and GPUs each: planned before anything starts, refused when it cannot fit."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from evomerge.errors import UserError
from evomerge.runtime.vllm_settings import VllmSettings

Auto = Literal["auto"]

# Python with torch, transformers and lm-eval loaded, activations of small batches included.
PROCESS_BYTES = 600 * 10**6


@dataclass(frozen=True)
class RuntimeSettings:
    """The runtime part of an experiment as plain values.

    Attributes:
        executor: ``inline`` (this process, one worker) or ``ray``.
        workers: jobs at once; ``auto`` = one for each GPU, else one for each core that memory and use allow.
        gpus_per_worker: GPUs of one worker, may be a fraction; ``auto`` = 1 where there are GPUs.
        threads: torch threads of one worker on CPU; ``auto`` = cores divided by workers.
        dtype: dtype of the live model.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: documents of one forward block, None = each task's default.
        deadline_seconds: longest time of one job, None = learnt from the jobs seen so far.
        max_attempts: how often a job may lose its worker (death, hang, memory) before it counts as failed.
        address: a Ray cluster to join; None = a Ray of our own on this machine.
        state_memory_bytes: cap on prepared merge state of one worker, None = no cap.
        prefix_cache_bytes: cap on what a worker keeps of hops that the next route may share, None = the engine's own.
        scorer: ``fast``, or ``exact``: lm-eval's own loops also for what is not reported.
        pass_tokens: most tokens of one forward pass, None = what suits the device.
        vllm: the vLLM that generates, None = transformers does.
    """

    executor: Literal["inline", "ray"] = "ray"
    workers: int | Auto = "auto"
    gpus_per_worker: float | Auto = "auto"
    threads: int | Auto = "auto"
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    deadline_seconds: float | None = None
    max_attempts: int = 2
    address: str | None = None
    state_memory_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    scorer: Literal["fast", "exact"] = "fast"
    pass_tokens: int | None = None
    vllm: VllmSettings | None = None


@dataclass(frozen=True)
class Machine:
    """What there is to run on.

    Attributes:
        cores: physical cores this process may use, over all nodes.
        memory_bytes: memory that is free for workers, over all nodes.
        gpus: GPUs, over all nodes.
        nodes: (cores, gpus) of each node; empty = one node.
        local: whether it is this machine alone, whose core count is ours to overcommit.
    """

    cores: int
    memory_bytes: int
    gpus: float
    nodes: tuple[tuple[float, float], ...] = ()
    local: bool = True

    def room_for(self, cpus: float, gpus: float) -> int:
        """How many workers of this size fit, node by node."""
        nodes = self.nodes or ((float(self.cores), self.gpus),)
        return sum(_fit(node_cpus, node_gpus, cpus, gpus) for node_cpus, node_gpus in nodes)


@dataclass(frozen=True)
class ResourcePlan:
    """How the work is spread.

    ``state_memory_bytes`` caps each worker's prepared state, None = the engine's own rule; ``notes`` are lines worth
    showing to the user.
    """

    executor: str
    workers: int
    threads: int
    gpus_per_worker: float
    device: Literal["cpu", "cuda"]
    state_memory_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())

    def describe(self) -> str:
        """One line for the start of a run."""
        size = f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else f"{self.threads} thread(s)"
        where = "in this process" if self.executor == "inline" else "on Ray"
        return f"{self.workers} worker(s) {where}, {size} each on {self.device}"


def local_machine() -> Machine:
    """This machine, as far as this process may use it (affinity, container limits and visible GPUs honoured)."""
    return Machine(cores=usable_cores(), memory_bytes=free_memory_bytes(), gpus=visible_gpus())


def usable_cores() -> int:
    """Physical cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    logical, physical = psutil.cpu_count(logical=True) or allowed, psutil.cpu_count(logical=False) or allowed
    cores = min(allowed, max(1, round(allowed * physical / max(logical, 1))))
    quota = _read_cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return max(1, cores)


def free_memory_bytes() -> int:
    """Memory that new processes may take without swapping."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read_cgroup("memory.max").strip(), _read_cgroup("memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def visible_gpus() -> int:
    """CUDA devices torch can use; asked without creating a CUDA context."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def plan_resources(
    settings: RuntimeSettings, machine: Machine, worker_bytes: int = PROCESS_BYTES, max_useful: int | None = None
) -> ResourcePlan:
    """Workers, threads and GPUs for this machine.

    Args:
        settings: what the user asked for.
        machine: what there is.
        worker_bytes: memory one worker takes on CPU (model, prepared state, process).
        max_useful: jobs that can ever run at once (population size, budget); more workers are not started by ``auto``.

    Raises:
        UserError: what was asked for does not fit.
    """
    device = _choose_device(settings, machine)
    if settings.executor == "inline":
        return _plan_inline(settings, machine, device)
    if device == "cuda":
        return _plan_gpus(settings, machine, max_useful)
    return _plan_cpus(settings, machine, worker_bytes, max_useful)


def worker_environment(plan: ResourcePlan) -> dict[str, str]:
    """Environment of a worker process, to be in place before it loads numpy or torch."""
    environment = {
        "OMP_NUM_THREADS": str(plan.threads),
        "MKL_NUM_THREADS": str(plan.threads),
        "OPENBLAS_NUM_THREADS": "1",
        # Waiting threads that spin steal the cores of the other workers.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if plan.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    passed_on = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "XDG_CACHE_HOME")
    environment |= {name: os.environ[name] for name in passed_on if name in os.environ}
    return environment | {name: value for name, value in os.environ.items() if name.startswith("EVOMERGE_")}


def _choose_device(settings: RuntimeSettings, machine: Machine) -> Literal["cpu", "cuda"]:
    wants_gpu = settings.device == "cuda" or (settings.gpus_per_worker not in ("auto", 0))
    if settings.device == "cpu":
        if settings.gpus_per_worker not in ("auto", 0):
            raise UserError(
                f"runtime.gpus_per_worker: {settings.gpus_per_worker} needs GPUs, but runtime.device is cpu. "
                "Remove one of the two."
            )
        return "cpu"
    if wants_gpu and not machine.gpus:
        key = "device: cuda" if settings.device == "cuda" else f"gpus_per_worker: {settings.gpus_per_worker}"
        raise UserError(f"runtime.{key} needs a GPU, and none was found. Use runtime.device: cpu, or auto.")
    if settings.device == "cuda" and settings.gpus_per_worker == 0:
        raise UserError("runtime.device: cuda needs runtime.gpus_per_worker above 0. Leave it at auto.")
    return "cuda" if machine.gpus and settings.gpus_per_worker != 0 else "cpu"


def _plan_inline(settings: RuntimeSettings, machine: Machine, device: Literal["cpu", "cuda"]) -> ResourcePlan:
    if settings.workers not in ("auto", 1):
        raise UserError(
            f"runtime.workers: {settings.workers} needs runtime.executor: ray; inline runs one worker in this process."
        )
    if settings.address is not None:
        raise UserError("runtime.address needs runtime.executor: ray; inline runs in this process.")
    threads = machine.cores if settings.threads == "auto" else settings.threads
    return ResourcePlan("inline", 1, threads, float(device == "cuda"), device, settings.state_memory_bytes)


def _plan_gpus(settings: RuntimeSettings, machine: Machine, max_useful: int | None) -> ResourcePlan:
    own = 1.0 if settings.vllm is None else float(settings.vllm.tensor_parallel)
    share = own if settings.gpus_per_worker == "auto" else float(settings.gpus_per_worker)
    if share > 1 and share != int(share):
        raise UserError(f"runtime.gpus_per_worker: {share:g} must be a whole number, or a fraction below 1.")
    room = machine.room_for(0, share)
    if not room:
        raise UserError(f"runtime.gpus_per_worker: {share:g} fits on no node; there are {machine.gpus:g} GPUs in all.")
    workers = min(room, max_useful or room) if settings.workers == "auto" else settings.workers
    if workers > room:
        raise UserError(
            f"runtime.workers: {workers} with {share:g} GPU each do not fit: {machine.gpus:g} GPUs hold {room}. "
            "Lower runtime.workers or runtime.gpus_per_worker."
        )
    threads = max(1, machine.cores // workers) if settings.threads == "auto" else settings.threads
    if not machine.local:
        # One thread too many would leave a GPU without a worker on a node with few cores.
        while threads > 1 and machine.room_for(threads, share) < workers:
            threads -= 1
    return ResourcePlan("ray", workers, threads, share, "cuda", settings.state_memory_bytes)


def _plan_cpus(settings: RuntimeSettings, machine: Machine, worker_bytes: int, max_useful: int | None) -> ResourcePlan:
    in_memory = machine.memory_bytes // max(worker_bytes, 1)
    need = f"one worker takes about {_gigabytes(worker_bytes)}, {_gigabytes(machine.memory_bytes)} are free"
    notes: list[str] = []
    if settings.workers == "auto":
        by_threads = machine.cores if settings.threads == "auto" else max(1, machine.cores // settings.threads)
        workers = max(1, min(by_threads, in_memory, max_useful or by_threads))
        if workers < min(by_threads, max_useful or by_threads):
            notes.append(f"memory allows {workers} of {by_threads} workers: {need}")
    else:
        workers = settings.workers
        if workers > max(1, in_memory):
            raise UserError(f"runtime.workers: {workers} do not fit in memory: {need}. Lower it, or use auto.")
    if not in_memory:
        notes.append(f"memory is tight: {need}")
    threads = max(1, machine.cores // workers) if settings.threads == "auto" else settings.threads
    if not machine.local:
        threads = _threads_in_cluster(settings, machine, workers, threads)
    elif workers * threads > machine.cores:
        notes.append(f"{workers} workers x {threads} threads share {machine.cores} cores")
    # Each worker would take half of all free memory by itself.
    state_bytes = settings.state_memory_bytes or machine.memory_bytes // (2 * workers)
    return ResourcePlan("ray", workers, threads, 0.0, "cpu", state_bytes, tuple(notes))


def _threads_in_cluster(settings: RuntimeSettings, machine: Machine, workers: int, threads: int) -> int:
    while settings.threads == "auto" and threads > 1 and machine.room_for(threads, 0) < workers:
        threads -= 1
    room = machine.room_for(threads, 0)
    if room < workers:
        raise UserError(
            f"runtime.workers: {workers} with {threads} thread(s) each do not fit: the cluster's {machine.cores} CPUs "
            f"hold {room}. Lower runtime.workers or runtime.threads."
        )
    return threads


def _fit(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    by_cpus = int(node_cpus // cpus) if cpus else 10**9
    if not gpus:
        return by_cpus
    by_gpus = int(node_gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(node_gpus // gpus)
    return min(by_cpus, by_gpus)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _read_cgroup(name: str) -> str:
    try:
        return (Path("/sys/fs/cgroup") / name).read_text()
    except OSError:
        return ""
