"""Fitness from a user's function: ``python: "module:function"``.

The function is called as ``function(model, tokenizer, documents, seed, **arguments)`` for each candidate and returns
one number a document, or one number, or a mapping from objective to either. The live model must be left as it was. Two
keyword parameters are filled in where the function has them and ``arguments`` does not: ``folder``, where the file of
the documents lies, and ``batch_size``, rows of one forward pass, which is halved when memory runs out.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from evomerge.evaluation.python_objectives import said_of
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.terms import DocumentScores, FailureKind, Objective, SplitName

FitnessFunction = Callable[..., Any]
POSITIONAL = ("model", "tokenizer", "documents", "seed")
DEFAULT_BATCH_SIZE = 32


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
        InvalidInput: the function cannot be imported or does not take the arguments, or its documents cannot be read or
            chosen.
    """
    assert config.python is not None
    where = f"fitness {config.name}"
    function = load_function(config.python, import_paths, f"{where}: python")
    if wrong := argument_problems(function, config, where):
        raise InvalidInput(wrong)
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
    settings = source_hash(config.python, function)
    if isinstance(config.objectives, dict):
        directions = [(name, said.direction) for name, said in config.objectives.items()]
        settings = document_hash([settings, directions])
    plan = FitnessPlan(config.name, tuple(members), metric=config.python, higher_is_better=higher, settings=settings)
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
        self._keys = tuple(config.objectives)
        self._arguments = dict(config.arguments)
        self._takes = _keywords(self._function)
        self._own_batch_size = config.batch_size
        self._batch_size = config.batch_size or DEFAULT_BATCH_SIZE
        self._has_documents = config.documents is not None
        self._splits = plan.members[0].splits
        self._documents: dict[str, list[dict[str, Any]]] = {}
        self._model: Any = None
        self._tokenizer: Any = None
        self.objectives = tuple(_objectives(config, plan.higher_is_better))

    def use(self, batch_size: int | None) -> None:
        """Rows of one forward pass from now on; None = the fitness's own."""
        self._batch_size = batch_size or self._own_batch_size or DEFAULT_BATCH_SIZE

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
        returned = self._function(self._model, self._tokenizer, documents, seed, **self._filled_in(role))
        if not self._keys:
            return [self._one(self._names[0], returned, role, len(documents))]
        missing = [key for key in self._keys if not isinstance(returned, Mapping) or key not in returned]
        if missing:
            message = f"the function must return a mapping with {', '.join(self._keys)}; {missing[0]!r} is missing"
            raise ScoringFailed(FailureKind.EXCEPTION, message)
        pairs = zip(self._names, self._keys, strict=True)
        return [self._one(name, returned[key], role, len(documents)) for name, key in pairs]

    def _filled_in(self, role: SplitName) -> dict[str, Any]:
        found: dict[str, Any] = {"batch_size": self._batch_size}
        if self._has_documents:
            found["folder"] = str(Path(self._splits[role].source).parent)
        return {**{name: value for name, value in found.items() if name in self._takes}, **self._arguments}

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


def _objectives(config: FitnessConfig, higher_is_better: bool) -> Iterator[Objective]:
    keys = tuple(config.objectives) or ("",)
    for name, key in zip(objective_names(config), keys, strict=True):
        said = said_of(config.objectives, key)
        if said is None:
            yield Objective(name, higher_is_better, config.weight)
        else:
            weight = config.weight if said.weight is None else said.weight
            yield Objective(name, said.direction == "maximize", weight)


def argument_problems(function: FitnessFunction, config: FitnessConfig, where: str) -> list[Problem]:
    """Arguments that the function does not take, or needs and is not given."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        return []
    place, takes = f"{where}: arguments", _keywords(function)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    problems = [
        Problem(place, f"{config.python} takes no argument {name!r}. {did_you_mean(name, sorted(takes))}")
        for name in config.arguments
        if name not in takes and not takes_any
    ]
    given = {*config.arguments, "batch_size", *(("folder",) if config.documents is not None else ())}
    return problems + [
        Problem(place, f"{config.python} needs {name!r}; give it in `arguments: {{{name}: ...}}`")
        for name in sorted(takes)
        if name not in given and parameters[name].default is inspect.Parameter.empty
    ]


def _keywords(function: FitnessFunction) -> frozenset[str]:
    """Parameters behind the first four that can be given by name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return frozenset()
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    later = [each for each in parameters if each not in positional[: len(POSITIONAL)]]
    return frozenset(each.name for each in later if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD))


def source_hash(name: str, function: FitnessFunction) -> str:
    """Hash of the whole source files a function comes from: the module that is named, and the one that defines it.

    Helpers in the same file count; modules that it imports do not.
    """
    modules = dict.fromkeys([name.partition(":")[0], getattr(function, "__module__", None) or ""])
    digest = hashlib.sha256()
    for module in modules:
        path = getattr(sys.modules.get(module), "__file__", None)
        if path is None:
            continue
        try:
            digest.update(Path(path).read_bytes())
        except OSError:
            return ""
    return digest.hexdigest()[:20]
