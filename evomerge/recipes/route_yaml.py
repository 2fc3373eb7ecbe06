"""Routes in recipe files: reading them, writing them, and what can be wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from evomerge.errors import did_you_mean
from evomerge.recipes.recipe import Hop, Node, Recipe, Route, Source
from evomerge.yaml_files import format_flow, is_finite_number

ROUTE_KEYS = ("models", "ends", "hops", "scale_target", "output_scale")
SCALE_TARGETS = ("stream", "branch")

Report = Callable[[str, str], None]


def read_route(value: Any, read_node: Callable[[Any, str], Node | None], report: Report) -> Route | None:
    """The route of a YAML mapping, None when it could not be understood.

    Args:
        value: what stands behind ``route:``.
        read_node: (value, key) to the node of a model.
        report: takes (key, message) of everything that is wrong.
    """
    if not isinstance(value, Mapping):
        report("route", f"expected a mapping with models and hops, got {value!r}")
        return None
    for name in value:
        if name not in ROUTE_KEYS:
            report(f"route.{name}", f"unknown key. {did_you_mean(name, ROUTE_KEYS)}")
    models = value.get("models")
    if not isinstance(models, Mapping) or not models:
        found = "missing; it is required" if models is None else f"got {models!r}"
        report("route.models", f"expected a mapping of names to models ({found})")
        return None
    nodes = []
    for name, item in models.items():
        node = read_node(item, f"route.models.{name}")
        # A placeholder keeps the names right for the checks that follow.
        nodes.append((str(name), node if node is not None else Source("?")))
    hops = _hops(value.get("hops"), report)
    target, output = value.get("scale_target", "stream"), value.get("output_scale", 1.0)
    if target not in SCALE_TARGETS:
        report("route.scale_target", f"expected {' or '.join(SCALE_TARGETS)}, got {target!r}")
        target = "stream"
    if not is_finite_number(output):
        report("route.output_scale", f"expected a finite number, got {output!r}")
        output = 1.0
    if not hops:
        return None
    return Route(tuple(nodes), hops, str(value.get("ends", hops[0].model)), target, float(output))


def _hops(value: Any, report: Report) -> tuple[Hop, ...]:
    if not isinstance(value, list) or not value:
        report("route.hops", f"expected a list of [model, block] or [model, block, scale], got {value!r}")
        return ()
    hops = []
    for index, item in enumerate(value):
        fits = isinstance(item, list) and len(item) in (2, 3) and isinstance(item[0], str) and type(item[1]) is int
        if not fits or not all(is_finite_number(scale) for scale in item[2:]):
            report(f"route.hops[{index}]", f"expected [model, block] or [model, block, scale], got {item!r}")
            continue
        hops.append(Hop(item[0], item[1], *(float(scale) for scale in item[2:])))
    return tuple(hops)


def route_lines(route: Route, node_lines: Callable[[str, Node], Iterable[str]]) -> Iterator[str]:
    """The YAML lines of a route.

    Args:
        route: what to write.
        node_lines: the lines of a named model.
    """
    yield "route:"
    yield "  models:"
    for name, node in route.models:
        yield from node_lines(name, node)
    yield f"  ends: {format_flow(route.ends)}"
    if route.scale_target != "stream":
        yield f"  scale_target: {route.scale_target}"
    if route.output_scale != 1:
        yield f"  output_scale: {format_flow(route.output_scale)}"
    yield "  hops:"
    for hop in route.hops:
        entry = [hop.model, hop.block] if hop.scale == 1 else [hop.model, hop.block, hop.scale]
        yield f"    - {format_flow(entry)}"


def route_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, message) of everything wrong with a recipe's route that shows without its models."""
    route = recipe.model
    assert isinstance(route, Route)
    names = [name for name, _ in route.models]
    if not route.hops:
        yield "route.hops", "has no hops; expected at least one [model, block]"
    if len(set(names)) < len(names):
        yield "route.models", "two models have the same name"
    if route.ends not in names:
        yield "route.ends", f"there is no model {route.ends!r}. {did_you_mean(route.ends, names)}"
    for index, hop in enumerate(route.hops):
        if hop.model not in names:
            yield f"route.hops[{index}]", f"there is no model {hop.model!r}. {did_you_mean(hop.model, names)}"
        if isinstance(hop.block, bool) or hop.block < 0:
            yield f"route.hops[{index}]", f"expected a block of at least 0, got {hop.block!r}"
        if not is_finite_number(hop.scale):
            yield f"route.hops[{index}]", f"expected a finite scale, got {hop.scale!r}"
    used = {hop.model for hop in route.hops} | {route.ends}
    for name in names:
        if name not in used:
            yield f"route.models.{name}", "is used by no hop; remove it"
    if route.scale_target not in SCALE_TARGETS:
        yield "route.scale_target", f"expected {' or '.join(SCALE_TARGETS)}, got {route.scale_target!r}"
    if not is_finite_number(route.output_scale):
        yield "route.output_scale", f"expected a finite number, got {route.output_scale!r}"
    elif route.scale_target == "branch" and route.output_scale != 1:
        yield "route.output_scale", "only counts with scale_target: stream; remove it"
    options = dict(recipe.options)
    for key, is_given in (("options.num_blocks", "num_blocks" in options), ("parity", recipe.parity is not None),
                          ("tokenizer", recipe.vocabulary is not None)):  # fmt: skip
        if is_given:
            yield key, "cannot be combined with a route; merge its models to disk first and use the directories"
    if options.get("output") == "adapter":
        yield "options.output", "a route changes the blocks and cannot be written as an adapter"
