"""What a merged checkpoint will hold: which tensors, under which names, and what has to be merged for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from evomerge.engine.architecture import Slot
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.shard_writer import TensorEntry
from evomerge.engine.stored_layout import StoredGroup, StoredLayout, reverts
from evomerge.engine.tensor_merge import OutputDtype
from evomerge.recipes.recipe import Recipe


@dataclass(frozen=True)
class OutputUnit:
    """Tensors that are written together because they are merged together.

    Attributes:
        entries: what is written, in order.
        slots: what is merged for it; empty for a tensor that is copied from the reference.
        copied: the copied tensor's name in the model.
        group: how the merged tensors are turned into the written ones, None where they are the same.
        model: the model on the meta device, where there is a group.
        given: the written tensor itself, where it is of no model.
    """

    entries: tuple[TensorEntry, ...]
    slots: tuple[Slot, ...] = ()
    copied: str = ""
    group: StoredGroup | None = None
    model: nn.Module | None = None
    given: Tensor | None = None

    def stored(self, merged: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the entries, from the merged ones of the slots."""
        if self.group is None:
            return list(merged)
        assert self.model is not None
        reverted = self.group.revert(self.model, {slot.name: tensor for slot, tensor in zip(self.slots, merged)})
        return [reverted[entry.name] for entry in self.entries]


def plan_output(recipe: Recipe, models: OpenModels) -> list[OutputUnit]:
    """Every tensor of the merged checkpoint, under the name it has in the reference's files where it is there.

    Wider dtypes come first, as the format's own writer has it, so that every tensor is aligned.
    """
    architecture, reference = models.architecture, models.get(recipe.reference)
    output = OutputDtype(recipe, models)
    # Blocks and tokens that are not the reference's have no names in its files.
    layout = StoredLayout({}, {}) if models.is_adapted else reference.layout
    units: list[OutputUnit] = []
    used: set[str] = set()
    done: set[str] = set()
    for slot in architecture.slots:
        if slot.name in done:
            continue
        group = layout.converted.get(slot.name)
        slots = () if group is None else tuple(architecture.by_name.get(name) for name in group.shapes)
        if group is not None and architecture.model is not None and None not in slots:
            whole = tuple(entry for entry in slots if entry is not None)
            dtype = output.of(slot)
            is_even = all(output.of(entry) == dtype for entry in whole)
            if is_even and reverts(group, architecture.model, reference.checkpoint):
                entries = [TensorEntry(name, dtype, reference.checkpoint.shape(name)) for name in group.stored]
                units.append(OutputUnit(tuple(entries), whole, "", group, architecture.model))
                done.update(entry.name for entry in whole)
                continue
        stored = layout.plain.get(slot.name, slot.name)
        name = slot.name if stored in used else stored  # a head read from the embeddings is a tensor of its own here
        used.add(name)
        units.append(OutputUnit((TensorEntry(name, output.of(slot), slot.shape),), (slot,)))
    for name in architecture.buffers:
        stored, buffer = layout.plain.get(name, name), models.buffer(name)
        if buffer is not None and stored not in used:
            entry = TensorEntry(stored, buffer.dtype, tuple(buffer.shape))
            units.append(OutputUnit((entry,), copied=name))
    return in_file_order(units)


def in_file_order(units: Sequence[OutputUnit]) -> list[OutputUnit]:
    """The units with wider dtypes first."""
    return sorted(units, key=lambda unit: -max(entry.dtype.itemsize for entry in unit.entries))
