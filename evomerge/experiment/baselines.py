"""The fixed recipes every search is measured against."""

from __future__ import annotations

from evomerge.experiment.config import FinishConfig
from evomerge.recipes.recipe import Merge, Node, Recipe, Rule, Source

Experts = tuple[tuple[str, Source], ...]


def baseline_recipes(
    base: Source | None, experts: Experts, settings: FinishConfig, dtype: str | None
) -> dict[str, Recipe]:
    """Named baselines: the base, each expert, the uniform soup, task arithmetic at fixed strengths, default TIES.

    Task arithmetic and TIES need a base and are left out without one.

    Args:
        base: the common ancestor, or None.
        experts: (name, model) in the experiment's order.
        settings: strengths and density.
        dtype: stored dtype of the merged weights, None = the base's own.
    """
    reference = base or experts[0][1]

    def recipe(model: Node) -> Recipe:
        return Recipe(model, dtype=dtype, tokenizer=reference)

    found = {} if base is None else {"base": recipe(base)}
    found |= {f"expert {name}": recipe(source) for name, source in experts}
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
