"""Whether a value a user wrote is one that a setting takes."""

from __future__ import annotations

import math
from typing import Any

from evomerge.search.base import Setting


def fits(setting: Setting, value: Any) -> bool:
    """Whether a value has the setting's type and lies in its range."""
    kind, _, auto = setting.kind.partition("_or_")
    if auto and value == "auto":
        return True
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "choice":
        return value in setting.choices
    if kind == "numbers":
        right = isinstance(value, list | tuple) and len(value) == (setting.count or len(value))
        return right and all(_is_number(item, setting) for item in value)
    return _is_number(value, setting, whole=kind == "int")


def _is_number(value: Any, setting: Setting, whole: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        return False
    return (setting.low is None or value >= setting.low) and (setting.high is None or value <= setting.high)


def expected_of(setting: Setting) -> str:
    """What a setting takes, in words."""
    kind, _, auto = setting.kind.partition("_or_")
    text = {
        "bool": "true or false",
        "choice": "one of " + ", ".join(setting.choices),
        "int": "a whole number",
        "float": "a number",
        "numbers": f"a list of {setting.count or ''} numbers".replace("  ", " "),
    }[kind]
    if kind in ("int", "float"):
        low, high = setting.low, setting.high
        if low is not None and high is not None:
            text += f" from {low:g} to {high:g}"
        elif low is not None:
            text += f" of at least {low:g}"
    return text + " or auto" if auto else text
