"""What an experiment's keys say about the backend: what cannot work with vLLM, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import Problem
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.experiment.config import ExperimentConfig, RuntimeConfig
from evomerge.recipes.recipe import Node, Route
from evomerge.runtime.vllm_environment import find_environment
from evomerge.runtime.vllm_settings import VllmSettings
from evomerge.spaces.space import SearchSpace

HF = "use runtime.backend: hf"


def backend_problems(
    config: ExperimentConfig,
    where: str,
    fitness: Sequence[FitnessConfig],
    space: SearchSpace | None,
    stages: Sequence[tuple[str, Node]],
) -> Iterator[Problem]:
    """Every key that does not go with the backend; nothing is started or loaded.

    Args:
        config: the experiment.
        where: its file, for messages.
        fitness: what is searched and what is reported.
        space: the search space, where it is known.
        stages: what earlier stages found.
    """
    runtime = config.runtime
    if runtime.backend == "hf":
        if runtime.vllm is not None:
            yield Problem(f"{where}: runtime.vllm", "only counts with runtime.backend: vllm")
        return
    if runtime.vllm is None:
        message = "is needed with runtime.backend: vllm: the interpreter of the environment that has vLLM"
        yield Problem(f"{where}: runtime.vllm.python", message)
    else:
        share, gpus = runtime.gpus_per_worker, runtime.vllm.tensor_parallel
        if share not in ("auto", 0, gpus):
            message = f"vLLM takes whole GPUs, tensor_parallel of them ({gpus}), got {share:g}; leave it at auto"
            yield Problem(f"{where}: runtime.gpus_per_worker", message)
    for key in ("batch_size", "pass_tokens", "prefix_cache"):
        if getattr(runtime, key) is not None:
            yield Problem(f"{where}: runtime.{key}", "does not count with runtime.backend: vllm; leave it out")
    if runtime.scorer == "exact":
        yield Problem(f"{where}: runtime.scorer", f"exact means lm-eval's own loops, which need a model here; {HF}")
    if (space is not None and space.num_lanes) or any(isinstance(node, Route) for _, node in stages):
        yield Problem(f"{where}: search_space", f"vLLM runs no routes through blocks; {HF}")
    yield from _fitness_problems(fitness)


def _fitness_problems(fitness: Sequence[FitnessConfig]) -> Iterator[Problem]:
    for one in fitness:
        if one.python is not None:
            yield Problem(f"fitness {one.name}", f"a python function needs the model in its own process; {HF}")
        elif one.cost == "latency":
            yield Problem(f"fitness {one.name}", f"latency is measured on a model of ours; {HF}")
        elif one.exact:
            yield Problem(f"fitness {one.name}: exact", f"lm-eval's own loops need a model here; {HF}")


def vllm_settings(config: RuntimeConfig) -> VllmSettings | None:
    """The vLLM part as the runtime room takes it, None with another backend."""
    if config.backend != "vllm" or config.vllm is None:
        return None
    python = vllm_python(config)
    return VllmSettings(
        python,
        config.vllm.tensor_parallel,
        config.vllm.gpu_memory_utilization,
        config.vllm.max_model_len,
        config.vllm.enforce_eager,
        find_environment(python).vllm,
    )


def vllm_python(config: RuntimeConfig) -> str:
    """The other environment's interpreter."""
    assert config.vllm is not None
    return str(Path(config.vllm.python).expanduser())


def scored_by(config: RuntimeConfig) -> str:
    """The engine behind every score, for records: ``hf``, or vLLM with its version."""
    settings = vllm_settings(config)
    return "hf" if settings is None else settings.label


def backend_versions(config: RuntimeConfig) -> dict[str, str]:
    """Versions in the other environment that scores depend on."""
    if config.backend != "vllm" or config.vllm is None:
        return {}
    found = find_environment(vllm_python(config)).versions
    return {f"vllm environment {name}" if name != "vllm" else name: found[name] for name in VERSIONS if name in found}


VERSIONS = ("vllm", "torch", "transformers")


def changed_backend(started: Mapping[str, Any], config: RuntimeConfig) -> list[str]:
    """Why a run cannot go on with this backend: two engines' scores do not mix."""
    before = started.get("runtime", {}).get("backend", "hf")
    if before == config.backend:
        return []
    return [f"runtime.backend: was {before}, is {config.backend}; two engines round differently"]
