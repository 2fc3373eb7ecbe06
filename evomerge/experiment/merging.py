"""Merging one recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from evomerge.engine.merge_to_disk import Progress, merge_to_disk
from evomerge.errors import InvalidInput, Problem
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.recipe_yaml import load_recipe


def merge(
    recipe: Recipe | str | Path, out: str | Path, progress: Progress | None = None, hash_kind: str = "headers"
) -> Path:
    """Write a recipe's model as a checkpoint.

    Args:
        recipe: a recipe, or a YAML file in evomerge's or mergekit's form.
        out: new or empty directory.
        progress: called with (bytes written, bytes in total).
        hash_kind: what is hashed for the sources' fingerprints in the recipe file: ``headers`` or ``full`` contents.

    Raises:
        UserError: the recipe, its models or the place cannot be used.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    return merge_to_disk(loaded, Path(out), progress, hash_kind=hash_kind)


def as_recipe(model: str | Path) -> Recipe:
    """A recipe from a recipe file, or from anything a source may be (hub id, directory, ``zoo:`` name).

    Raises:
        InvalidInput: a YAML file that is no recipe.
    """
    from evomerge.recipes.recipe_reader import parse_source

    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return load_recipe(path)
    if path.is_file():
        raise InvalidInput([Problem(str(path), "expected a model directory or a recipe file ending in .yaml")])
    return Recipe(parse_source(str(model)))
