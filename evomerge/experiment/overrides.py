"""``--set key.path=value``: changing an experiment file's values from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from evomerge.errors import InvalidInput, Problem


def apply_overrides(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the mapping with each ``key.path=value`` applied; values are YAML.

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
        place = result
        for position, key in enumerate(keys[:-1]):
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                where = ".".join(keys[: position + 1])
                problems.append(Problem(f"--set {override}", f"{where} is {inner!r}, not a mapping with keys"))
                break
            place = inner
        else:
            place[keys[-1]] = value
    if problems:
        raise InvalidInput(problems)
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
