"""Fitness from a user's function: ``python: "module:function"``.

The function is called as ``function(model, tokenizer, documents, seed)`` for each candidate and returns one number a
document, or one number, or a mapping from objective to either. The live model must be left as it was.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.evaluation.documents import (
    FitnessPlan,
    MemberPlan,
    SplitPlan,
    choose,
    document_hash,
    document_ids,
    overlaps,
    split_seeds,
    without_duplicates,
)
from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.evaluation.known_answers import KnownAnswers
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.terms import DocumentScores, FailureKind, Objective, SplitName

FitnessFunction = Callable[[Any, Any, list[dict[str, Any]], int], Any]


def add_import_paths(folders: Sequence[str]) -> None:
    """Put folders first on ``sys.path``, where they are not on it."""
    for folder in reversed(folders):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def load_function(name: str, import_paths: Sequence[str], where: str) -> FitnessFunction:
    """Import ``module:function``.

    Raises:
        InvalidInput: the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    add_import_paths(import_paths)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        searched = f"; searched {', '.join(import_paths)} and the Python path" if import_paths else ""
        message = f"cannot import {module_name!r}: {type(error).__name__}: {error}{searched}"
        raise InvalidInput([Problem(where, message)]) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        message = f"{module_name!r} has no function {function_name!r}. {did_you_mean(function_name, known)}"
        raise InvalidInput([Problem(where, message)])
    loaded: FitnessFunction = function
    return loaded


def plan_python(config: FitnessConfig, import_paths: Sequence[str]) -> tuple[FitnessPlan, list[str]]:
    """The plan of one Python fitness.

    Raises:
        InvalidInput: the function cannot be imported, or its documents cannot be read or chosen.
    """
    assert config.python is not None
    where = f"fitness {config.name}"
    function = load_function(config.python, import_paths, f"{where}: python")
    seeds = split_seeds(config)
    splits: dict[SplitName, SplitPlan] = {}
    for role, selection in config.documents.items() if config.documents else ():
        documents = read_documents(str(selection.path))
        ids = document_ids(documents)
        indices = choose(selection, ids, seeds[str(selection.path)], f"{where}: documents.{role}")
        hashes = [document_hash({k: v for k, v in documents[i].items() if k != "id"}) for i in indices]
        splits[role] = SplitPlan(
            str(selection.path), tuple(indices), tuple(ids[index] for index in indices), tuple(hashes)
        )
    members = [MemberPlan(config.python, splits)]
    notes: list[str] = []
    if config.drop_duplicates:
        members, notes = without_duplicates(members)
    elif shared := overlaps(config, members):
        raise InvalidInput(shared)
    higher = config.higher_is_better is not False
    plan = FitnessPlan(
        config.name, tuple(members), metric=config.python, higher_is_better=higher, settings=_source_hash(function)
    )
    return plan, [f"{where}: {note}" for note in notes]


def read_documents(path: str) -> list[dict[str, Any]]:
    """Documents of a JSONL file, one mapping a line.

    Raises:
        InvalidInput: no such file, not JSONL, or no documents.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([Problem(path, f"cannot be read as a JSONL file: {error}")]) from None
    documents = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            raise InvalidInput([Problem(f"{path}, line {number}", f"not JSON: {error}")]) from None
        if not isinstance(document, dict):
            raise InvalidInput([Problem(f"{path}, line {number}", "expected a JSON object")])
        documents.append(document)
    if not documents:
        raise InvalidInput([Problem(path, "no documents: the file is empty")])
    return documents


class PythonFitness:
    """One user function with its documents, called once a candidate."""

    def __init__(self, config: FitnessConfig, plan: FitnessPlan, import_paths: Sequence[str]) -> None:
        assert config.python is not None
        self._function = load_function(config.python, import_paths, f"fitness {config.name}: python")
        self._names = objective_names(config)
        self._keys = config.objectives
        self._has_documents = config.documents is not None
        self._splits = plan.members[0].splits
        self._documents: dict[str, list[dict[str, Any]]] = {}
        self._model: Any = None
        self._tokenizer: Any = None
        self.objectives = tuple(Objective(name, plan.higher_is_better, config.weight) for name in self._names)

    def bind(self, model: Any, tokenizer: Any) -> None:
        """Use this model from now on."""
        self._model, self._tokenizer = model, tokenizer

    def score(self, role: SplitName, seed: int, known: KnownAnswers | None = None) -> list[ObjectiveScore]:
        """Call the function. It may read anything, so what it returned before is never taken for known.

        Raises:
            ScoringFailed: it returned something that is no score.
            NotKnown: nothing may be computed.
        """
        if known is not None:
            known.must_compute()
        documents = self._chosen(role)
        returned = self._function(self._model, self._tokenizer, documents, seed)
        if not self._keys:
            return [self._one(self._names[0], returned, role, len(documents))]
        missing = [key for key in self._keys if not isinstance(returned, Mapping) or key not in returned]
        if missing:
            message = f"the function must return a mapping with {', '.join(self._keys)}; {missing[0]!r} is missing"
            raise ScoringFailed(FailureKind.EXCEPTION, message)
        pairs = zip(self._names, self._keys, strict=True)
        return [self._one(name, returned[key], role, len(documents)) for name, key in pairs]

    def _chosen(self, role: SplitName) -> list[dict[str, Any]]:
        if not self._has_documents:
            return []
        if role not in self._documents:
            split = self._splits[role]
            everything = read_documents(split.source)
            self._documents[role] = [everything[index] for index in split.indices]
        return [dict(document) for document in self._documents[role]]

    def _one(self, name: str, returned: Any, role: SplitName, num_documents: int) -> ObjectiveScore:
        try:
            values = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError):
            message = f"{name}: expected a number or one number a document, got {type(returned).__name__}"
            raise ScoringFailed(FailureKind.EXCEPTION, message) from None
        if values.ndim == 0:
            return ObjectiveScore(name, float(values), None, {f"{name}/value": float(values)})
        if values.shape != (num_documents,):
            message = f"{name}: expected {num_documents} values, one a document, got shape {values.shape}"
            raise ScoringFailed(FailureKind.EXCEPTION, message)
        mean = float(values.mean()) if num_documents else float("nan")
        table = DocumentScores(name, self._splits[role].ids, values)
        return ObjectiveScore(name, mean, table, {f"{name}/mean": mean})


def _source_hash(function: FitnessFunction) -> str:
    try:
        return document_hash(inspect.getsource(function))
    except (OSError, TypeError):
        return ""
