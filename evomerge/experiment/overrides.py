"""``--set key.path=value``: changing an experiment file's values from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from evomerge.errors import InvalidInput, Problem


def apply_overrides(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the mapping with each ``key.path=value`` applied; values are YAML.

    A key behind a list is the number of an entry, or its ``name``: ``search_space.stages.dfs.budget.evaluations=40``.

    Raises:
        InvalidInput: an override without ``=``, with a value that is not YAML, or through something not a mapping.
    """
    result: dict[str, Any] = _copied(mapping)
    problems = []
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            problems.append(Problem(f"--set {override}", "expected key=value, for example budget.evaluations=100"))
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(Problem(f"--set {override}", f"the value is not YAML: {error}"))
            continue
        place: Any = result
        for position, key in enumerate(keys[:-1]):
            inner = _entry(place, key)
            if not isinstance(inner, dict | list) or (isinstance(inner, list) and position == len(keys) - 2):
                where = ".".join(keys[: position + 1])
                found = "does not exist" if inner is None else f"is {inner!r}, not a mapping with keys"
                problems.append(Problem(f"--set {override}", f"{where} {found}"))
                break
            place = inner
        else:
            place[keys[-1]] = value
    if problems:
        raise InvalidInput(problems)
    return result


def _entry(place: dict[str, Any] | list[Any], key: str) -> Any:
    """What stands behind a key; an empty mapping where a mapping has nothing, None where a list has no such entry."""
    if isinstance(place, dict):
        return place.setdefault(key, {})
    named = [entry for entry in place if isinstance(entry, dict) and entry.get("name") == key]
    numbered = place[int(key) : int(key) + 1] if key.isdigit() else []
    return next(iter([*named, *numbered]), None)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
