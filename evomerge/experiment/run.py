"""Running an experiment. This is the place to start reading: the life of every candidate is the loop driven from here.

experiment -> optimizer.ask -> space.decode -> executor (merge in place, score) -> log -> optimizer.tell -> front;
at the end the best candidates are scored on validation documents, the winner and the baselines on held-out ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evomerge
from evomerge.engine.sources import fingerprint, resolve_source
from evomerge.errors import ResumeRefused
from evomerge.evaluation.documents import DocumentPlan, plan_documents
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.experiment.finish import Finish, baseline_jobs
from evomerge.experiment.load import CHANGEABLE, Experiment, load_experiment
from evomerge.experiment.objectives import reference_point_of
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.replay import replay
from evomerge.experiment.search_loop import Limits, SearchLoop
from evomerge.experiment.writing import format_experiment
from evomerge.files import atomic_write_text
from evomerge.reports.progress import Clock, ProgressView, QuietView
from evomerge.runtime.build import build_executor
from evomerge.runtime.executor import Executor, WorkerPlan
from evomerge.runtime.resources import RuntimeSettings
from evomerge.runtime.signals import StopRequest
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.search.scalarise import build_scalariser
from evomerge.store.events import Event, Resumed, RunFinished, RunStarted
from evomerge.store.live_projection import LiveProjection
from evomerge.store.manifest import Manifest, build_manifest, compare_manifests, load_manifest, write_manifest
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_dir: the run directory.
        reason: ``evaluations``, ``wall_time``, ``exhausted``, ``interrupted`` or the optimizer's own reason.
        summary: what summary.json holds, None when interrupted.
        num_failed: evaluations without a fitness.
    """

    run_dir: Path
    reason: str
    summary: dict[str, Any] | None
    num_failed: int

    @property
    def exit_code(self) -> int:
        """0 done, 2 ended with failures, 130 interrupted and resumable."""
        if self.reason == "interrupted":
            return 130
        return 2 if self.num_failed else 0


def run(
    experiment: str | Path,
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    view: ProgressView | None = None,
) -> RunResult:
    """Run an experiment from its file.

    Args:
        experiment: path of a YAML file, or the name of a shipped experiment.
        overrides: ``key.path=value`` changes.
        run_dir: where to write, default ``runs/<name>``.
        overwrite: replace an existing run.
        view: what a person sees.

    Raises:
        UserError: anything in the experiment that cannot work, before work starts.
    """
    view = view or QuietView()
    loaded = load_experiment(experiment, overrides)
    for status in loaded.sources:
        if not status.ready:
            view.note(f"{status.source}: {status.message}")
            resolve_source(status.source)
    if loaded.space is None:
        loaded = load_experiment(experiment, overrides)
    plan = plan_documents([*loaded.fitness, *loaded.report])
    manifest = _manifest(loaded, plan)
    with ExitStack() as stack:
        folder = RunDir.create(run_dir or Path("runs") / loaded.config.name, overwrite=overwrite)
        stack.callback(folder.close)
        atomic_write_text(folder.experiment_path, format_experiment(loaded.resolved))
        write_manifest(folder.manifest_path, manifest)
        settings = EvaluatorSettings(import_paths=loaded.config.import_paths)
        objectives = build_evaluator(loaded.fitness, plan, settings).objectives
        assert loaded.space is not None
        started = RunStarted(
            name=loaded.config.name,
            evomerge=evomerge.__version__,
            experiment_fingerprint=loaded.fingerprint,
            time=time.time(),
            seeds={"run": loaded.config.seed},
            objectives=objectives,
            reference_point=reference_point_of(objectives),
            genes=loaded.space.genes,
            gene_groups={name: tuple(members) for name, members in loaded.space.gene_groups.items()},
        )
        return _drive(loaded, plan, folder, [], started, loaded.problem(), view, stack)


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    view: ProgressView | None = None,
    expected: str | Path | None = None,
) -> RunResult:
    """Go on with an interrupted run, bit for bit as if it had never stopped.

    Args:
        run_dir: the run directory.
        overrides: changes of budget, runtime or finish, for example ``budget.evaluations=400``.
        view: what a person sees.
        expected: an experiment file that must say what the run was started with.

    Raises:
        ResumeRefused: the experiment, a model or a task is not what it was.
        UserError: there is no run here, or it is in use.
    """
    view = view or QuietView()
    with ExitStack() as stack:
        folder = RunDir.open(run_dir, exclusive=True)
        stack.callback(folder.close)
        loaded = load_experiment(expected or folder.experiment_path, overrides)
        # Optimizers may size themselves by the budget: a longer budget must not change what the first one asked.
        problem = load_experiment(folder.experiment_path).problem()
        plan = plan_documents([*loaded.fitness, *loaded.report])
        old = load_manifest(folder.manifest_path)
        changes = compare_manifests(old, _manifest(loaded, plan), CHANGEABLE)
        if changes.refuse:
            lines = "\n".join(f"  {line}" for line in changes.refuse)
            raise ResumeRefused(
                f"{folder.path}: this is not the run that was started:\n{lines}\nStart a new run instead."
            )
        for line in changes.warn:
            view.note(f"changed since the start: {line}")
        log = folder.event_log()
        events = log.read()
        resumed = Resumed(time.time(), evomerge.__version__, changes.warn)
        return _drive(loaded, plan, folder, events, resumed, problem, view, stack)


def _drive(
    loaded: Experiment,
    plan: DocumentPlan,
    folder: RunDir,
    events: list[Event],
    opening: RunStarted | Resumed,
    problem: Problem,
    view: ProgressView,
    stack: ExitStack,
) -> RunResult:
    """Bring everything to where the log ends, search, finish."""
    config, space = loaded.config, loaded.space
    assert space is not None
    state = read_state([*events, opening])
    assert state.started is not None
    objectives = state.started.objectives
    scalarise = build_scalariser(config.scalarisation, objectives)
    optimizer = build_optimizer(config.optimizer.name, problem, config.optimizer.settings)
    told = scalarise if problem.num_objectives == 1 else _unchanged
    progress, exact = replay(events, optimizer, space.decode, told)
    progress.elapsed_seconds = state.elapsed_seconds
    if not exact:
        view.note("this machine computes other bits than the one the run began on; going on with what was evaluated")
    log = folder.event_log()
    stack.callback(log.close)
    log.append(opening)
    projection = LiveProjection(config.storage or folder.study_path, state.started, state)
    stack.callback(projection.close)
    recorder = RunRecorder(
        folder, log, projection, progress=progress, decode=space.decode, scalarise=scalarise,
        objectives=objectives, reference_point=state.started.reference_point, view=view,
    )  # fmt: skip
    recorder.replayed(state.outcomes)
    executor = _start_executor(loaded, plan, optimizer.population_size)
    stack.callback(executor.close)
    stop = stack.enter_context(StopRequest(interrupt_at_once=config.runtime.executor == "inline"))
    finish = Finish(loaded, recorder, executor, view, lambda: stop.stop_requested)
    loop = SearchLoop(
        optimizer, space, executor, recorder, progress=progress,
        limits=Limits(config.budget.evaluations, config.budget.wall_time), seed=config.seed, scalarise=told,
        stop_requested=lambda: stop.stop_requested, idle_jobs=iter(baseline_jobs(loaded, recorder.outcomes)),
    )  # fmt: skip
    clock = Clock("search", config.budget.evaluations, executor.num_workers, len(progress.outcomes))
    recorder.start_phase(clock, lambda: min(executor.num_pending, executor.num_workers))
    try:
        reason = loop.run(config.optimizer.mode)
        summary = None if reason == "interrupted" else finish.run(reason)
    except KeyboardInterrupt:
        reason, summary = "interrupted", None
    if summary is None:
        reason = "interrupted"
    log.append(RunFinished(reason, time.time()))
    failed = sum(1 for event in recorder.outcomes.values() if not hasattr(event, "fitness"))
    return RunResult(folder.path, reason, summary, failed)


def _unchanged(fitness: tuple[float, ...]) -> tuple[float, ...]:
    return fitness


def _start_executor(loaded: Experiment, plan: DocumentPlan, population_size: int) -> Executor:
    config = loaded.config
    runtime = config.runtime
    settings = RuntimeSettings(
        executor=runtime.executor, workers=runtime.workers, gpus_per_worker=runtime.gpus_per_worker,
        threads=runtime.threads, dtype=runtime.dtype, device=runtime.device, batch_size=runtime.batch_size,
        deadline_seconds=runtime.deadline, max_attempts=runtime.max_attempts, address=runtime.address,
        state_memory_bytes=runtime.state_memory,
    )  # fmt: skip
    worker_plan = WorkerPlan(
        base=loaded.base,
        experts=loaded.experts,
        fitness=tuple(item.model_dump(mode="json") for item in loaded.fitness),
        report=tuple(item.model_dump(mode="json") for item in loaded.report),
        documents=plan.to_json(),
        import_paths=config.import_paths,
    )
    return build_executor(settings, worker_plan, max_useful=population_size)


def _manifest(loaded: Experiment, plan: DocumentPlan) -> Manifest:
    names = {**({"base": loaded.base} if loaded.base else {}), **dict(loaded.experts)}
    models = {name: fingerprint(source) for name, source in names.items()}
    return build_manifest(loaded.resolved, loaded.fingerprint, models, plan.to_json())
