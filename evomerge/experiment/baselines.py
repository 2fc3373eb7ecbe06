"""The fixed recipes every search is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.experiment.config import FinishConfig
from evomerge.experiment.load import Experiment
from evomerge.recipes.recipe import Hop, Merge, Node, Recipe, Route, Rule, Source, route_through
from evomerge.terms import SplitName

Experts = tuple[tuple[str, Source], ...]


def baseline_key(name: str, split: SplitName) -> str:
    """Job key of a baseline's evaluation."""
    return f"baseline:{name}:{split}"


def experiment_baselines(loaded: Experiment) -> dict[str, Recipe]:
    """The baselines of an experiment by name; also with ``finish.baselines: false``."""
    config = loaded.config
    return baseline_recipes(loaded.base, loaded.experts, config.finish, config.dtype, loaded.depths, loaded.stages)


def baseline_recipes(
    base: Source | None,
    experts: Experts,
    settings: FinishConfig,
    dtype: str | None,
    depths: Mapping[str, int] | None = None,
    stages: Sequence[tuple[str, Node]] = (),
) -> dict[str, Recipe]:
    """Named baselines: base, experts, what earlier stages found, uniform soup, task arithmetic, default TIES.

    Task arithmetic and TIES need a base and are left out without one. Models of different depth cannot be merged; then
    the base and the experts are all, each as a route through its own blocks.

    Args:
        base: the common ancestor, or None.
        experts: (name, model) in the experiment's order.
        settings: strengths and density.
        dtype: stored dtype of the merged weights, None = the base's own.
        depths: number of blocks by name, as far as known.
        stages: (name, model) of what earlier stages found.
    """
    if depths and len(set(depths.values())) > 1:
        routes = {f"stage {name}": Recipe(node, dtype=dtype) for name, node in stages if isinstance(node, Route)}
        return _whole_routes(base, experts, depths, dtype) | routes
    reference = base or experts[0][1]

    def recipe(model: Node) -> Recipe:
        return Recipe(model, dtype=dtype, tokenizer=reference)

    found = {} if base is None else {"base": recipe(base)}
    found |= {f"expert {name}": recipe(source) for name, source in experts}
    found |= {f"stage {name}": recipe(node) for name, node in stages}
    if len(experts) > 1:
        share = Rule(1 / len(experts))
        found["uniform soup"] = recipe(Merge("linear", experts, None, (("coefficient", (share,)),)))
    if base is not None:
        for strength in settings.task_arithmetic:
            same = Rule(strength)
            found[f"task arithmetic {strength:g}"] = recipe(
                Merge("task_arithmetic", experts, base, (("coefficient", (same,)),))
            )
        density = settings.ties_density
        trimmed = (("coefficient", (Rule(1.0),)), ("density", (Rule(density),)))
        found[f"ties density {density:g}"] = recipe(Merge("ties", experts, base, trimmed))
    return found


def _whole_routes(
    base: Source | None, experts: Experts, depths: Mapping[str, int], dtype: str | None
) -> dict[str, Recipe]:
    """The base and each expert, as routes through all their blocks."""
    named = [
        *([] if base is None else [("base", "base", base)]),
        *((f"expert {name}", name, at) for name, at in experts),
    ]
    found: dict[str, Recipe] = {}
    for title, name, source in named:
        hops = [Hop(name, block) for block in range(depths[name])]
        found[title] = Recipe(route_through({name: source}, hops, name), dtype=dtype)
    return found
