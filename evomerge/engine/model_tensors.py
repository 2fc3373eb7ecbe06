"""The models of a recipe, opened against one architecture: every tensor by the name it has in the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.architecture import FILES_ONLY, Architecture, Slot, config_facts
from evomerge.engine.checkpoint import DTYPES, Checkpoint
from evomerge.engine.fit_problems import missing_tensors, other_shapes, part_without_place, some, unconverted_tensors
from evomerge.engine.lora import LoraAdapter
from evomerge.engine.model_parts import PartMap, map_part, part_names
from evomerge.engine.sources import resolve_adapter, resolve_source
from evomerge.engine.stored_layout import StoredLayout
from evomerge.engine.vocabulary import TokenPlan
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Source

_logger = logging.getLogger(__name__)


class ModelTensors:
    """One source's tensors, checkpoint plus adapter, under the model's own names; read when asked for."""

    def __init__(self, source: Source) -> None:
        """Find the files and read their headers.

        Raises:
            UserError: the model or its adapter is not there or not readable.
        """
        self.source = source
        self.directory = resolve_source(source)
        self.checkpoint = Checkpoint(self.directory)
        adapter = resolve_adapter(source)
        self.adapter = None if adapter is None else LoraAdapter(adapter)
        facts = config_facts(self.directory)
        self.model_type = FILES_ONLY if facts is None else facts.model_type
        self._claims_tied = facts is not None and facts.claims_tied
        self._layout = StoredLayout({}, {})
        self._own_names: dict[str, str] | None = None  # name in the whole model -> name in this one, of a part
        self._part: PartMap | None = None
        self._architecture: Architecture | None = None  # whose names the layout has
        self.absent: frozenset[str] = frozenset()
        self.wide_adapter = False  # whether tensors that the adapter changes are given in fp32, unrounded

    def bind(self, architecture: Architecture) -> None:
        """Find every slot and buffer of an architecture among the stored names."""
        self._architecture, self._own_names, self._part = architecture, None, None
        absent: list[str] = []
        if self.source.into is not None:
            self._architecture = self._as_part
            self._part = map_part(architecture, self._as_part, self.source.into)
            self._own_names = self._part.own_names
            outside = {*self._own_names, *self._part.missing}
            absent = [slot.name for slot in architecture.slots if slot.name not in outside]
        self._layout = self._architecture.layout(self.checkpoint)
        absent += [name for name in architecture.optional if not self.has(name)]
        self.absent = frozenset(absent)

    @cached_property
    def _as_part(self) -> Architecture:
        return Architecture.of_directory(self.directory)

    def is_tied(self, architecture: Architecture) -> bool:
        """Whether head and embeddings are one tensor in this model."""
        # An adapter on the head alone leaves the embeddings as they are.
        tied = architecture.tied if self.source.into is None else self._as_part.tied
        own_head = any(name in self._adapter_names() for name, _ in tied)
        claims = self._claims_tied if self.source.into is None else self._as_part.is_tied
        return claims and not own_head

    def problems(self, architecture: Architecture) -> list[str]:
        """Why this model cannot be merged on that architecture, empty when it can."""
        missing: list[str] = []
        shapes: list[tuple[Slot, tuple[int, ...]]] = []
        dtypes: list[str] = []
        broken: list[tuple[str, str]] = []
        for slot in architecture.slots:
            if slot.name in self.absent:
                continue
            if not self.has(slot.name):
                missing.append(slot.name)
                continue
            group = self._layout.converted.get(self._own(slot.name))
            if group is not None and group.problem:
                broken.append((slot.name, group.problem))
                continue
            if self.shape(slot) != slot.shape:
                shapes.append((slot, self.shape(slot)))
            odd = [name for name in self._stored(slot.name) if not self.checkpoint.info(name).is_float]
            dtypes.extend(f"{name} ({self.checkpoint.info(name).dtype})" for name in odd[:1])
        found = []
        if broken:
            found.append(unconverted_tensors([name for name, _ in broken], broken[0][1]))
        if missing:
            found.append(missing_tensors(missing, architecture, self.model_type, self._others(architecture)))
        if shapes:
            found.append(other_shapes(shapes, architecture, self.model_type))
        if dtypes:
            found.append(f"weights are stored as integers or 8-bit floats, which cannot be merged: {some(dtypes)}")
        if self._part is not None and self._part.unused:
            known = part_names(architecture)
            found.append(part_without_place(str(self.source.into), self._part.unused, known))
        bound = self._architecture or architecture
        unknown = self._adapter_names() - set(bound.by_name) - _tied(bound)
        if unknown:
            found.append(f"its adapter changes tensors the model does not have: {some(sorted(unknown))}")
        return found

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of a slot's tensor in this model."""
        own = self._own(slot.name)
        shape = slot.shape
        if own in self._layout.plain:
            shape = self.checkpoint.info(self._layout.plain[own]).shape
        elif own in self._layout.converted:
            shape = self._layout.converted[own].shapes[own]
        return shape if self.adapter is None else self.adapter.shape(self._adapter_name(own), shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor; a tensor changed by an adapter keeps the base model's."""
        stored = self._stored(name)
        if stored:
            return self.checkpoint.dtype(stored[0])
        assert self.adapter is not None
        return self.adapter.bake(self._own(name), None).dtype

    def has(self, name: str) -> bool:
        """Whether the model holds a tensor of that name."""
        return bool(self._stored(name)) or self._is_replaced(name)

    def is_mapped(self, name: str) -> bool:
        """Whether the tensor is a view of the file, so that holding it costs no memory of our own."""
        own = self._own(name)
        if self.adapter is not None and self._adapter_name(own) in self.adapter.names:
            return False
        return own in self._layout.plain

    def tensor(self, name: str) -> Tensor:
        """The tensor, on the CPU, in its stored dtype; do not write to it."""
        own = self._own(name)
        tensor: Tensor | None = None
        if own in self._layout.plain:
            tensor = self.checkpoint.tensor(self._layout.plain[own])
        elif own in self._layout.converted:
            group = self._layout.converted[own]
            assert self._architecture is not None
            assert self._architecture.model is not None
            stored = {name: self.checkpoint.tensor(name) for name in group.stored}
            tensor = group.convert(self._architecture.model, stored)[own]
        if self.adapter is not None:
            return self.adapter.bake(self._adapter_name(own), tensor, wide=self.wide_adapter)
        assert tensor is not None
        return tensor

    def release(self, name: str) -> None:
        """Let go of a tensor's pages."""
        for stored in self._stored(name):
            self.checkpoint.release(stored)

    def adapter_name(self, name: str) -> str:
        """Name under which the adapter changes a tensor, if it does."""
        return self._adapter_name(self._own(name))

    @property
    def layout(self) -> StoredLayout:
        """Where the tensors are on disk."""
        return self._layout

    @property
    def stored_dtype(self) -> torch.dtype:
        """The float dtype that most of the weights are stored in."""
        sizes: dict[str, int] = {}
        for name in self.checkpoint.names:
            info = self.checkpoint.info(name)
            if info.is_float:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_bytes
        return DTYPES[max(sorted(sizes), key=lambda dtype: sizes[dtype])] if sizes else torch.float32

    def _own(self, name: str) -> str:
        return name if self._own_names is None else self._own_names.get(name, "")

    def _stored(self, name: str) -> tuple[str, ...]:
        return self._layout.stored_names(self._own(name))

    def _adapter_name(self, own: str) -> str:
        # A head that is read from the embeddings takes the embeddings' update with it.
        assert self.adapter is not None
        assert self._architecture is not None
        if own in self.adapter.names:
            return own
        plain = self._layout.plain
        for pair in self._architecture.tied:
            if own in pair:
                partner = pair[1 - pair.index(own)]
                if partner in self.adapter.names and own in plain and plain[own] == plain.get(partner):
                    return partner
        return own

    def _adapter_names(self) -> frozenset[str]:
        return frozenset() if self.adapter is None else self.adapter.names

    def _is_replaced(self, name: str) -> bool:
        return self.adapter is not None and self.adapter.replaces(self._own(name))

    def _others(self, architecture: Architecture) -> list[str]:
        used = {stored for slot in architecture.slots for stored in self._stored(slot.name)}
        used.update(stored for name in architecture.buffers for stored in self._stored(name))
        return [name for name in self.checkpoint.names if name not in used]


class OpenModels:
    """The sources of one or many recipes, opened once and known to fit together."""

    is_adapted = False  # whether the result has other blocks or tokens than the sources

    def __init__(self, reference: Source, sources: Iterable[Source], tie: bool | None = None) -> None:
        """Open every source and check that they fit.

        Args:
            reference: lends the architecture.
            sources: further models; repeated ones are opened once.
            tie: overrides whether head and embeddings are one tensor.

        Raises:
            InvalidInput: models that are missing, broken or do not fit, all at once, with tensors and shapes.
        """
        self.reference = reference
        self._tie = tie
        self.tokens: TokenPlan | None = None  # where the result's tokens are not the models'
        self._models: dict[Source, ModelTensors] = {}
        problems: list[Problem] = []
        for source in dict.fromkeys((reference, *sources)):
            try:
                self._models[source] = ModelTensors(source)
            except UserError as error:
                problems.append(Problem(f"model {source}", str(error)))
        if problems:
            raise InvalidInput(problems)
        self.architecture = self._find_architecture()
        self._check(self._models.values())

    def get(self, source: Source) -> ModelTensors:
        """The opened model of a source, opened now if a recipe names one that was not announced.

        Raises:
            UserError: it is not there or does not fit the others.
        """
        if source not in self._models:
            model = ModelTensors(source)
            self._check([model])
            self._models[source] = model
        return self._models[source]

    def check(self) -> None:
        """Check again that all opened models fit together.

        Raises:
            InvalidInput: naming models, tensors and shapes.
        """
        self._check(self._models.values())

    def num_blocks(self, source: Source) -> int:
        """Depth of a source."""
        return self.architecture.num_blocks

    def tensor(self, source: Source, name: str) -> Tensor:
        """A source's tensor as it enters the merge; do not write to it."""
        return self.get(source).tensor(name)

    def is_mapped(self, source: Source, name: str) -> bool:
        """Whether ``tensor`` is a view of the file."""
        return self.get(source).is_mapped(name)

    def output_dtype(self, reference: Source, slot: Slot) -> torch.dtype:
        """Dtype in which the result holds a tensor when the recipe names none."""
        return self.holder(reference, slot.name).dtype(slot.name)

    def buffer(self, name: str) -> Tensor | None:
        """A buffer of the result, None where the reference has none."""
        reference = self.get(self.reference)
        return reference.tensor(name) if reference.has(name) else None

    def made_of(self, slot: Slot) -> Iterator[tuple[Source, str]]:
        """The sources of a tensor of the result that hold it, with its name in each."""
        for source, model in self._models.items():
            if slot.name not in model.absent:
                yield source, slot.name

    def config_json(self) -> dict[str, Any]:
        """The configuration of the result, as far as models decide it."""
        config: dict[str, Any] = json.loads((self.get(self.reference).directory / "config.json").read_text())
        return config

    @property
    def file_bytes(self) -> int:
        """Bytes of all mapped files."""
        return sum(model.checkpoint.num_bytes for model in self._models.values())

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources of all opened models."""
        return tuple(self._models)

    @property
    def num_models(self) -> int:
        """Number of opened models."""
        return len(self._models)

    def release(self, slot: Slot) -> None:
        """Let go of the pages of a slot in every model."""
        for model in self._models.values():
            model.release(slot.name)

    def holder(self, reference: Source, name: str) -> ModelTensors:
        """The reference, or where it lacks a tensor the first model that has it."""
        return next(model for model in (self.get(reference), *self._models.values()) if model.has(name))

    @property
    def is_partial(self) -> bool:
        """Whether some model holds only a part of the tensors."""
        return any(model.absent for model in self._models.values())

    @property
    def absent(self) -> dict[str, tuple[Source, ...]]:
        """Tensor name to the models without it, for tensors that some model lacks."""
        found: dict[str, tuple[Source, ...]] = {}
        for slot in self.architecture.slots:
            sources = tuple(source for source, model in self._models.items() if slot.name in model.absent)
            if sources:
                found[slot.name] = sources
        return found

    def _find_architecture(self) -> Architecture:
        reference = self._models[self.reference]
        if self.reference.into is not None:
            raise UserError(
                f"model {self.reference} is a part of a model and cannot lend the architecture. Give the whole model "
                "as `base`, as the first expert, or as `tokenizer`."
            )
        architecture = Architecture.of_directory(reference.directory, self._tie)
        # One untied model makes the merged model untied: its head is a tensor of its own.
        if architecture.is_tied and not all(model.is_tied(architecture) for model in self._models.values()):
            architecture = Architecture.of_directory(reference.directory, tie=False)
        for model in self._models.values():
            model.bind(architecture)
        nowhere = [slot.name for slot in architecture.slots if not any(m.has(slot.name) for m in self._models.values())]
        if 0 < len(nowhere) < len(architecture.slots):
            _logger.warning("no model has %s; the merged model will not have it either", some(nowhere))
            return architecture.without(frozenset(nowhere))
        return architecture

    def _check(self, models: Iterable[ModelTensors]) -> None:
        problems: list[Problem] = []
        for model in models:
            model.bind(self.architecture)
            where = f"model {model.source}"
            if self.architecture.is_tied and not model.is_tied(self.architecture):
                problems.append(Problem(where, "its head is not tied to its embeddings, unlike the other models'"))
            problems.extend(Problem(where, text) for text in model.problems(self.architecture))
        if problems:
            raise InvalidInput(problems)


def check_models(sources: Sequence[Source]) -> Architecture:
    """Check that models fit together, reading headers only; the first one lends the architecture.

    Raises:
        InvalidInput: all that does not fit, naming models, tensors and shapes.
    """
    return OpenModels(sources[0], sources[1:]).architecture


def _tied(architecture: Architecture) -> set[str]:
    return {name for pair in architecture.tied for name in pair}
