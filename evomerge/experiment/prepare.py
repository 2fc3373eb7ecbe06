"""What a run needs before its first candidate: objectives, a manifest, and running workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import evomerge
from evomerge.engine.sources import fingerprint, resolve_source
from evomerge.errors import ResumeRefused
from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import objective_names
from evomerge.experiment.backend_problems import backend_versions, changed_backend, vllm_settings
from evomerge.experiment.config import RuntimeConfig
from evomerge.experiment.cost_objectives import reference_point_of
from evomerge.experiment.load import CHANGEABLE, Experiment
from evomerge.experiment.objectives import check_directions
from evomerge.experiment.rung_sizes import rung_settings
from evomerge.experiment.score_cache import folder_of, note_uncached
from evomerge.experiment.stages import StagedExperiment, load_any
from evomerge.methods.own_method import source_fingerprint
from evomerge.recipes.recipe import Route
from evomerge.reports.progress import ProgressView
from evomerge.runtime.build import build_executor
from evomerge.runtime.early_ray import EarlyRay
from evomerge.runtime.executor import Executor, WorkerPlan
from evomerge.runtime.resources import RuntimeSettings
from evomerge.search.base import Problem
from evomerge.store.events import RunStarted
from evomerge.store.manifest import Manifest, build_manifest, compare_manifests, load_manifest
from evomerge.store.run_dir import RunDir
from evomerge.terms import Objective


def load_with_models(
    experiment: str | Path, overrides: Sequence[str], view: ProgressView
) -> Experiment | StagedExperiment:
    """Read and check an experiment, and fetch the models that are not on this machine.

    Raises:
        UserError: the experiment cannot work, or a model cannot be fetched.
    """
    loaded = load_any(experiment, overrides)
    absent = [status for status in loaded.sources if not status.ready]
    for status in absent:
        view.note(f"{status.source}: {status.message}")
        resolve_source(status.source)
    return load_any(experiment, overrides) if absent else loaded


def find_objectives(loaded: Experiment, plan: DocumentPlan) -> tuple[Objective, ...]:
    """The objectives of every fitness of the run, in order.

    Raises:
        UserError: a Python fitness cannot be imported, or the scalarisation does not fit the metrics' directions.
    """
    settings = EvaluatorSettings(import_paths=loaded.config.import_paths)
    objectives = build_evaluator(loaded.fitness, plan, settings).objectives
    check_directions(loaded.config, objectives, loaded.where)
    return objectives


def optimizer_problem(loaded: Experiment, plan: DocumentPlan) -> Problem:
    """What the optimizer is built for, with the number of documents each objective is a mean of."""
    problem = loaded.problem()
    documents = tuple(
        len(plan.of(config.name).document_ids("search")) for config in loaded.fitness for _ in objective_names(config)
    )
    return replace(problem, num_documents=documents if len(documents) == problem.num_objectives else ())


def first_event(loaded: Experiment, plan: DocumentPlan) -> RunStarted:
    """What the log of a new run begins with.

    Raises:
        UserError: a Python fitness cannot be imported.
    """
    assert loaded.space is not None
    objectives = find_objectives(loaded, plan)
    return RunStarted(
        name=loaded.config.name,
        evomerge=evomerge.__version__,
        experiment_fingerprint=loaded.fingerprint,
        time=time.time(),
        seeds={"run": loaded.config.seed},
        objectives=objectives,
        reference_point=reference_point_of(objectives, loaded.fitness, loaded.models),
        genes=loaded.space.genes,
        gene_groups={name: tuple(members) for name, members in loaded.space.gene_groups.items()},
        normalise=tuple(map(str, loaded.rules.normalise)),
        constraints=tuple(constraint.text for constraint in loaded.rules.constraints),
    )


def runtime_settings(config: RuntimeConfig) -> RuntimeSettings:
    """The runtime part of an experiment as the runtime room takes it."""
    return RuntimeSettings(
        executor=config.executor, workers=config.workers, gpus_per_worker=config.gpus_per_worker,
        threads=config.threads, dtype=config.dtype, device=config.device, batch_size=config.batch_size,
        deadline_seconds=config.deadline, max_attempts=config.max_attempts, address=config.address,
        state_memory_bytes=config.state_memory, prefix_cache_bytes=config.prefix_cache,
        scorer=config.scorer, pass_tokens=config.pass_tokens, vllm=vllm_settings(config),
    )  # fmt: skip


def start_ray(loaded: Experiment, stack: ExitStack) -> EarlyRay:
    """Begin to start Ray, where it is used; it takes seconds, and documents are planned meanwhile.

    Args:
        loaded: the experiment.
        stack: closes it, should the run not get to its workers.
    """
    early = EarlyRay(runtime_settings(loaded.config.runtime))
    stack.callback(early.close)
    return early


def start_executor(loaded: Experiment, plan: DocumentPlan, population_size: int, early: EarlyRay) -> Executor:
    """Workers for an experiment; with Ray they are still being built when this returns.

    Args:
        loaded: the experiment.
        plan: its documents.
        population_size: jobs that are worth running at once.
        early: Ray, on its way up.

    Raises:
        UserError: what the experiment asks for does not fit this machine.
    """
    config = loaded.config
    worker_plan = WorkerPlan(
        base=loaded.base,
        experts=loaded.experts,
        fitness=tuple(item.model_dump(mode="json") for item in loaded.fitness),
        report=tuple(item.model_dump(mode="json") for item in loaded.report),
        documents=plan.to_json(),
        import_paths=config.import_paths,
        lanes=_num_lanes(loaded),
        rungs=rung_settings(config, loaded.fitness, plan),
        score_cache=folder_of(config.runtime),
    )
    note_uncached(config.runtime, [*loaded.fitness, *loaded.report], own_methods(loaded))
    return build_executor(runtime_settings(config.runtime), worker_plan, max_useful=population_size, early=early)


def _num_lanes(loaded: Experiment) -> int:
    """Models whose blocks the routes of the search, or those that earlier stages found, need at once."""
    searched = 0 if loaded.space is None else loaded.space.num_lanes
    return max([searched, *(len(node.models) for _, node in loaded.stages if isinstance(node, Route))])


def own_methods(loaded: Experiment) -> list[str]:
    """Merge methods of the user's own that the search space names."""
    space = loaded.resolved["search_space"]
    named = (space["parameters"] if space["kind"] == "joint" else space).get("method", [])
    return [name for name in ([named] if isinstance(named, str) else named) if ":" in name]


def describe_run(loaded: Experiment, plan: DocumentPlan) -> Manifest:
    """The manifest of a run that would start now.

    Raises:
        UserError: a model, or a method's module, is not there.
    """
    names = {**({"base": loaded.base} if loaded.base else {}), **dict(loaded.experts)}
    models = {name: fingerprint(source) for name, source in names.items()}
    methods = {name: source_fingerprint(name) for name in own_methods(loaded)}
    versions = backend_versions(loaded.config.runtime)
    return build_manifest(
        loaded.resolved, loaded.fingerprint, models, plan.to_json(), methods=methods, engine_versions=versions
    )


def check_unchanged(loaded: Experiment, plan: DocumentPlan, folder: RunDir) -> tuple[str, ...]:
    """Make sure that a run is resumed as what it was started.

    Args:
        loaded: the experiment now.
        plan: its documents now.
        folder: the run.

    Returns:
        Harmless changes, worth a line each.

    Raises:
        ResumeRefused: the experiment, a model or a task changed; the message lists what.
    """
    old, new = load_manifest(folder.manifest_path), describe_run(loaded, plan)
    changes = compare_manifests(replace(old, documents={}), replace(new, documents={}), CHANGEABLE)
    # Documents are compared by what they say, not by where their files lie.
    backend = changed_backend(old.experiment, loaded.config.runtime)
    refuse = [*backend, *changes.refuse, *DocumentPlan.from_json(old.documents).differences(plan)]
    if refuse:
        lines = "\n".join(f"  {line}" for line in refuse)
        raise ResumeRefused(f"{folder.path}: this is not the run that was started:\n{lines}\nStart a new run instead.")
    return changes.warn


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append evomerge's log lines, tracebacks of failed candidates included, to a file."""
    logger = logging.getLogger("evomerge")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        logger.propagate = propagate
