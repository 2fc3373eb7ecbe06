"""Merging one recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from evomerge.engine.merge_to_adapter import AdapterReport, merge_to_adapter
from evomerge.engine.merge_to_disk import Progress, Told, merge_to_disk
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.recipe_yaml import load_recipe
from evomerge.recipes.validate import OUTPUTS


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    progress: Progress | None = None,
    hash_kind: str = "headers",
    output: str | None = None,
    rank: int | None = None,
    form: str = "auto",
    *,
    told: Told | None = None,
) -> Path | AdapterReport:
    """Write a recipe's model as a checkpoint, or a merge of LoRA adapters as an adapter.

    Args:
        recipe: a recipe, or a YAML file in evomerge's or mergekit's form.
        out: new or empty directory.
        progress: called with (bytes written, bytes in total).
        hash_kind: what is hashed for the sources' fingerprints in the recipe file: ``headers`` or ``full`` contents.
        output: ``model`` or ``adapter``; None = what the recipe's options say, else a model.
        rank: of a written adapter; None = what the recipe's options say.
        form: ``auto``, ``plain``, ``compact`` or ``mergekit``; but for routes only the first two.
        told: called with one line on the form that was written and why, where there are several.

    Returns:
        The directory; for an adapter also what its rank cut off.

    Raises:
        UserError: the recipe, its models or the place cannot be used.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    options = dict(loaded.options)
    wanted = output or options.get("output", "model")
    if wanted not in OUTPUTS:
        raise UserError(f"--output: expected {' or '.join(OUTPUTS)}, got {wanted!r}")
    if wanted == "model":
        if rank is not None:
            raise UserError("--rank: only an adapter has a rank; add --output adapter")
        return merge_to_disk(loaded, Path(out), progress, hash_kind=hash_kind, form=form, told=told)
    if form not in ("auto", "plain"):
        raise UserError(f"--form {form}: an adapter has one form only; leave it out")
    rank = int(options.get("rank", 0)) if rank is None else rank
    if not rank:
        raise UserError("--output adapter: give its rank with --rank, for example --rank 16")
    return merge_to_adapter(loaded, Path(out), rank, progress)


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
