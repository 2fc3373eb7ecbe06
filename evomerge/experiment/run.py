"""Running an experiment. This is the place to start reading: the life of every candidate is the loop driven from here.

experiment -> optimizer.ask -> space.decode -> executor (merge in place, score) -> log -> optimizer.tell -> front;
at the end the best candidates are scored on validation documents, the winner and the baselines on held-out ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import evomerge
from evomerge.evaluation.documents import DocumentPlan, plan_documents
from evomerge.experiment.about_run import about_run
from evomerge.experiment.backend_check import check_backend
from evomerge.experiment.build_estimation import build_estimation
from evomerge.experiment.calibrate import calibrated_problem, settle_calibration
from evomerge.experiment.document_scores import with_document_scores
from evomerge.experiment.estimation import EstimatingExecutor
from evomerge.experiment.estimation_problems import check_estimation
from evomerge.experiment.finish import Finish, Interrupted, baseline_jobs, score_jobs
from evomerge.experiment.lineage_problems import check_document_scores
from evomerge.experiment.live_report import LiveReport
from evomerge.experiment.load import Experiment, load_experiment
from evomerge.experiment.objectives import build_judge
from evomerge.experiment.prepare import (
    check_unchanged,
    describe_run,
    first_event,
    load_with_models,
    logging_to,
    optimizer_problem,
    start_executor,
    start_ray,
)
from evomerge.experiment.racing import build_racer
from evomerge.experiment.racing_problems import check_racing
from evomerge.experiment.recorder import SEARCH, RunRecorder
from evomerge.experiment.replay import know, replay
from evomerge.experiment.reporting import report_at_end
from evomerge.experiment.result import RunResult
from evomerge.experiment.search_loop import Limits, SearchLoop
from evomerge.experiment.seed_gram import with_seeds
from evomerge.experiment.stage_runs import begin_stages, resume_stages
from evomerge.experiment.stages import StagedExperiment
from evomerge.experiment.warm_start import load_warm_start
from evomerge.experiment.writing import format_experiment
from evomerge.files import atomic_write_text
from evomerge.reports.progress import ProgressView, QuietView
from evomerge.runtime.early_ray import EarlyRay
from evomerge.runtime.executor import Executor
from evomerge.runtime.signals import StopRequest
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.store.events import Event, Resumed, RunFinished, RunStarted, WarmStarted
from evomerge.store.live_projection import LiveProjection
from evomerge.store.manifest import write_manifest
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import RunState, read_state
from evomerge.store.stage_list import is_staged


def run(
    experiment: str | Path,
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    view: ProgressView | None = None,
) -> RunResult:
    """Run an experiment from its file.

    Args:
        experiment: path of a YAML file, or the name of a shipped experiment; its stages run one after the other.
        overrides: ``key.path=value`` changes.
        run_dir: where to write, default ``runs/<name>``.
        overwrite: replace an existing run.
        view: what a person sees.

    Raises:
        UserError: anything in the experiment that cannot work, before work starts.
    """
    view = view or QuietView()
    loaded = load_with_models(experiment, overrides, view)
    path = Path(run_dir or Path("runs") / loaded.name)
    if isinstance(loaded, StagedExperiment):
        return begin_stages(loaded, path, view, (begin_run, resume_run), overwrite)
    return begin_run(loaded, path, view, overwrite)


def begin_run(loaded: Experiment, path: Path, view: ProgressView, overwrite: bool = False) -> RunResult:
    """Run an experiment without stages, or one stage, in a new folder."""
    with ExitStack() as stack:
        early = start_ray(loaded, stack)
        plan = plan_documents([*loaded.fitness, *loaded.report], loaded.config.import_paths)
        check_racing(loaded.config, loaded.where, loaded.fitness, plan)
        check_estimation(loaded.config, loaded.where, loaded.fitness, plan)
        check_document_scores(loaded.config, loaded.where, loaded.fitness, plan)
        check_backend(loaded, plan)
        manifest = describe_run(loaded, plan)
        known = load_warm_start(loaded, plan)
        folder = RunDir.create(path, overwrite=overwrite)
        stack.callback(folder.close)
        atomic_write_text(folder.experiment_path, format_experiment(loaded.resolved))
        write_manifest(folder.manifest_path, manifest)
        started = first_event(loaded, plan)
        problem = optimizer_problem(loaded, plan)
        return _drive(_Opening(loaded, plan, folder, [], started, problem, early, known), view, stack)


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
    if is_staged(run_dir):
        return resume_stages(Path(run_dir), overrides, view, (begin_run, resume_run), expected)
    stored = RunDir.open(run_dir).experiment_path
    return resume_run(load_experiment(expected or stored, overrides), Path(run_dir), view)


def resume_run(loaded: Experiment, path: Path, view: ProgressView) -> RunResult:
    """Go on with a run without stages, or with one stage."""
    with ExitStack() as stack:
        folder = RunDir.open(path, exclusive=True)
        stack.callback(folder.close)
        # Optimizers may size themselves by the budget: a longer budget must not change what the first one asked.
        first = load_experiment(folder.experiment_path)
        early = start_ray(loaded, stack)
        plan = plan_documents([*loaded.fitness, *loaded.report], loaded.config.import_paths)
        warnings = check_unchanged(loaded, plan, folder)
        check_backend(loaded, plan)
        for line in warnings:
            view.note(f"changed since the start: {line}")
        events = folder.event_log().read()
        problem = optimizer_problem(first, plan)
        known = load_warm_start(loaded, plan, events)
        resumed = Resumed(time.time(), evomerge.__version__, warnings)
        return _drive(_Opening(loaded, plan, folder, events, resumed, problem, early, known), view, stack)


@dataclass(frozen=True)
class _Opening:
    """What a session begins with: a new run has no events, a resumed one has its log.

    ``known`` is what is taken over from another run, where the log does not hold it yet.
    """

    loaded: Experiment
    plan: DocumentPlan
    folder: RunDir
    events: list[Event]
    event: RunStarted | Resumed
    problem: Problem
    early: EarlyRay
    known: WarmStarted | None


def _drive(opening: _Opening, view: ProgressView, stack: ExitStack) -> RunResult:
    """Bring everything to where the log ends, search, finish."""
    loaded, folder, config = opening.loaded, opening.folder, opening.loaded.config
    space, state = loaded.space, read_state([*opening.events, opening.event])
    assert space is not None
    assert state.started is not None
    stack.enter_context(logging_to(folder.log_path))
    log = stack.enter_context(folder.event_log())
    opening = replace(opening, problem=with_seeds(opening.problem, loaded, folder, view.note))
    population_size = build_optimizer(config.optimizer.name, opening.problem, config.optimizer.settings).population_size
    executor = start_executor(loaded, opening.plan, population_size, opening.early)
    stack.callback(executor.close)
    stop = stack.enter_context(StopRequest(interrupt_at_once=config.runtime.executor == "inline"))
    log.append(opening.event)
    about = about_run(loaded.resolved, folder.path)
    projection = LiveProjection(config.storage or folder.study_path, state.started, state, about)
    stack.callback(projection.close)
    live = LiveReport(folder)
    stack.callback(live.close)
    recorder = RunRecorder(folder, log, projection, decode=space.decode, started=state.started, view=view)
    recorder.replayed(state.outcomes)
    try:
        reason, summary = _search(opening, state, recorder, executor, lambda: stop.stop_requested)
    except (KeyboardInterrupt, Interrupted):
        reason, summary = "interrupted", None
    if summary is not None:
        projection.set_about(about_run(loaded.resolved, folder.path, summary))
    log.append(RunFinished(reason, time.time()))
    live.close()
    report_at_end(folder, loaded, summary, view)
    return RunResult(folder.path, reason, summary, recorder.num_failed)


def _search(
    opening: _Opening, state: RunState, recorder: RunRecorder, executor: Executor, stop_requested: Callable[[], bool]
) -> tuple[str, dict[str, Any] | None]:
    """Fix what fitness is measured against, go on where the log ends, finish."""
    loaded, config, space = opening.loaded, opening.loaded.config, opening.loaded.space
    assert space is not None
    calibration = settle_calibration(loaded, state, recorder, executor, stop_requested)
    judge = build_judge(loaded, recorder.objectives, calibration, opening.problem.num_objectives)
    problem = calibrated_problem(opening.problem, calibration)
    optimizer = build_optimizer(config.optimizer.name, problem, config.optimizer.settings)
    optimizer = with_document_scores(config.optimizer.name, optimizer, recorder)
    progress, exact = replay(opening.events, optimizer, space.decode, judge.told, judge.constrain)
    progress.elapsed_seconds = state.elapsed_seconds
    if not exact:
        recorder.view.note(
            "this machine computes other bits than where the run began; going on with what was evaluated"
        )
    if opening.known is not None:
        recorder.log.append(opening.known)
        know(optimizer, opening.known, judge.told)
        recorder.view.note(f"{len(opening.known.genotypes)} evaluations taken over from {opening.known.run}")
    recorder.judge_by(progress, judge.scalarise, judge.constrain, calibration.scales)
    racer = build_racer(loaded, opening.plan, recorder, judge.told, optimizer.population_size)
    baselines = baseline_jobs(loaded, dict(recorder.outcomes))
    estimation = build_estimation(loaded, opening.plan, recorder, judge, state)
    if estimation is not None:
        executor = EstimatingExecutor(executor, estimation.settle)
        score_jobs("baselines", baselines, recorder, executor, stop_requested)
        estimation.check()
    finish = Finish(loaded, recorder, executor, stop_requested, baselines, judge, estimation=estimation)
    loop = SearchLoop(
        optimizer, space, executor, recorder, progress=progress, scalarise=judge.told, constrain=judge.constrain,
        seed=config.seed, limits=Limits(config.budget.evaluations, config.budget.wall_time),
        stop_requested=stop_requested, idle_jobs=baselines, racer=racer, estimator=estimation,
    )  # fmt: skip
    recorder.start_phase(SEARCH, config.budget.evaluations, executor, len(progress.outcomes))
    reason = loop.run(config.optimizer.mode)
    summary = None if reason == "interrupted" else finish.run(reason)
    return ("interrupted" if summary is None else reason), summary
