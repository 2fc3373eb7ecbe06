"""Which source a NaN or an infinity came from."""

from __future__ import annotations

from evomerge.engine.architecture import Slot
from evomerge.engine.model_tensors import OpenModels
from evomerge.recipes.recipe import Recipe


def blame(recipe: Recipe, models: OpenModels, slot: Slot) -> str:
    """A closing sentence that names the sources whose own tensor is not finite, or says that all of them are."""
    wanted = set(recipe.sources)
    found = [pair for pair in models.made_of(slot) if pair[0] in wanted]
    broken = [str(source) for source, name in found if not bool(models.get(source).tensor(name).isfinite().all())]
    broken = list(dict.fromkeys(broken))
    if broken:
        return f". The values come from {', '.join(broken)}: that model is damaged, use another one"
    return ". All sources are finite there: smaller coefficients, or dtype bfloat16 or float32, avoid the overflow"
