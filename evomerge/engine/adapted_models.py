"""The models of a recipe whose result has another depth or vocabulary than they have."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.adapted_config import ModelSizes, adapted_config, read_sizes
from evomerge.engine.architecture import Architecture, Slot
from evomerge.engine.block_places import BlockNames, BlockPlaces
from evomerge.engine.model_tensors import ModelTensors, OpenModels
from evomerge.engine.sources import resolve_source
from evomerge.engine.vocabulary import TokenPlan
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Modules, Node, Recipe, Route, Source, Stack, StackPart, children

MAX_LISTED = 3


class AdaptedModels(OpenModels):
    """Opened models of one kind but different sizes, seen from the model that a recipe makes of them.

    ``architecture`` is that of the result; tensors of a source have the names they have in the source.
    """

    is_adapted = True

    def __init__(self, recipe: Recipe, root: Node) -> None:
        """Open every source and find the result's architecture.

        Args:
            recipe: what to merge.
            root: its model.

        Raises:
            InvalidInput: models that are missing or do not fit, blocks that are not there; all at once.
        """
        self.reference = recipe.reference
        sources = tuple(dict.fromkeys((recipe.reference, *recipe.sources)))
        if parts := [str(source) for source in sources if source.into is not None]:
            raise UserError(
                f"recipe: {', '.join(parts)} is merged into a part of a model, which cannot be done while blocks or "
                "tokens change; merge it to disk first and use the directory as a model"
            )
        self._sizes = _read_all_sizes(sources)
        self._groups = self._open_groups(sources)
        self._models = {source: self._group(source).get(source) for source in sources}
        self.architecture = self._group(self.reference).architecture.of_first_stack()
        self._places = BlockPlaces(self.num_blocks, self.architecture)
        depth = self._places.depth(root)
        self.tokens = self._token_plan(recipe)
        self._config = self._adapt(root, depth)
        self.architecture = self._describe(self._config)
        self._places = BlockPlaces(self.num_blocks, self.architecture)
        self._root = root
        self._vocabulary_slots = self._find_vocabulary_slots()
        self._check_tensors()

    def num_blocks(self, source: Source) -> int:
        """Depth of a source."""
        return self._sizes[source].num_blocks

    @property
    def is_partial(self) -> bool:
        """Whether some model holds only a part of the tensors."""
        return False

    def made_of(self, slot: Slot) -> Iterator[tuple[Source, str]]:
        """The sources of a tensor of the result, with its name in each."""
        for source, place in self._places.sources(self._root, slot):
            yield source, place.name

    @property
    def keeps_vocabulary(self) -> bool:
        """Whether every model has the result's tokens already, row by row."""
        return self.tokens is None or self.tokens.is_identity

    def get(self, source: Source) -> ModelTensors:
        """The opened model of a source."""
        return self._models[source]

    def tensor(self, source: Source, name: str) -> Tensor:
        """A source's tensor, with the result's tokens as rows where its rows are tokens."""
        if self.tokens is None or name not in self._vocabulary_slots:
            return self.get(source).tensor(name)
        slot = self.architecture.by_name[name]
        merged = list(dict.fromkeys(model for model, _ in self._places.sources(self._root, slot)))
        return self.tokens.tensor(source, merged, lambda model: self.get(model).tensor(name))

    def is_mapped(self, source: Source, name: str) -> bool:
        """Whether ``tensor`` is a view of the file."""
        return name not in self._vocabulary_slots and self.get(source).is_mapped(name)

    def output_dtype(self, reference: Source, slot: Slot) -> torch.dtype:
        """Dtype in which the result holds a tensor: that of the first model it is made of."""
        source, place = next(self._places.sources(self._root, slot))
        return self.get(source).dtype(place.name)

    def buffer(self, name: str) -> Tensor | None:
        """A buffer of the result, None where the model it comes from has none."""
        slot = Slot(name, (), BlockNames(self.architecture).block_of(name), "other")
        source, place = next(self._places.sources(self._root, slot))
        model = self.get(source)
        return model.tensor(place.name) if model.has(place.name) else None

    def config_json(self) -> dict[str, Any]:
        """The configuration of the result."""
        return dict(self._config)

    def release(self, slot: Slot) -> None:
        """Let go of the pages of what a tensor of the result is made of."""
        for source, place in self._places.sources(self._root, slot):
            self.get(source).release(place.name)

    def _group(self, source: Source) -> OpenModels:
        return self._groups[self._sizes[source]]

    def _open_groups(self, sources: tuple[Source, ...]) -> dict[ModelSizes, OpenModels]:
        """The models of each size, opened together; one untied model makes all untied."""
        members: dict[ModelSizes, list[Source]] = {}
        for source in sources:
            members.setdefault(self._sizes[source], []).append(source)
        groups = {sizes: OpenModels(found[0], found[1:]) for sizes, found in members.items()}
        if len({group.architecture.is_tied for group in groups.values()}) > 1:
            groups = {sizes: OpenModels(found[0], found[1:], tie=False) for sizes, found in members.items()}
        return groups

    def _adapt(self, root: Node, depth: int) -> dict[str, Any]:
        """The reference's configuration with the result's sizes."""
        names = BlockNames(self.architecture)
        inside = next(slot for slot in self.architecture.slots if slot.block is not None)
        blocks = []
        for block in range(depth):
            source, place = next(self._places.sources(root, names.moved(inside, block)))
            assert place.block is not None
            blocks.append((self.get(source).directory, place.block))
        num_rows = None if self.tokens is None else self.tokens.num_rows
        config = adapted_config(self.get(self.reference).directory, blocks, num_rows)
        if self.tokens is not None:
            config = self.tokens.translated_ids(config)
            for name, part in config.items():
                if isinstance(part, dict):
                    config[name] = self.tokens.translated_ids(part)
        return config

    def _token_plan(self, recipe: Recipe) -> TokenPlan | None:
        if recipe.vocabulary is None:
            return None
        directories = {source: model.directory for source, model in self._models.items()}
        chosen = recipe.vocabulary.source
        if isinstance(chosen, Source) and chosen not in directories:
            directories[chosen] = resolve_source(chosen)
        rows = {source: read_sizes(path).vocab_size for source, path in directories.items()}
        return TokenPlan(recipe, directories, rows)

    def _find_vocabulary_slots(self) -> frozenset[str]:
        """Tensors with a row for every token: those that grow with the vocabulary."""
        if self.tokens is None:
            return frozenset()
        directory = self.get(self.reference).directory
        size = self._sizes[self.reference]
        larger = self._describe(adapted_config(directory, None, size.vocab_size + 1))
        own = self._group(self.reference).architecture.by_name
        return frozenset(slot.name for slot in larger.slots if slot.shape != own[slot.name].shape)

    def _describe(self, config: dict[str, Any]) -> Architecture:
        tie = None if self.architecture.is_tied or not self.architecture.tied else False
        with _config_directory(config) as directory:
            try:
                found = Architecture.of_directory(directory, tie).of_first_stack()
            except UserError as error:
                name = self.get(self.reference).directory
                raise UserError(f"{name}: its configuration cannot be adapted to the recipe ({error})") from error

        def build() -> Any:
            with _config_directory(config) as directory:
                return Architecture.of_directory(directory, tie).model

        return found if found.build is None else replace(found, build=cache(build))

    def _check_tensors(self) -> None:
        missing: dict[Source, list[str]] = {}
        shapes: dict[Source, list[str]] = {}
        for slot in self.architecture.slots:
            for source, place in self._places.sources(self._root, slot):
                model = self.get(source)
                if not model.has(place.name):
                    missing.setdefault(source, []).append(place.name)
                elif self._fixed(slot.name, model.shape(place)) != self._fixed(slot.name, slot.shape):
                    found, wanted = (list(shape) for shape in (model.shape(place), slot.shape))
                    shapes.setdefault(source, []).append(f"{place.name} is {found}, expected {wanted}")
        problems = []
        for what, found_in in (("lacks", missing), ("", shapes)):
            for source, names in found_in.items():
                distinct = list(dict.fromkeys(names))
                more = f" and {len(distinct) - MAX_LISTED} more" if len(distinct) > MAX_LISTED else ""
                hint = "All models of a recipe need one architecture."
                if self.tokens is None and len({size.vocab_size for size in self._sizes.values()}) > 1:
                    hint = "If it has other tokens, give the recipe `tokenizer: union` (or base)."
                text = f"{what} {', '.join(distinct[:MAX_LISTED])}{more}. {hint}"
                problems.append(Problem(f"model {source}", text.strip()))
        if problems:
            raise InvalidInput(problems)

    def _fixed(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What of a tensor's shape the vocabulary does not decide."""
        return shape[1:] if name in self._vocabulary_slots else shape


@contextmanager
def _config_directory(config: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        yield Path(directory)


def open_for_output(recipe: Recipe) -> tuple[OpenModels, Node]:
    """The models of a recipe opened for its result, and the node to merge.

    Raises:
        InvalidInput: models that are missing or do not fit, blocks that are not there; all at once.
    """
    root = recipe.model
    if not _has_stack(root) and recipe.vocabulary is None:
        models = OpenModels(recipe.reference, recipe.sources)
        root = cut_to_depth(recipe, models.architecture.num_blocks)
        if root is recipe.model:
            return models, root
    adapted = AdaptedModels(recipe, root)
    cut = cut_to_depth(recipe, adapted.architecture.num_blocks)
    return (adapted, root) if cut is root or cut is recipe.model else (AdaptedModels(recipe, cut), cut)


def check_live(recipe: Recipe) -> None:
    """Refuse a recipe that a model in memory cannot become.

    Raises:
        UserError: its tokens change, or it is to be computed as mergekit does.
    """
    if recipe.parity is not None:
        raise UserError(
            "the recipe asks for mergekit's arithmetic (parity): merge it to disk (evomerge merge) and use the "
            "directory as a model"
        )
    if recipe.vocabulary is None or AdaptedModels(recipe, recipe.model).keeps_vocabulary:
        return
    raise UserError(
        "the recipe changes the vocabulary (tokenizer): merge it to disk (evomerge merge) and use the directory as a "
        "model"
    )


def cut_to_depth(recipe: Recipe, num_blocks: int) -> Node:
    """The recipe's model, cut to the first blocks where the recipe says how many there are (``num_blocks``).

    Args:
        recipe: what to merge.
        num_blocks: depth of its models.
    """
    wanted = dict(recipe.options).get("num_blocks", num_blocks)
    assert isinstance(wanted, int)
    return recipe.model if wanted == num_blocks else Stack((StackPart(recipe.model, 0, wanted),))


def _has_stack(node: Node) -> bool:
    return isinstance(node, Stack | Modules | Route) or any(_has_stack(inner) for inner in children(node))


def _read_all_sizes(sources: Iterable[Source]) -> dict[Source, ModelSizes]:
    sizes, problems = {}, []
    for source in sources:
        try:
            sizes[source] = read_sizes(resolve_source(source))
        except UserError as error:
            problems.append(Problem(f"model {source}", str(error)))
    if problems:
        raise InvalidInput(problems)
    return sizes
