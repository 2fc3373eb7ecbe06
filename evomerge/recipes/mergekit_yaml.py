"""mergekit's YAML dialect, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import InvalidInput, few_problems
from evomerge.recipes.mergekit_reader import MergekitReader
from evomerge.recipes.mergekit_writer import NotExpressible, format_mergekit
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.validate import recipe_problems
from evomerge.yaml_files import parse_yaml_mapping

__all__ = ["NotExpressible", "format_mergekit", "parse_mergekit", "recipe_from_mergekit"]


def parse_mergekit(text: str, where: str = "mergekit recipe") -> Recipe:
    """The recipe that gives what mergekit makes of this YAML, mergekit's defaults spelled out.

    Args:
        text: mergekit YAML.
        where: file name shown in errors.

    Raises:
        InvalidInput: everything wrong with it or not supported.
    """
    return recipe_from_mergekit(parse_yaml_mapping(text, where), where)


def recipe_from_mergekit(entries: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a mergekit YAML mapping.

    Raises:
        InvalidInput: everything wrong with it or not supported.
    """
    reader = MergekitReader(where)
    recipe = reader.recipe(entries)
    problems = reader.problems or (recipe_problems(recipe, where) if recipe is not None else [])
    if problems or recipe is None:
        raise InvalidInput(few_problems(list(dict.fromkeys(problems))))
    return recipe
