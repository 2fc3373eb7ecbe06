"""mergekit's YAML dialect, read and written.

A file may hold several documents with a ``name``; what one makes may be a model of another. The document without a
name, or the last one, is the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import InvalidInput, Problem, few_problems
from evomerge.recipes.mergekit_documents import format_mergekit
from evomerge.recipes.mergekit_reader import MergekitReader
from evomerge.recipes.mergekit_writer import NotExpressible
from evomerge.recipes.recipe import Node, Recipe, Stack, StackPart
from evomerge.recipes.validate import recipe_problems
from evomerge.yaml_files import parse_yaml_documents

__all__ = ["NotExpressible", "format_mergekit", "parse_mergekit", "recipe_from_mergekit"]

# Settings of an inner document that say nothing of its weights as the outer one sees them.
OUTER_ONLY = ("tokenizer_source", "tokenizer", "chat_template")


def parse_mergekit(text: str, where: str = "mergekit recipe") -> Recipe:
    """The recipe that gives what mergekit makes of this YAML, mergekit's defaults spelled out.

    Args:
        text: mergekit YAML.
        where: file name shown in errors.

    Raises:
        InvalidInput: everything wrong with it or not supported.
    """
    return recipe_from_mergekit(parse_yaml_documents(text, where), where)


def recipe_from_mergekit(documents: Sequence[Mapping[str, Any]], where: str) -> Recipe:
    """The recipe of a mergekit file's documents.

    Raises:
        InvalidInput: everything wrong with it or not supported.
    """
    if len(documents) == 1:
        recipe, problems = _one({key: value for key, value in documents[0].items() if key != "name"}, where, {})
    else:
        recipe, problems = _Documents(documents, where).result()
    if problems or recipe is None:
        raise InvalidInput(few_problems(list(dict.fromkeys(problems))))
    return recipe


def _one(entries: Mapping[str, Any], where: str, named: Mapping[str, Node]) -> tuple[Recipe | None, list[Problem]]:
    reader = MergekitReader(where, named)
    recipe = reader.recipe(entries)
    return recipe, reader.problems or (recipe_problems(recipe, where) if recipe is not None else [])


class _Documents:
    """The documents of one file, each read when another needs it."""

    def __init__(self, documents: Sequence[Mapping[str, Any]], where: str) -> None:
        self._where = where
        self._problems: list[Problem] = []
        self._by_name: dict[str, Mapping[str, Any]] = {}
        self._nodes: dict[str, Node] = {}
        self._open: list[str] = []
        unnamed = [entries for entries in documents if entries.get("name") is None]
        if len(unnamed) > 1:
            self._add("name", "only one document may be without a name: the result")
        for entries in documents:
            name = entries.get("name")
            if name is not None and (not isinstance(name, str) or name in self._by_name):
                self._add("name", f"expected a name of its own for every document, got {name!r}")
            elif name is not None:
                self._by_name[name] = entries
        self._last = unnamed[0] if unnamed else documents[-1]

    def result(self) -> tuple[Recipe | None, list[Problem]]:
        """The last document's recipe, and everything wrong with any that it needs."""
        recipe = self._read(self._last, self._where) if not self._problems else None
        return recipe, self._problems

    def _read(self, entries: Mapping[str, Any], where: str) -> Recipe | None:
        own = {key: value for key, value in entries.items() if key != "name"}
        named = {name: node for name in self._used(own, entries.get("name")) if (node := self._node(name)) is not None}
        if self._problems:
            return None
        recipe, problems = _one(own, where, named)
        self._problems.extend(problems)
        return recipe

    def _node(self, name: str) -> Node | None:
        if name in self._open:
            self._add("name", f"the documents {', '.join([*self._open, name])} need each other in a circle")
            return None
        if name not in self._nodes:
            entries = self._by_name[name]
            for key in OUTER_ONLY:
                if entries.get(key) is not None:
                    self._add(f"{name}: {key}", "only counts in the document that is the result; move it there")
            self._open.append(name)
            recipe = self._read(entries, f"{self._where}: {name}")
            self._open.pop()
            if recipe is None:
                return None
            depth = dict(recipe.options).get("num_blocks")
            # Slices may be fewer blocks than the models have.
            self._nodes[name] = recipe.model if depth is None else Stack((StackPart(recipe.model, 0, int(depth)),))
        return self._nodes[name]

    def _used(self, value: Any, own_name: Any) -> list[str]:
        """Names of documents among the models of a document."""
        if isinstance(value, Mapping):
            inside = [
                found for key, item in value.items() if key != "parameters" for found in self._used(item, own_name)
            ]
            return list(dict.fromkeys(inside))
        if isinstance(value, list):
            return list(dict.fromkeys(found for item in value for found in self._used(item, own_name)))
        name = value.partition("+")[0].partition("@")[0] if isinstance(value, str) else None
        return [name] if name in self._by_name else []

    def _add(self, key: str, message: str) -> None:
        self._problems.append(Problem(f"{self._where}: {key}", message))
