"""The evaluation cache as a user sees it: where it is, what is never in it, what a run took from it, clearing it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import Problem, UserError
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.score_cache import CacheUse, cache_use, clear_entries
from evomerge.experiment.config import ExperimentConfig, RuntimeConfig
from evomerge.files import cache_dir
from evomerge.store.estimation_events import Estimated
from evomerge.store.events import Evaluated, Stopped
from evomerge.store.run_state import RunState

LOG = logging.getLogger(__name__)


def default_folder() -> Path:
    """Where the cache is unless a folder is named."""
    return cache_dir() / "scores"


def with_absolute_folder(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """The experiment with ``runtime.score_cache`` as it is meant wherever the file is copied to.

    Args:
        config: as written.
        folder: of the experiment's file.
    """
    named = config.runtime.score_cache
    if not isinstance(named, str):
        return config
    absolute = str((folder / Path(named).expanduser()).resolve())
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"score_cache": absolute})})


def cache_problems(config: ExperimentConfig, where: str) -> list[Problem]:
    """What is wrong with the folder, and what else the cache does not go with."""
    named = config.runtime.score_cache
    if named and config.runtime.backend == "vllm":
        message = "the evaluation cache does not know what a vLLM computes with; leave one of the two out"
        return [Problem(f"{where}: runtime.score_cache", message)]
    if isinstance(named, str) and Path(named).exists() and not Path(named).is_dir():
        return [Problem(f"{where}: runtime.score_cache", f"expected a folder, {named} is a file")]
    return []


def folder_of(config: RuntimeConfig) -> str | None:
    """The folder workers use, None where the cache is off."""
    if isinstance(config.score_cache, bool):
        return str(default_folder()) if config.score_cache else None
    return config.score_cache


def note_uncached(config: RuntimeConfig, fitness: Sequence[FitnessConfig], methods: Sequence[str]) -> None:
    """Say once in the log what the cache never holds.

    Args:
        config: whether it is on.
        fitness: all of the run.
        methods: the user's own merge methods.
    """
    if folder_of(config) is None:
        return
    read_anything = [f"fitness {item.name} ({item.python})" for item in fitness if item.python is not None]
    measured = [f"fitness {item.name} (latency)" for item in fitness if item.cost == "latency"]
    own = [f"candidates of the merge method {name}" for name in methods]
    for what, why in (
        (read_anything, "a Python function may read anything"),
        (measured, "a time is measured anew each time"),
        (own, "its code may read anything"),
    ):
        if what:
            LOG.warning("the evaluation cache leaves out %s: %s", ", ".join(what), why)


def recalled_summary(config: RuntimeConfig, state: RunState) -> dict[str, Any] | None:
    """What a run took from the cache, for summary.json; None where it is off and nothing was."""
    ended = [event for event in state.outcomes.values() if isinstance(event, Evaluated | Stopped | Estimated)]
    recalled = sum(event.is_recalled for event in ended)
    partly = sum(event.known_documents > 0 and not event.is_recalled for event in ended)
    if folder_of(config) is None and not recalled + partly:
        return None
    documents = sum(event.known_documents for event in ended)
    return {"evaluations": len(ended), "recalled": recalled, "partly": partly, "documents": documents}


def cache_info(folder: str | Path | None = None) -> CacheUse:
    """What the evaluation cache holds.

    Args:
        folder: as in ``runtime.score_cache``; None = the default one.

    Raises:
        UserError: it is no folder, or unreadable.
    """
    path = _existing(folder)
    try:
        return cache_use(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read the cache: {error.strerror or error}.") from error


def clear_cache(folder: str | Path | None = None, older_than: float = 0.0) -> CacheUse:
    """Empty the evaluation cache; runs that use it meanwhile score anew.

    Args:
        folder: as in ``runtime.score_cache``; None = the default one.
        older_than: seconds; only entries that were not used for so long.

    Returns:
        What was removed.

    Raises:
        UserError: it is no folder, or cannot be written.
    """
    path = _existing(folder)
    try:
        return clear_entries(path, older_than)
    except OSError as error:
        raise UserError(f"{path}: cannot clear the cache: {error.strerror or error}.") from error


def _existing(folder: str | Path | None) -> Path:
    path = default_folder() if folder is None else Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected the folder of an evaluation cache, this is a file.")
    if folder is not None and not path.exists():
        raise UserError(f"{path}: no such folder.")
    return path
