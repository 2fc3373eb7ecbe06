"""The models of a recipe, opened against one architecture: every tensor by the name it has in the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.architecture import Architecture, Slot, load_config
from evomerge.engine.checkpoint import DTYPES, Checkpoint
from evomerge.engine.lora import LoraAdapter
from evomerge.engine.sources import resolve_adapter, resolve_source
from evomerge.engine.vocabulary import TokenPlan
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Source

MAX_LISTED = 3


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
        config = load_config(self.directory)
        self.model_type = str(config.model_type)
        self._claims_tied = bool(config.get_text_config().tie_word_embeddings)
        self._names: dict[str, str | None] = {}  # name in the model -> name on disk

    def bind(self, architecture: Architecture) -> None:
        """Find every slot and buffer of an architecture among the stored names."""
        names = (*(slot.name for slot in architecture.slots), *architecture.buffers)
        self._names = {name: architecture.stored_name(name, self.checkpoint) for name in names}

    def is_tied(self, architecture: Architecture) -> bool:
        """Whether head and embeddings are one tensor in this model."""
        # An adapter on the head alone leaves the embeddings as they are.
        own_head = any(name in self._adapter_names() for name, _ in architecture.tied)
        return self._claims_tied and not own_head

    def problems(self, architecture: Architecture) -> list[str]:
        """Why this model cannot be merged on that architecture, empty when it can."""
        missing, shapes, dtypes = [], [], []
        for slot in architecture.slots:
            if self._names[slot.name] is None and not self._is_replaced(slot.name):
                missing.append(slot.name)
                continue
            if self.shape(slot) != slot.shape:
                shapes.append((slot, self.shape(slot)))
            stored = self._names[slot.name]
            if stored is not None and not self.checkpoint.info(stored).is_float:
                dtypes.append(f"{slot.name} ({self.checkpoint.info(stored).dtype})")
        found = []
        if missing:
            found.append(self._missing(missing, architecture))
        if shapes:
            found.append(self._other_shapes(shapes, architecture))
        if dtypes:
            found.append(f"weights are stored as integers or 8-bit floats, which cannot be merged: {_some(dtypes)}")
        unknown = self._adapter_names() - set(architecture.by_name) - _tied(architecture)
        if unknown:
            found.append(f"its adapter changes tensors the model does not have: {_some(sorted(unknown))}")
        return found

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of a slot's tensor in this model."""
        stored = self._names[slot.name]
        shape = slot.shape if stored is None else self.checkpoint.info(stored).shape
        return shape if self.adapter is None else self.adapter.shape(self._adapter_name(slot.name), shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor; a tensor changed by an adapter keeps the base model's."""
        stored = self._names[name]
        if stored is not None:
            return self.checkpoint.dtype(stored)
        assert self.adapter is not None
        return self.adapter.bake(name, None).dtype

    def has(self, name: str) -> bool:
        """Whether the model holds a tensor of that name."""
        return self._names.get(name) is not None or self._is_replaced(name)

    def is_mapped(self, name: str) -> bool:
        """Whether the tensor is a view of the file, so that holding it costs no memory of our own."""
        return self.adapter is None or self._adapter_name(name) not in self.adapter.names

    def tensor(self, name: str) -> Tensor:
        """The tensor, on the CPU, in its stored dtype; do not write to it."""
        stored = self._names[name]
        tensor = None if stored is None else self.checkpoint.tensor(stored)
        if self.adapter is not None:
            return self.adapter.bake(self._adapter_name(name), tensor)
        assert tensor is not None
        return tensor

    def release(self, name: str) -> None:
        """Let go of a tensor's pages."""
        if stored := self._names[name]:
            self.checkpoint.release(stored)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The float dtype that most of the weights are stored in."""
        sizes: dict[str, int] = {}
        for name in self.checkpoint.names:
            info = self.checkpoint.info(name)
            if info.is_float:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_bytes
        return DTYPES[max(sorted(sizes), key=lambda dtype: sizes[dtype])] if sizes else torch.float32

    def _adapter_name(self, name: str) -> str:
        # A head that is read from the embeddings takes the embeddings' update with it.
        stored = self._names[name]
        assert self.adapter is not None
        return name if name in self.adapter.names or stored not in self.adapter.names else str(stored)

    def _adapter_names(self) -> frozenset[str]:
        return frozenset() if self.adapter is None else self.adapter.names

    def _is_replaced(self, name: str) -> bool:
        return self.adapter is not None and self.adapter.replaces(name)

    def _missing(self, missing: list[str], architecture: Architecture) -> str:
        count = f"{len(missing)} of {len(architecture.slots)} tensors"
        text = f"lacks {count} of the {architecture.model_type} model: {_some(missing)}."
        if self.model_type != architecture.model_type:
            return f"{text} It is a {self.model_type} model; all models of a merge need one architecture."
        used = set(self._names.values())
        others = [name for name in self.checkpoint.names if name not in used]
        if any("expert" in name or "moe" in name for name in missing) and others:
            return (
                f"{text} The files hold them under other names ({_some(others)}) that transformers converts while "
                "loading; merging such models (mixtures of experts) is not supported yet."
            )
        return f"{text} Is it a complete model of the same size?"

    def _other_shapes(self, shapes: list[tuple[Slot, tuple[int, ...]]], architecture: Architecture) -> str:
        listed = _some([f"{slot.name} is {_shape(shape)}, expected {_shape(slot.shape)}" for slot, shape in shapes])
        vocabulary = [(slot, shape) for slot, shape in shapes if slot.is_vocabulary and slot.shape[1:] == shape[1:]]
        if len(vocabulary) == len(shapes):
            slot, shape = vocabulary[0]
            return (
                f"{listed}. Only the vocabulary differs: {shape[0]} tokens, expected {slot.shape[0]}. Give the recipe "
                "`tokenizer: union` (or base) and merge it to disk, resize its embeddings to the same tokens "
                "(resize_token_embeddings), or choose models that share a tokenizer."
            )
        hint = "" if self.model_type == architecture.model_type else f" It is a {self.model_type} model."
        return f"{listed}.{hint} All models of a merge need the same sizes; are they fine-tunes of one base model?"


class OpenModels:
    """The sources of one or many recipes, opened once and known to fit together."""

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
        return self.get(reference).dtype(slot.name)

    def buffer(self, name: str) -> Tensor | None:
        """A buffer of the result, None where the reference has none."""
        reference = self.get(self.reference)
        return reference.tensor(name) if reference.has(name) else None

    def config_json(self) -> dict[str, Any]:
        """The configuration of the result, as far as models decide it."""
        config: dict[str, Any] = json.loads((self.get(self.reference).directory / "config.json").read_text())
        return config

    @property
    def file_bytes(self) -> int:
        """Bytes of all mapped files."""
        return sum(model.checkpoint.num_bytes for model in self._models.values())

    @property
    def num_models(self) -> int:
        """Number of opened models."""
        return len(self._models)

    def release(self, slot: Slot) -> None:
        """Let go of the pages of a slot in every model."""
        for model in self._models.values():
            model.release(slot.name)

    def _find_architecture(self) -> Architecture:
        reference = self._models[self.reference]
        architecture = Architecture.of_directory(reference.directory, self._tie)
        # One untied model makes the merged model untied: its head is a tensor of its own.
        if architecture.is_tied and not all(model.is_tied(architecture) for model in self._models.values()):
            return Architecture.of_directory(reference.directory, tie=False)
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


def _some(names: Sequence[str]) -> str:
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
