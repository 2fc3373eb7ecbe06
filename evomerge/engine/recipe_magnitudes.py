"""How large the numbers of a merge are: what a penalty on them is measured by."""

from __future__ import annotations

from evomerge.engine.architecture import Architecture
from evomerge.recipes.recipe import Merge, Node, children
from evomerge.recipes.resolve import resolve_values


def mean_magnitudes(node: Node, architecture: Architecture) -> dict[str, float]:
    """Mean of ``|value|`` over experts and tensors, of every number of a merge.

    Each tensor counts once, whatever its size. Of merges inside merges the outermost with that hyperparameter counts.

    Args:
        node: a recipe's model.
        architecture: of the merged model.
    """
    found: dict[str, float] = {}
    if isinstance(node, Merge):
        sums: dict[str, float] = {}
        for slot in architecture.slots:
            values = resolve_values(node, slot.name, slot.block, slot.component, architecture.num_blocks)
            for name, value in values.items():
                numbers = value if isinstance(value, tuple) else (value,)
                if all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
                    sums[name] = sums.get(name, 0.0) + sum(abs(float(number)) for number in numbers) / len(numbers)
        found = {name: total / len(architecture.slots) for name, total in sums.items()}
    for child in children(node):
        found = {**mean_magnitudes(child, architecture), **found}
    return found
