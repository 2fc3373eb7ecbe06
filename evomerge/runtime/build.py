"""From settings to a running executor."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial

from evomerge.runtime.deadlines import Deadlines
from evomerge.runtime.early_ray import EarlyRay, quieten_ray
from evomerge.runtime.executor import Executor, WorkerFactory, WorkerPlan
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.runtime.resources import (
    PROCESS_BYTES,
    ResourcePlan,
    RuntimeSettings,
    local_machine,
    plan_resources,
)
from evomerge.runtime.worker import Worker

LOG = logging.getLogger(__name__)


def build_executor(
    settings: RuntimeSettings, plan: WorkerPlan, max_useful: int | None = None, early: EarlyRay | None = None
) -> Executor:
    """Plan the resources, refuse what cannot fit, and start the executor.

    With Ray it returns while the workers are still being built; jobs may be submitted at once.

    Args:
        settings: the runtime part of the experiment; its dtype, device, threads, batch size and state memory replace
            those of the worker plan.
        plan: models and fitness of the workers.
        max_useful: jobs that can ever run at once, for ``workers: auto``.
        early: a Ray that is being started already; the executor takes it over.

    Raises:
        UserError: the request does not fit, models are missing, no cluster at the address.
    """
    planned = replace(plan, prefix_cache_bytes=settings.prefix_cache_bytes)
    worker_bytes = estimate_worker_bytes(planned, settings.dtype, settings.state_memory_bytes)
    if settings.executor == "inline":
        resources = plan_resources(settings, local_machine(), worker_bytes, max_useful)
        _announce(resources)
        return InlineExecutor(worker_factory(settings, plan, resources), settings.max_attempts)
    return _build_ray(settings, plan, worker_bytes, max_useful, early)


def worker_factory(settings: RuntimeSettings, plan: WorkerPlan, resources: ResourcePlan) -> WorkerFactory:
    """The picklable builder of this plan's workers."""
    full = replace(
        plan,
        dtype=settings.dtype,
        device=resources.device,
        threads=resources.threads,
        batch_size=settings.batch_size,
        state_memory_bytes=resources.state_memory_bytes,
        prefix_cache_bytes=settings.prefix_cache_bytes,
        scorer=settings.scorer,
        pass_tokens=settings.pass_tokens,
        vllm=settings.vllm,
    )
    return partial(Worker, full)


def estimate_worker_bytes(plan: WorkerPlan, dtype: str = "auto", state_memory_bytes: int | None = None) -> int:
    """Memory of one worker on CPU: live model, lanes and prefix cache of routes, prepared state, process.

    Mapped checkpoints are shared and not counted.

    Args:
        plan: its models are looked up, and downloaded where that is allowed.
        dtype: of the live model.
        state_memory_bytes: cap on prepared state; without one as much as the stored model is set aside, and the workers
            are told to keep to their share.

    Raises:
        UserError: a model is missing.
    """
    from evomerge.engine.live_model import cpu_computes_bfloat16
    from evomerge.engine.prefix_cache import DEFAULT_BYTES
    from evomerge.engine.safetensors_header import read_header
    from evomerge.engine.sources import resolve_source

    sources = ([plan.base] if plan.base else []) + [source for _, source in plan.experts]
    stored_bytes = num_values = 0
    for folder in dict.fromkeys(resolve_source(source) for source in sources):
        infos = [info for file in folder.glob("*.safetensors") for info in read_header(file).values()]
        stored_bytes = max(stored_bytes, sum(info.num_bytes for info in infos))
        num_values = max(num_values, sum(math.prod(info.shape) for info in infos))
    is_half = dtype in ("bfloat16", "float16") or (dtype == "auto" and cpu_computes_bfloat16())
    live_bytes = num_values * (2 if is_half else 4)
    state_bytes = stored_bytes if state_memory_bytes is None else min(stored_bytes, state_memory_bytes)
    routes_bytes = 0
    if plan.lanes:
        cache_bytes = DEFAULT_BYTES if plan.prefix_cache_bytes is None else plan.prefix_cache_bytes
        routes_bytes = plan.lanes * live_bytes + cache_bytes
    return live_bytes + routes_bytes + state_bytes + PROCESS_BYTES


def _build_ray(
    settings: RuntimeSettings, plan: WorkerPlan, worker_bytes: int, max_useful: int | None, early: EarlyRay | None
) -> Executor:
    quieten_ray()
    # Imported here: ray takes a second to load, and inline runs do without.
    from evomerge.runtime.ray_executor import RayExecutor, RaySession

    session, planned = early.take() if early is not None else None, None
    try:
        if session is None and (settings.address is not None or RaySession.connected()):
            session = RaySession(settings.address)
        if session is None or session.owned:
            # Planned before Ray starts, where it can be: a request that cannot fit is refused at once.
            planned = plan_resources(settings, local_machine(), worker_bytes, max_useful)
        session = session or RaySession(num_cpus=planned.workers if planned else None)
        resources = planned or plan_resources(settings, session.machine(), worker_bytes, max_useful)
        _announce(resources)
        factory = worker_factory(settings, plan, resources)
        return RayExecutor(session, factory, resources, settings.max_attempts, Deadlines(settings.deadline_seconds))
    except BaseException:
        if session is not None:
            session.close()
        raise


def _announce(resources: ResourcePlan) -> None:
    LOG.info("%s", resources.describe())
    for note in resources.notes:
        LOG.warning("%s", note)
