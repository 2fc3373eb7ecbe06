"""Finding lm-eval tasks, groups and tags by name, and reading their YAML.

The index of the built-in tasks costs seconds, so it is made only when a name is not among the user's, and kept on disk.
A `TaskTree` holds what one name needs; a worker reads its tasks from there without any index.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
from lm_eval.config.group import AggMetricConfig, GroupConfig
from lm_eval.tasks._index import Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.files import atomic_write_text, cache_dir
from evomerge.presets import preset_dir

logger = logging.getLogger(__name__)

_GROUP_KEYS = frozenset(GroupConfig.__dataclass_fields__)
_REMOTE = ("://", "hf:", "@")


@dataclass(frozen=True)
class TaskEntry:
    """One indexed name. ``kind`` is ``task``, ``class``, ``group`` or ``tag``; a tag has members and no file."""

    name: str
    kind: str
    path: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskTree:
    """A name and every entry its expansion touches: plain data that a worker rebuilds the same tasks from."""

    root: str
    entries: tuple[TaskEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        rows = [[entry.name, entry.kind, entry.path, list(entry.members)] for entry in self.entries]
        return {"root": self.root, "entries": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskTree:
        """The inverse of `to_json`."""
        entries = tuple(TaskEntry(name, kind, path, tuple(members)) for name, kind, path, members in data["entries"])
        return cls(data["root"], entries)


@dataclass(frozen=True)
class Leaf:
    """One lm-eval task: its name and the configuration its YAML (and groups above it) give it."""

    name: str
    config: Mapping[str, Any]
    path: str | None

    @property
    def is_built_in(self) -> bool:
        """Whether lm-eval ships the task: then it is a known benchmark."""
        return self.path is not None and Path(self.path).is_relative_to(Path(lm_eval.tasks.__file__).parent)


@dataclass(frozen=True)
class LoadedTree:
    """The leaves of a name, in lm-eval's order, and how a group weighs them.

    Attributes:
        kind: ``task``, ``group`` or ``tag``.
        leaves: the tasks.
        weight_by_size: metric of a group -> whether members weigh by their number of documents; empty otherwise.
    """

    kind: str
    leaves: tuple[Leaf, ...]
    weight_by_size: Mapping[str, bool] = field(default_factory=dict)


class TaskLibrary:
    """Names of the user's task YAMLs, falling back to lm-eval's own.

    Args:
        include_path: folders with task YAMLs; ``fitness/tasks`` of the presets is always among them.

    Raises:
        InvalidInput: every YAML in these folders that cannot be read as a task, and names defined twice.
    """

    def __init__(self, include_path: Sequence[str] = ()) -> None:
        shipped = preset_dir("fitness") / "tasks"
        folders = [*([shipped] if shipped.is_dir() else []), *(Path(path) for path in include_path)]
        self._own: dict[str, TaskEntry] = {}
        problems = [Problem(str(folder), "no such folder of task YAMLs") for folder in folders if not folder.is_dir()]
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            problems += self._index(folder)
        if problems:
            raise InvalidInput(problems)

    def _index(self, folder: Path) -> list[Problem]:
        problems = []
        for path in sorted(folder.rglob("*.yaml")):
            try:
                entry, tags = _read_entry(path)
            except Exception as error:  # any error of a user's YAML is theirs to see
                problems.append(Problem(str(path), f"not a readable task YAML: {one_line(error)}"))
                continue
            if entry is None:
                continue
            if entry.name in self._own:
                other = self._own[entry.name].path
                problems.append(Problem(str(path), f"{entry.kind} {entry.name!r} is already defined in {other}"))
                continue
            self._own[entry.name] = entry
            for tag in tags:
                old = self._own.get(tag, TaskEntry(tag, "tag"))
                self._own[tag] = TaskEntry(tag, "tag", None, tuple(sorted({*old.members, entry.name})))
        return problems

    def find(self, name: str) -> TaskEntry | None:
        """The entry of a name: the user's, else lm-eval's."""
        return self._own.get(name) or _built_in().get(name)

    def resolve(self, name: str, where: str) -> TaskTree:
        """Everything one name needs.

        Args:
            name: task, group or tag, or the path of a task's YAML.
            where: the place that names it, for messages.

        Raises:
            InvalidInput: unknown name, or a task that cannot be read.
        """
        if name.endswith((".yaml", ".yml")):
            try:
                entry, _ = _read_entry(Path(name))
            except Exception as error:
                raise InvalidInput([Problem(name, f"not a readable task YAML: {one_line(error)}")]) from None
            if entry is None:
                raise InvalidInput([Problem(name, "the YAML has neither a `task` nor a `group`")])
            self._own[entry.name] = entry
            name = entry.name
        if self.find(name) is None:
            known = [*self._own, *_built_in()]
            hint = did_you_mean(name, known) if len(known) < 60 else _close(name, known)
            folders = "fitness/tasks, include_path and lm-eval's own tasks"
            raise InvalidInput([Problem(where, f"no lm-eval task is called {name!r} (looked in {folders}). {hint}")])
        touched: dict[str, TaskEntry] = {}

        def look_up(wanted: str) -> TaskEntry | None:
            entry = self.find(wanted)
            if entry is not None:
                touched[wanted] = entry
            return entry

        _load(name, look_up)
        return TaskTree(name, tuple(touched.values()))


def load_tree(tree: TaskTree) -> LoadedTree:
    """Read the YAMLs of a tree.

    Raises:
        InvalidInput: a YAML or the Python beside it cannot be read.
    """
    return _load(tree.root, {entry.name: entry for entry in tree.entries}.get)


_LookUp = Callable[[str], TaskEntry | None]


def _load(name: str, look_up: _LookUp) -> LoadedTree:
    leaves = tuple(_expand(name, {}, look_up, ()))
    entry = look_up(name)
    assert entry is not None
    kind = "task" if entry.kind == "class" else entry.kind
    names = [leaf.name for leaf in leaves]
    if twice := sorted({leaf for leaf in names if names.count(leaf) > 1}):
        raise InvalidInput([Problem(entry.path or name, f"{kind} {name!r} holds the task {twice[0]!r} twice")])
    if not leaves:
        raise InvalidInput([Problem(entry.path or name, f"{kind} {name!r} holds no task")])
    weights: dict[str, bool] = {}
    if entry.kind == "group":
        listed = _read_yaml(entry).get("aggregate_metric_list") or []
        for item in [listed] if isinstance(listed, dict) else listed:
            aggregate = AggMetricConfig(**item)
            weights[aggregate.metric] = bool(aggregate.weight_by_size)
    return LoadedTree(kind, leaves, weights)


def _expand(name: str, overrides: Mapping[str, Any], look_up: _LookUp, above: tuple[str, ...]) -> Iterator[Leaf]:
    entry = look_up(name)
    if entry is None:
        raise InvalidInput([Problem(above[-1] if above else name, f"holds {name!r}, which is no known task")])
    if name in above:
        raise InvalidInput([Problem(entry.path or name, f"the group {name!r} contains itself")])
    if entry.kind == "class":
        message = f"task {name!r} is a Python class; evomerge scores tasks written in YAML"
        raise InvalidInput([Problem(entry.path or name, message)])
    if entry.kind == "tag":
        for member in sorted(entry.members):
            yield from _expand(member, overrides, look_up, (*above, name))
    elif entry.kind == "group":
        yield from _expand_group(name, _read_yaml(entry), overrides, look_up, above, entry.path)
    else:
        yield _leaf(name, {**_read_yaml(entry), **overrides}, entry.path)


def _expand_group(
    name: str,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    look_up: _LookUp,
    above: tuple[str, ...],
    path: str | None,
) -> Iterator[Leaf]:
    """Members of a group. Its non-group keys change every member; a mapping in ``task`` changes one member."""
    inherited = {**{key: value for key, value in config.items() if key not in _GROUP_KEYS}, **overrides}
    members = config.get("task") or []
    for item in [members] if isinstance(members, str) else members:
        if isinstance(item, str):
            yield from _expand(item, inherited, look_up, (*above, name))
        elif "group" in item:
            inner = {key: value for key, value in item.items() if key != "group"}
            if look_up(item["group"]) is not None:
                yield from _expand(item["group"], {**inherited, **inner}, look_up, (*above, name))
            else:
                yield from _expand_group(f"{name}::{item['group']}", item, inherited, look_up, (*above, name), path)
        elif look_up(item["task"]) is not None:
            yield from _expand(item["task"], {**inherited, **item}, look_up, (*above, name))
        else:
            yield _leaf(f"{name}::{item['task']}", {**inherited, **item}, path)


def _leaf(name: str, config: Mapping[str, Any], path: str | None) -> Leaf:
    kept = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    metadata = kept.get("metadata", {})
    kept["metadata"] = {**(metadata if isinstance(metadata, dict) else {"_metadata": metadata})}
    kept["metadata"]["config_source"] = path or "inline"
    kept["task"] = name
    return Leaf(name, _with_absolute_data(kept, path), path)


def _with_absolute_data(config: dict[str, Any], path: str | None) -> dict[str, Any]:
    """Data files relative to the YAML; lm-eval takes them relative to the working directory."""
    folder = Path(path).parent if path else Path.cwd()
    missing: list[str] = []

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if not isinstance(value, str) or any(mark in value for mark in _REMOTE):
            return value
        for candidate in (folder / value, Path.cwd() / value):
            if any(mark in value for mark in "*?[") or candidate.exists():
                return str(candidate.resolve() if candidate.exists() else candidate)
        missing.append(value)
        return value

    arguments = config.get("dataset_kwargs")
    local = config.get("dataset_path") in ("json", "csv", "parquet", "arrow", "text", "pandas", "xml")
    if isinstance(arguments, dict) and local:
        keys = [key for key in ("data_files", "data_dir") if key in arguments]
        config["dataset_kwargs"] = {**arguments, **{key: absolute(arguments[key]) for key in keys}}
    if missing:
        message = f"dataset_kwargs.data_files: no such file {missing[0]!r} (relative to this YAML)"
        raise InvalidInput([Problem(path or str(config.get("task")), message)])
    return config


def _read_yaml(entry: TaskEntry) -> dict[str, Any]:
    assert entry.path is not None
    try:
        config: dict[str, Any] = load_yaml(entry.path, resolve_func=True)
    except Exception as error:  # includes errors of the Python file beside the YAML
        raise InvalidInput([Problem(entry.path, f"not a readable task YAML: {one_line(error)}")]) from None
    return config


def _read_entry(path: Path) -> tuple[TaskEntry | None, tuple[str, ...]]:
    """The entry a YAML defines and its tags; None for a base file (``_name.yaml``) that others include."""
    config = load_yaml(path, resolve_func=False)
    if path.name.startswith("_") and not any(key in config for key in ("task", "group", "class")):
        return None, ()
    kinds = {Kind.TASK: "task", Kind.PY_TASK: "class", Kind.GROUP: "group"}
    kind = kinds[TaskIndex._kind_of(config)]
    tags = config.get("tag") or ()
    name = str(config["group"] if kind == "group" else config["task"])
    return TaskEntry(name, kind, str(path)), (tags,) if isinstance(tags, str) else tuple(tags)


@functools.cache
def _built_in() -> dict[str, TaskEntry]:
    """lm-eval's own tasks, indexed once a version."""
    folder = Path(lm_eval.tasks.__file__).parent
    cache = cache_dir() / f"lm_eval_tasks-{lm_eval.__version__}-{folder.stat().st_mtime_ns}.json"
    try:
        data = json.loads(cache.read_text())
        if data["folder"] == str(folder):
            return {entry.name: entry for entry in TaskTree.from_json(data).entries}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    kinds = {Kind.TASK: "task", Kind.PY_TASK: "class", Kind.GROUP: "group", Kind.TAG: "tag"}
    index = {
        name: TaskEntry(name, kinds[entry.kind], str(entry.yaml_path) if entry.yaml_path else None,
                        tuple(sorted(entry.tags)) if entry.kind is Kind.TAG else ())
        for name, entry in sorted(TaskIndex.build([folder]).items())
        if entry.kind in kinds
    }  # fmt: skip
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(cache, json.dumps({"folder": str(folder), **TaskTree("", tuple(index.values())).to_json()}))
    except OSError as error:
        logger.info("the index of lm-eval's tasks cannot be kept in %s: %s", cache.parent, error)
    return index


def _close(name: str, known: Sequence[str]) -> str:
    """Like `did_you_mean`, without listing fourteen thousand names."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("Did you mean") else "`lm-eval ls tasks` lists lm-eval's own."


def one_line(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
