"""Under which names a checkpoint holds the tensors of a model, and how to get from one to the other.

transformers renames, splits and fuses tensors while it loads a checkpoint: routed experts that lie one by one on disk
are one tensor in memory. The same tables are used here, so a merge sees the tensors of the model in memory, and what it
writes lies on disk as the reference has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evomerge.errors import UserError


class StoredTensors(Protocol):
    """What is asked of a checkpoint."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a stored tensor."""

    def tensor(self, name: str) -> Tensor:
        """A stored tensor."""


@dataclass
class StoredGroup:
    """Stored tensors that are converted together into tensors of the model.

    Attributes:
        first: name in the model under which the conversion starts.
        sources: (pattern of the converter, name on disk, the same after renamings) in the order of the conversion.
        converter: transformers' converter, not yet given any tensors.
        shapes: tensors of the model that it gives, with their shapes; empty where the conversion fails.
        problem: why it fails.
    """

    first: str
    converter: Any
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    problem: str = ""

    @property
    def stored(self) -> tuple[str, ...]:
        """Names on disk."""
        return tuple(name for _, name, _ in self.sources)

    def convert(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors from the stored ones, by name on disk."""
        converter = deepcopy(self.converter)
        for pattern, name, _ in self.sources:
            converter.add_tensor(self.first, name, pattern, tensors[name])
        return _realized(converter.convert(self.first, model=model, config=model.config))

    def revert(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors by name on disk, from the model's.

        Raises:
            ValueError: the conversion cannot be undone, or not into the same names.
        """
        reverse = self.converter.reverse_transform()
        first = None
        for name, tensor in tensors.items():
            renamed, pattern = reverse.rename_source_key(name)
            if pattern is None:
                raise ValueError(f"{name} is no result of its conversion")
            first = first or renamed
            reverse.add_tensor(first, name, pattern, tensor)
        reverted = _realized(reverse.convert(first, model=model, config=model.config))
        found: dict[str, Tensor] = {}
        for _, name, renamed in self.sources:
            # A checkpoint may leave out or add the name of the model around its blocks.
            matches = [key for key in reverted if key == renamed or key.endswith("." + renamed)]
            matches = matches or [key for key in reverted if renamed.endswith("." + key)]
            if len(matches) != 1:
                raise ValueError(f"no tensor for {name}")
            found[name] = reverted[matches[0]]
        if len(found) != len(reverted):
            raise ValueError("the conversion gives tensors that are not stored")
        return found


@dataclass
class StoredLayout:
    """Where every tensor of a model is in one checkpoint.

    Attributes:
        plain: name in the model to name on disk, for tensors that are stored as they are.
        converted: name in the model to the group it is made from.
    """

    plain: dict[str, str]
    converted: dict[str, StoredGroup]

    def stored_names(self, name: str) -> tuple[str, ...]:
        """Names on disk of what a tensor is made from, empty when it is not stored."""
        if name in self.plain:
            return (self.plain[name],)
        return self.converted[name].stored if name in self.converted else ()


def plain_layout(stored: StoredTensors) -> StoredLayout:
    """The layout of files whose names are the model's."""
    return StoredLayout({name: name for name in stored.names}, {})


def find_layout(model: nn.Module, stored: StoredTensors) -> StoredLayout:
    """The layout of a checkpoint of a transformers model.

    Args:
        model: the model, on the meta device.
        stored: the checkpoint.

    Raises:
        UserError: the installed transformers has no such tables.
    """
    loading = _Loading(model)
    plain: dict[str, str] = {}
    groups: dict[str, StoredGroup] = {}
    for name in loading.in_order(stored.names):
        target, pattern, renamed = loading.target(name)
        if target is None:
            continue
        if pattern is None:
            plain.setdefault(target, name)
        else:
            group = groups.setdefault(target, StoredGroup(target, loading.converter_of[pattern]))
            group.sources.append((pattern, name, renamed))
    converted: dict[str, StoredGroup] = {}
    for group in groups.values():
        _probe(group, model, stored)
        for target in group.shapes or (group.first,):
            if target not in plain:
                converted[target] = group
    return StoredLayout(plain, converted)


class _Loading:
    """transformers' way from a name on disk to a name in the model."""

    def __init__(self, model: nn.Module) -> None:
        try:
            from transformers import conversion_mapping, core_model_loading

            mapping = conversion_mapping.get_model_conversion_mapping(model) or []
            self._rename: Any = core_model_loading.rename_source_key
            self._order: Any = core_model_loading.dot_natural_key
            converter_class = core_model_loading.WeightConverter
        except (ImportError, AttributeError) as error:
            raise UserError(f"this transformers has no weight conversion tables ({error}); update it") from error
        self._converters = [entry for entry in mapping if isinstance(entry, converter_class)]
        self._renamings = [entry for entry in mapping if not isinstance(entry, converter_class)]
        self.converter_of = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}
        self._names = model.state_dict()
        self._prefix = str(getattr(model, "base_model_prefix", "")) or None

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names in the order in which the conversion wants them (experts by number)."""
        return sorted(names, key=self._order)

    def target(self, name: str) -> tuple[str | None, str | None, str]:
        """Name in the model (None when it has no such tensor), pattern of the converter, and the renamed name."""
        renamed, pattern = self._rename(name, self._renamings, self._converters, self._prefix, self._names)
        if renamed not in self._names and name in self._names:
            renamed, pattern = self._rename(name, [], [], self._prefix, self._names)
        before = name
        if pattern is not None:
            for renaming in self._renamings:
                before, _ = renaming.rename_source_key(before)
        return (renamed if renamed in self._names else None), pattern, before


def _probe(group: StoredGroup, model: nn.Module, stored: StoredTensors) -> None:
    """Find what a conversion gives, on tensors without data."""
    try:
        empty = {
            name: torch.empty(stored.shape(name), dtype=stored.dtype(name), device="meta") for name in group.stored
        }
        group.shapes = {name: tuple(tensor.shape) for name, tensor in group.convert(model, empty).items()}
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
        group.problem = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def reverts(group: StoredGroup, model: nn.Module, stored: StoredTensors) -> bool:
    """Whether a group's tensors in memory can be written as they are stored: same names, same shapes."""
    try:
        empty = {name: torch.empty(shape, device="meta") for name, shape in group.shapes.items()}
        reverted = group.revert(model, empty)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError):
        return False
    return all(tuple(tensor.shape) == stored.shape(name) for name, tensor in reverted.items())


def _realized(converted: Mapping[str, Tensor | Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: value if isinstance(value, Tensor) else value[0] for name, value in converted.items()}
