"""What must be so before a run on vLLM starts: environment, models and tasks, checked without starting it."""

from __future__ import annotations

import json

from evomerge.engine.sources import resolve_source
from evomerge.errors import InvalidInput, Problem
from evomerge.evaluation.documents import DocumentPlan
from evomerge.experiment.backend_problems import HF, vllm_python
from evomerge.experiment.load import Experiment
from evomerge.runtime.vllm_environment import find_environment
from evomerge.runtime.vllm_extension import why_unsupported


def check_backend(loaded: Experiment, plan: DocumentPlan) -> tuple[str, ...]:
    """Refuse what vLLM cannot score here.

    Args:
        loaded: the experiment.
        plan: its documents.

    Returns:
        Lines worth telling.

    Raises:
        InvalidInput: every problem of the environment, the models and the tasks at once.
    """
    if loaded.config.runtime.backend != "vllm":
        return ()
    where = f"{loaded.where}: runtime.vllm.python"
    environment = find_environment(vllm_python(loaded.config.runtime))
    problems = [Problem(where, message) for message in environment.problems]
    problems += _model_problems(loaded)
    problems += _task_problems(loaded, plan)
    if problems:
        raise InvalidInput(problems)
    versions = ", ".join(f"{name} {environment.versions[name]}" for name in ("torch", "transformers"))
    return (f"all scores, held-out ones too, come from vllm {environment.vllm} (with {versions})",)


def _model_problems(loaded: Experiment) -> list[Problem]:
    """Models that are no plain dense decoders; those that are not on this machine yet are seen when they are."""
    problems = []
    for status in loaded.sources:
        if not status.ready:
            continue
        path = resolve_source(status.source) / "config.json"
        if not path.is_file():
            problems.append(Problem(f"model {status.source}", f"has no config.json, so vLLM cannot load it; {HF}"))
            continue
        reason = why_unsupported(json.loads(path.read_text()))
        if reason is not None:
            problems.append(Problem(f"model {status.source}", f"{reason}; vLLM is used for plain dense models. {HF}"))
    return problems


def _task_problems(loaded: Experiment, plan: DocumentPlan) -> list[Problem]:
    from evomerge.evaluation.lm_eval_index import TaskTree, load_tree

    problems = []
    for config in (*loaded.fitness, *loaded.report):
        tree = plan.of(config.name).tree
        if not tree:
            continue
        for leaf in load_tree(TaskTree.from_json(tree)).leaves:
            kind = leaf.config.get("output_type", "generate_until")
            where = f"fitness {config.name}: task {leaf.name}"
            if kind != "generate_until":
                problems.append(Problem(where, f"its output_type is {kind}; vLLM only generates text here. {HF}"))
                continue
            arguments = {**(leaf.config.get("generation_kwargs") or {}), **(config.gen_kwargs or {})}
            if arguments.get("do_sample"):
                problems.append(Problem(where, f"it asks for sampling, and vLLM only generates greedily here; {HF}"))
    return problems
