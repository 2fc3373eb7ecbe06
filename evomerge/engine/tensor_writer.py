"""Writing merged tensors into the parameters of a model in memory, straight and only where something changes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from evomerge.engine.architecture import Slot
from evomerge.engine.tensor_merge import PendingTensor, TensorMerger, check_finite
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.methods.elementwise import checked_copy
from evomerge.recipes.recipe import Node

DtypeOf = Callable[[Slot], torch.dtype]


class Scratch:
    """Memory in which tensors are rounded before they enter wider parameters; one piece for each thread and dtype."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: dict[tuple[int, torch.dtype], Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self._pieces.values())

    def take(self, slot: Slot, dtype: torch.dtype) -> Tensor:
        """Room for one tensor, the calling thread's until it asks again."""
        key = (threading.get_ident(), dtype)
        if key not in self._pieces or self._pieces[key].numel() < slot.num_elements:
            self._pieces[key] = torch.empty(slot.num_elements, dtype=dtype, device=self._device)
        return self._pieces[key][: slot.num_elements].view(slot.shape)


class TensorWriter:
    """Writes nodes into one set of parameters and remembers what they hold.

    Between calls nobody else may write to the parameters.

    Attributes:
        parameters: by name; may grow.
    """

    def __init__(self, parameters: dict[str, Tensor], threads: TensorThreads, scratch: Scratch) -> None:
        self.parameters = parameters
        self._threads, self._scratch = threads, scratch
        self._holds: dict[str, Hashable] = {}  # parameters whose content no candidate of the same models changes
        self._upper: dict[str, Tensor] = {}  # bf16 views of fp32 parameters that hold nothing more precise

    def write(self, merger: TensorMerger, root: Node, slots: Sequence[Slot], output: DtypeOf) -> None:
        """Make the parameters of some slots those of a node.

        Args:
            merger: has started on the node's recipe.
            root: the node.
            slots: which tensors, as the node counts its blocks.
            output: the dtype each is rounded to.

        Raises:
            MergeFailed: hyperparameters or merged weights are NaN or infinite; the next call repairs the parameters.
        """
        sums: dict[str, Tensor] = {}
        ordered = sorted(slots, key=lambda slot: -slot.num_elements)
        self._prepare(merger, root, ordered)
        try:
            self._write_all(merger, root, ordered, output, sums)
            check_finite([(slot.name, sums[slot.name]) for slot in slots if slot.name in sums])
        except BaseException:
            self._holds.clear()
            raise

    def _prepare(self, merger: TensorMerger, root: Node, slots: Sequence[Slot]) -> None:
        """Prepare what is missing, several tensors at a time: sorting and the like is slow and uses one core each."""
        missing = [slot for slot in slots if not merger.is_prepared(root, slot)]

        def prepare(slot: Slot) -> None:
            with torch.no_grad():
                merger.pending(root, slot)

        if missing:
            self._threads.each(prepare, missing)

    def _write_all(
        self, merger: TensorMerger, root: Node, slots: Sequence[Slot], output: DtypeOf, sums: dict[str, Tensor]
    ) -> None:
        def write(slot: Slot) -> None:
            with torch.no_grad():
                self._write(merger, merger.pending(root, slot), output(slot), sums)

        # What one core would still be busy with when the others are done is split over all of them.
        share = sum(slot.num_elements for slot in slots) // (2 * self._threads.num_workers)
        for slot in slots:
            if slot.num_elements > share:
                write(slot)
        self._threads.each(write, [slot for slot in slots if slot.num_elements <= share])

    def _write(
        self, merger: TensorMerger, pending: PendingTensor, output: torch.dtype, sums: dict[str, Tensor]
    ) -> None:
        slot = pending.slot
        # Another merger gives the same names to other merges.
        held = None if pending.constant is None else (id(merger), pending.constant, output)
        if held is not None and self._holds.get(slot.name) == held:
            return
        self._holds.pop(slot.name, None)
        parameter = self.parameters[slot.name]
        # A dtype at least as wide as the method's fp32 adds no rounding of its own.
        is_direct = output in (parameter.dtype, torch.float32, torch.float64)
        if output == torch.bfloat16 and _has_upper_halves(parameter):
            merger.write(pending, self._upper_halves(slot.name, parameter))
            sums[slot.name] = checked_copy(None, parameter)
        else:
            self._upper.pop(slot.name, None)
            target = parameter if is_direct else self._scratch.take(slot, output)
            merger.write(pending, target)
            sums[slot.name] = checked_copy(None if is_direct else parameter, target)
        if held is not None:
            self._holds[slot.name] = held

    def _upper_halves(self, name: str, parameter: Tensor) -> Tensor:
        """A view to write bf16 on, which is the upper half of the same number in fp32, the lower one being 0."""
        if name not in self._upper:
            self._upper[name] = parameter.zero_().view(torch.bfloat16)[..., 1::2]
        return self._upper[name]


def _has_upper_halves(parameter: Tensor) -> bool:
    is_whole = parameter.dim() > 0 and parameter.is_contiguous()
    return parameter.dtype == torch.float32 and is_whole and sys.byteorder == "little"
