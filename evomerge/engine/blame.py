"""Which source a NaN or an infinity came from."""

from __future__ import annotations

from evomerge.engine.architecture import Slot
from evomerge.engine.model_tensors import OpenModels
from evomerge.recipes.recipe import Recipe


def blame(recipe: Recipe, models: OpenModels, slot: Slot) -> str:
    """A closing sentence that names the sources whose own tensor is not finite, or says that all of them are."""
    broken = [
        str(source)
        for source in recipe.sources
        if slot.name not in models.get(source).absent
        and not bool(models.get(source).tensor(slot.name).isfinite().all())
    ]
    if broken:
        return f". The values come from {', '.join(broken)}: that model is damaged, use another one"
    return ". All sources are finite there: smaller coefficients, or dtype bfloat16 or float32, avoid the overflow"
