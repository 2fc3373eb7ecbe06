"""From settings to a running executor."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial

from evomerge.runtime.deadlines import Deadlines
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


def build_executor(settings: RuntimeSettings, plan: WorkerPlan, max_useful: int | None = None) -> Executor:
    """Plan the resources, refuse what cannot fit, and start the executor.

    With Ray it returns while the workers are still being built; jobs may be submitted at once.

    Args:
        settings: the runtime part of the experiment; its dtype, device, threads, batch size and state memory replace
            those of the worker plan.
        plan: models and fitness of the workers.
        max_useful: jobs that can ever run at once, for ``workers: auto``.

    Raises:
        UserError: the request does not fit, models are missing, no cluster at the address.
    """
    worker_bytes = estimate_worker_bytes(plan, settings.state_memory_bytes)
    if settings.executor == "inline":
        resources = plan_resources(settings, local_machine(), worker_bytes, max_useful)
        _announce(resources)
        return InlineExecutor(worker_factory(settings, plan, resources))
    return _build_ray(settings, plan, worker_bytes, max_useful)


def worker_factory(settings: RuntimeSettings, plan: WorkerPlan, resources: ResourcePlan) -> WorkerFactory:
    """The picklable builder of this plan's workers."""
    full = replace(
        plan,
        dtype=settings.dtype,
        device=resources.device,
        threads=resources.threads,
        batch_size=settings.batch_size,
        state_memory_bytes=resources.state_memory_bytes,
    )
    return partial(Worker, full)


def estimate_worker_bytes(plan: WorkerPlan, state_memory_bytes: int | None = None) -> int:
    """Memory of one worker on CPU: live model, prepared state, process. Mapped checkpoints are shared and not counted.

    Raises:
        UserError: a model is missing.
    """
    from evomerge.engine.sources import resolve_source

    sources = ([plan.base] if plan.base else []) + [source for _, source in plan.experts]
    sizes = [sum(file.stat().st_size for file in resolve_source(source).glob("*.safetensors")) for source in sources]
    model_bytes = max(sizes, default=0)
    # One prepared tensor set for each expert is what the hungriest methods keep.
    state_bytes = model_bytes * len(plan.experts)
    if state_memory_bytes is not None:
        state_bytes = min(state_bytes, state_memory_bytes)
    return model_bytes + state_bytes + PROCESS_BYTES


def quieten_ray() -> None:
    """Environment that Ray reads when it is imported and started: nothing is sent out, nothing printed.

    Raylet messages on lost workers go to stdout even with ``log_to_driver=False``; the scheduler reports those itself.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _build_ray(settings: RuntimeSettings, plan: WorkerPlan, worker_bytes: int, max_useful: int | None) -> Executor:
    quieten_ray()
    # Imported here: ray takes a second to load, and inline runs do without.
    from evomerge.runtime.ray_executor import RayExecutor, RaySession

    if settings.address is None and not RaySession.connected():
        # Planned before Ray starts: a request that cannot fit is refused at once.
        resources = plan_resources(settings, local_machine(), worker_bytes, max_useful)
        session = RaySession(num_cpus=resources.workers)
        planned: ResourcePlan | None = resources
    else:
        session, planned = RaySession(settings.address), None
    try:
        resources = planned or plan_resources(settings, session.machine(), worker_bytes, max_useful)
        _announce(resources)
        factory = worker_factory(settings, plan, resources)
        return RayExecutor(session, factory, resources, settings.max_attempts, Deadlines(settings.deadline_seconds))
    except BaseException:
        session.close()
        raise


def _announce(resources: ResourcePlan) -> None:
    LOG.info("%s", resources.describe())
    for note in resources.notes:
        LOG.warning("%s", note)
