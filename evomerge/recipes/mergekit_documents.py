"""Whole mergekit files: one merge, a stack as slices, merges of merges as several documents.

What was written is read back and compared value by value before it is returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evomerge.errors import InvalidInput
from evomerge.methods.catalogue import get_spec
from evomerge.recipes.mergekit_dialect import DIALECT, UNCHANGED
from evomerge.recipes.mergekit_reader import readable_names
from evomerge.recipes.mergekit_writer import MergeWriter, NotExpressible, TensorPlace, llama_tensors, reference
from evomerge.recipes.recipe import Merge, Node, Recipe, Route, Source, Stack, StackPart, children
from evomerge.recipes.resolve import resolve_values
from evomerge.recipes.route_stacks import stack_of_route
from evomerge.recipes.vocabulary_yaml import vocabulary_value
from evomerge.yaml_files import format_flow

RANDOM_MASKS = "# Random masks: mergekit draws its own, so its result is another sample of the same merge."


def format_mergekit(recipe: Recipe, num_blocks: int, tensors: Sequence[TensorPlace] | None = None) -> str:
    """The recipe as mergekit YAML that resolves to the same values for every tensor.

    Args:
        recipe: the recipe.
        num_blocks: number of blocks of the merged model.
        tensors: (name, block, component) of every tensor; a Llama's when left out.

    Raises:
        NotExpressible: mergekit cannot say this; the message tells what.
    """
    if isinstance(recipe.model, Route):
        recipe = stack_of_route(recipe)
    if any(source.into is not None for source in recipe.sources):
        raise NotExpressible("mergekit cannot merge a model into a part of another")
    places = tuple(tensors) if tensors is not None else llama_tensors(num_blocks)
    text = _FileWriter(recipe, num_blocks, places).text()
    _check(text, recipe, num_blocks, places)
    return text


class _FileWriter:
    def __init__(self, recipe: Recipe, num_blocks: int, places: tuple[TensorPlace, ...]) -> None:
        self._recipe = recipe
        self._num_blocks = num_blocks
        self._places = places
        self._names: dict[int, str] = {}
        self._documents: list[str] = []

    def text(self) -> str:
        """The whole file."""
        root = self._recipe.model
        if isinstance(root, Stack):
            lines = self._stack(root)
        elif isinstance(root, Merge):
            self._write_inner(root)
            lines = self._merge(root, is_result=True)
        else:
            raise NotExpressible("the recipe is one model, not a merge")
        return "---\n".join([*self._documents, "\n".join(lines) + "\n"])

    def _write_inner(self, merge: Merge) -> None:
        """Documents of the merges below one, deepest first."""
        labels = {id(node): name for name, node in merge.experts}
        for node in children(merge):
            if isinstance(node, Source) or id(node) in self._names:
                continue
            if not isinstance(node, Merge):
                raise NotExpressible("mergekit has no words for a stack inside a merge of another kind")
            self._write_inner(node)
            taken = sorted({source.model for source in self._recipe.sources} | set(self._names.values()))
            name = readable_names([*taken, labels.get(id(node), "merged")])[-1]
            self._names[id(node)] = name
            self._documents.append(
                "\n".join([f"name: {format_flow(name)}", *self._merge(node, is_result=False)]) + "\n"
            )

    def _merge(self, merge: Merge, is_result: bool) -> list[str]:
        writer = self._writer(merge, self._num_blocks)
        # Files that name the blocks may mean fewer than the models have.
        as_slices = is_result and "num_blocks" in dict(self._recipe.options)
        lines = [f"merge_method: {merge.method}", *writer.lines(as_slices)]
        if get_spec(merge.method).stochastic:
            lines.insert(0, RANDOM_MASKS)
        extension: dict[str, Any] = {"seed": merge.seed} if merge.seed else {}
        lines += self._settings(writer.base, extension) if is_result else ["dtype: float32"]
        extension["experts"] = [name for name, _ in merge.experts]
        return [*lines, f"evomerge: {format_flow(extension)}"]

    def _writer(self, merge: Merge, num_blocks: int) -> MergeWriter:
        if merge.stretches is not None:
            raise NotExpressible("mergekit's coefficients change between tensors only, these change inside tensors")
        if merge.method not in DIALECT:
            raise NotExpressible(f"mergekit has no method {merge.method}")
        places = tuple(place for place in self._places if place[1] is None or place[1] < num_blocks)
        return MergeWriter(merge, get_spec(merge.method), num_blocks, places, self._names)

    def _stack(self, stack: Stack) -> list[str]:
        merges = [part.node for part in stack.parts if isinstance(part.node, Merge)]
        methods = {merge.method for merge in merges} or {"passthrough"}
        if len(methods) > 1 or len({merge.seed for merge in merges}) > 1:
            raise NotExpressible("mergekit has one method, and evomerge one seed, for all slices of a file")
        method = min(methods)
        lines = [f"merge_method: {method}", "slices:"]
        for index, part in enumerate(stack.parts):
            lines += self._part(part, method, index == 0, index == len(stack.parts) - 1)
        if get_spec(method).stochastic:
            lines.insert(0, RANDOM_MASKS)
        extension: dict[str, Any] = {"seed": merges[0].seed} if merges and merges[0].seed else {}
        lines += self._settings(None, extension)
        if merges:
            names = [
                [name for name, _ in node.experts] if isinstance(node, Merge) else None for node in children(stack)
            ]
            extension["experts"] = names
        return [*lines, *([f"evomerge: {format_flow(extension)}"] if extension else [])]

    def _part(self, part: StackPart, method: str, is_first: bool, is_last: bool) -> list[str]:
        if isinstance(part.node, Source):
            model = reference(part.node)
            entry = {"model": model, "layer_range": [part.start, part.end]}
            lines = ["  - sources:", f"      - {format_flow(entry)}"]
            # A method that needs a base keeps it where it has no expert.
            return lines if method == "passthrough" else [*lines, f"    base_model: {format_flow(model)}"]
        inner = children(part.node)
        spans = [node.num_blocks for node in inner if isinstance(node, Stack) and len(node.parts) == 1]
        if not isinstance(part.node, Merge) or part.start or spans != [part.end] * len(inner):
            raise NotExpressible("a part of the stack is more than a merge of blocks of single models")
        return self._writer(part.node, part.end).slice_lines(is_first, is_last)

    def _settings(self, base: Node | None, extension: dict[str, Any]) -> list[str]:
        """dtypes, tokenizer and chat template of the result; what mergekit has no key for goes into ``extension``."""
        recipe, lines = self._recipe, []
        vocabulary = recipe.vocabulary
        if vocabulary is not None and vocabulary.base is not None and base is None:
            lines.append(f"base_model: {format_flow(reference(vocabulary.base))}")
        if recipe.parity is not None:
            extension["parity"] = recipe.parity
        compute = "float32" if recipe.parity is None and recipe.dtype is not None else recipe.compute_dtype
        lines += [f"{key}: {value}" for key, value in (("dtype", compute), ("out_dtype", recipe.dtype)) if value]
        if vocabulary is not None:
            lines.append(f"tokenizer: {format_flow(vocabulary_value(vocabulary, reference))}")
        elif base is None or recipe.reference != base:
            plain = Source(recipe.reference.model, recipe.reference.revision)
            lines.append(f"tokenizer_source: {format_flow(reference(plain))}")
            extension["vocabulary"] = UNCHANGED
        if recipe.chat_template is not None:
            lines.append(f"chat_template: {format_flow(recipe.chat_template)}")
        return lines


def _check(text: str, recipe: Recipe, num_blocks: int, places: tuple[TensorPlace, ...]) -> None:
    """Read the text back and compare every value of every tensor."""
    from evomerge.recipes.mergekit_yaml import parse_mergekit

    try:
        back = parse_mergekit(text)
    except InvalidInput as error:
        raise NotExpressible(f"mergekit would not take it: {error.problems[0].message}") from error
    for name in ("vocabulary", "chat_template", "parity", "compute_dtype", "dtype"):
        if getattr(back, name) != getattr(recipe, name):
            raise NotExpressible(f"mergekit would take {getattr(back, name)} as {name}, not {getattr(recipe, name)}")
    if (back.reference.model, back.reference.revision) != (recipe.reference.model, recipe.reference.revision):
        raise NotExpressible(f"mergekit would take the configuration of {back.reference}, not {recipe.reference}")
    if recipe.options and back.options != recipe.options:
        raise NotExpressible(f"mergekit would take {dict(back.options)} as options, not {dict(recipe.options)}")
    _compare(recipe.model, back.model, num_blocks, places)


def _compare(wanted: Node, found: Node, num_blocks: int, places: tuple[TensorPlace, ...]) -> None:
    if isinstance(wanted, Stack) and isinstance(found, Stack):
        spans = [[(part.start, part.end) for part in stack.parts] for stack in (wanted, found)]
        if spans[0] != spans[1]:
            raise NotExpressible("mergekit would stack other blocks")
        for left, right in zip(wanted.parts, found.parts):
            _compare(left.node, right.node, left.end, places)
        return
    if not isinstance(wanted, Merge) or not isinstance(found, Merge):
        if wanted != found:
            raise NotExpressible("mergekit would merge other models")
        return
    if (wanted.method, wanted.seed) != (found.method, found.seed) or len(children(wanted)) != len(children(found)):
        raise NotExpressible("mergekit would merge other models")
    for inner, other in zip(children(wanted), children(found)):
        _compare(inner, other, num_blocks, places)
    for name, block, component in places:
        if block is not None and block >= num_blocks:
            continue
        values = resolve_values(found, name, block, component, num_blocks)
        for key, value in resolve_values(wanted, name, block, component, num_blocks).items():
            if not _same(value, values[key]):
                raise NotExpressible(f"mergekit would give {key} = {values[key]} for {name}, the recipe has {value}")


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right))
    if isinstance(left, float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-15)
    return bool(left == right)
