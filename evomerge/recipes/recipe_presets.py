"""Merges that are known by a name of their own, as recipes of merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.errors import did_you_mean

Entries = dict[str, Any]
Note = Callable[[str, str], None]


def expand_preset(entries: Mapping[str, Any], note: Note) -> Entries | None:
    """The mapping that a recipe with ``preset: name`` stands for; None when ``note`` was told why not.

    Args:
        entries: the recipe's mapping.
        note: takes key and message of a problem.
    """
    name = entries["preset"]
    if name not in PRESETS:
        note("preset", f"no recipe is called {name!r}. {did_you_mean(str(name), PRESETS)}")
        return None
    models, numbers, build = PRESETS[name]
    known = (*models, *numbers, "preset", "dtype", "tokenizer")
    for key in entries:
        if key not in known:
            note(key, f"unknown key. {did_you_mean(key, known)}")
    for key in models:
        if entries.get(key) is None:
            note(key, "missing; it is required")
    for key in numbers:
        value = entries.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            note(key, f"expected a number from 0 to 1, got {value!r}")
            return None
    if any(entries.get(key) is None for key in models):
        return None
    rest = {key: entries[key] for key in ("dtype", "tokenizer") if key in entries}
    return {**build({**numbers, **entries}), **rest}


def balanced_actor(given: Mapping[str, Any]) -> Entries:
    """Two stages: the instruct and the reasoning model merged, then the result with the pre-trained model.

    ``θ = β (α θ_instruct + (1 - α) θ_reasoning) + (1 - β) θ_pretrained``. The ratios are not published; balanced ones
    are reported best.
    Reference: Balanced Actor Initialization (2025), abstract only.
    """
    alpha, beta = float(given["alpha"]), float(given["beta"])
    inner = {
        "method": "linear",
        "experts": {"instruct": given["instruct"], "reasoning": given["reasoning"]},
        "parameters": {"coefficient": {"instruct": alpha, "reasoning": 1.0 - alpha}, "normalize": False},
    }
    return {
        "method": "task_arithmetic",
        "base": given["pretrained"],
        "experts": {"merged": inner},
        "parameters": {"coefficient": beta},
    }


# Name to the models it needs, its numbers with their defaults, and what builds the mapping.
PRESETS: dict[str, tuple[tuple[str, ...], dict[str, float], Callable[[Mapping[str, Any]], Entries]]] = {
    "balanced_actor": (("instruct", "reasoning", "pretrained"), {"alpha": 0.5, "beta": 0.5}, balanced_actor),
}
