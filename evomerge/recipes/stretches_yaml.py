"""Stretches in recipe files: reading them, writing them, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import did_you_mean
from evomerge.recipes.recipe import Merge, Node, Route, Stretch, Stretches, children
from evomerge.yaml_files import format_flow, is_finite_number

KEYS = ("layout", "parts")
PART_KEYS = ("from", "value")
METHOD = "linear"

Report = Callable[[str, str], None]


def read_stretches(value: Any, key: str, experts: Sequence[str], report: Report) -> Stretches | None:
    """The stretches of a YAML mapping, None when they could not be understood.

    Args:
        value: what stands behind ``stretches:``.
        key: where that is.
        experts: names of the merge's experts, in its order.
        report: takes (key, message) of everything that is wrong.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        report(key, f"expected a mapping with layout and parts, got {value!r}")
        return None
    for name in value:
        if name not in KEYS:
            report(f"{key}.{name}", f"unknown key. {did_you_mean(name, KEYS)}")
    layout, items = value.get("layout"), value.get("parts")
    if not isinstance(layout, str):
        report(f"{key}.layout", f"expected 16 hex digits in quotes, got {layout!r}")
    if not isinstance(items, list) or not items:
        report(f"{key}.parts", f"expected a list of {{from: [tensor, offset], value: {{...}}}}, got {items!r}")
        return None
    parts = [_part(item, f"{key}.parts[{index}]", experts, report) for index, item in enumerate(items)]
    known = tuple(part for part in parts if part is not None)
    return Stretches(str(layout), known) if len(known) == len(parts) else None


def _part(item: Any, key: str, experts: Sequence[str], report: Report) -> Stretch | None:
    if not isinstance(item, Mapping) or set(item) != set(PART_KEYS):
        report(key, f"expected {{from: [tensor, offset], value: {{...}}}}, got {item!r}")
        return None
    start, value = item["from"], item["value"]
    right = isinstance(start, list) and len(start) == 2 and isinstance(start[0], str) and type(start[1]) is int
    if not right:
        report(f"{key}.from", f"expected [tensor, offset], got {start!r}")
    named = isinstance(value, Mapping) and set(value) == set(experts)
    if not named or not all(is_finite_number(number) for number in value.values()):
        report(f"{key}.value", f"expected a finite number for each of {', '.join(experts)}, got {value!r}")
        return None
    return Stretch(start[0], start[1], tuple(float(value[name]) for name in experts)) if right else None


def stretch_lines(merge: Merge, indent: str) -> Iterator[str]:
    """The YAML lines of a merge's stretches."""
    if merge.stretches is None:
        return
    names = [name for name, _ in merge.experts]
    yield f"{indent}stretches:"
    yield f"{indent}  layout: {format_flow(merge.stretches.layout)}"
    yield f"{indent}  parts:"
    for part in merge.stretches.parts:
        entry = {"from": [part.tensor, part.offset], "value": dict(zip(names, part.value, strict=True))}
        yield f"{indent}    - {format_flow(entry)}"


def stretch_problems(merge: Merge) -> Iterator[tuple[str, str]]:
    """Everything wrong with a merge's stretches that shows without its models, by key."""
    if merge.stretches is None:
        return
    if merge.method != METHOD:
        yield "stretches", f"{merge.method} has none; only {METHOD} takes coefficients by stretches"
    if merge.base is not None:
        yield "base", f"a {METHOD} merge with stretches has no base; name it as an expert, or as `tokenizer`"
    if merge.rules("coefficient"):
        yield "parameters.coefficient", "the stretches hold the coefficients; leave it out"
    if not merge.stretches.parts:
        yield "stretches.parts", "expected at least one"
    for index, part in enumerate(merge.stretches.parts):
        place = f"stretches.parts[{index}]"
        if part.offset < 0 or not part.tensor:
            yield f"{place}.from", f"expected [tensor, offset], got {[part.tensor, part.offset]}"
        if len(part.value) != len(merge.experts) or not all(is_finite_number(number) for number in part.value):
            yield f"{place}.value", f"expected {len(merge.experts)} finite numbers, got {list(part.value)}"


def has_stretches(node: Node) -> bool:
    """Whether a node or one below it has coefficients by stretches."""
    own = isinstance(node, Merge) and node.stretches is not None
    # A route may name an end that is not there; that is said elsewhere.
    below = tuple(inner for _, inner in node.models) if isinstance(node, Route) else children(node)
    return own or any(has_stretches(inner) for inner in below)
