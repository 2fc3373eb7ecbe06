"""The one path from (recipe node, tensor) to merged values, used for the live model and for files alike.

Inputs keep their stored dtype; methods compute in fp32 and cast once into the output. A merge inside a merge is
computed into an fp32 temporary, so an inner result is never rounded before the outer merge sees it. What a method
prepares is kept for the next candidate as long as it fits into ``state_memory_bytes``.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.adapter_factors import check_adapters, with_factors
from evomerge.engine.architecture import Slot
from evomerge.engine.block_places import BlockPlaces
from evomerge.engine.merge_plan import MergePlan, Values
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.present_models import PresentModels
from evomerge.engine.stretch_merge import write_pieces
from evomerge.engine.surveys import Surveys, surveys_of
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.errors import MergeFailed, UserError
from evomerge.methods.base import TensorContext, Value
from evomerge.methods.elementwise import checked_copy
from evomerge.methods.whole_model import Statistics, WholeModelMethod
from evomerge.recipes.recipe import Merge, Node, Recipe, Source, children

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Preparing leaves large temporaries between small results in the heap, which glibc alone would never return.
TRIM_EVERY_ELEMENTS = 1 << 23
# Prepared state that no candidate used for this long makes room for another method's.
KEEP_FOR_CANDIDATES = 8


@dataclass
class _Prepared:
    """What ``prepare`` gave for one tensor; a constant one's state is made again in the rare case it is needed."""

    state: Any
    is_constant: bool
    num_bytes: int
    last_used: int


@dataclass(frozen=True)
class PendingTensor:
    """A tensor whose inputs are prepared and which is about to be written.

    Attributes:
        slot: which tensor.
        constant: names the result where no hyperparameter can change it (a source alone, experts that all equal the
            base); None otherwise. Equal names stand for equal bits.
        node: what is written; of a stack the part that holds the tensor.
        place: the tensor as ``node`` counts its blocks.
    """

    slot: Slot
    constant: Hashable | None
    node: Source | Merge
    place: Slot
    state: Any = None
    values: Values | None = None


class TensorMerger:
    """Merges single tensors of a set of open models, keeping what methods prepare between candidates.

    Between two ``start_candidate`` different tensors may be prepared and written by different threads at once.
    """

    def __init__(
        self,
        models: OpenModels,
        device: torch.device,
        state_memory_bytes: int,
        threads: TensorThreads | None = None,
    ) -> None:
        """Start with nothing prepared.

        Args:
            models: where tensors come from.
            device: where arithmetic happens.
            state_memory_bytes: cap on what is kept; 0 keeps nothing (one pass over the tensors).
            threads: for surveys of the whole model; None makes them on the calling thread.
        """
        self.models = models
        self.device = device
        self.state_memory_bytes = state_memory_bytes
        self.state_bytes = 0
        self.prepare_seconds = 0.0
        self.not_kept: set[str] = set()
        self._kept: dict[Any, _Prepared] = {}
        self._too_large: set[Any] = set()
        self._lock = threading.Lock()
        self._prepared_elements = 0
        self._candidate = 0
        self._checked: set[tuple[Source, str]] = set()  # tensors known to be finite
        self._plans: dict[int, MergePlan] = {}  # by id of the node, which its plan keeps alive
        self._key_numbers: dict[Any, int] = {}
        self._surveys = Surveys()
        self._threads = threads
        self._present: PresentModels | None = None  # where some model holds only a part of the tensors
        self._places = BlockPlaces(models.num_blocks, models.architecture)

    def start_candidate(self, root: Node) -> None:
        """Look up the methods of a new recipe, forget the plans of the last one, and survey the model where needed.

        Raises:
            UserError: a method that is unknown or cannot handle the recipe's models; a model that does not fit.
            MergeFailed: hyperparameters are not finite.
        """
        self._candidate += 1
        self._plans = {}
        self._places.forget()
        self.not_kept = set()
        self._add_plans(root)
        depth, expected = self._places.depth(root), self.models.architecture.num_blocks
        if depth != expected:
            raise UserError(
                f"the recipe makes a model of {depth} blocks, the one in memory has {expected}: merge it to disk "
                "(evomerge merge) and use the directory as a model"
            )
        self._present = PresentModels(root, self.models.absent) if self.models.is_partial else None
        for node in () if self._present is None else self._present.roots:
            self._add_plans(node)
        started = time.perf_counter()
        self._survey(root)
        self.prepare_seconds += time.perf_counter() - started

    def pending(self, node: Node, slot: Slot) -> PendingTensor:
        """Prepare one tensor, from memory when an earlier candidate did the same.

        Raises:
            MergeFailed: hyperparameters or a source's values are not finite.
        """
        part, place = self._locate(node, slot)
        if isinstance(part, Source):
            return PendingTensor(slot, ("source", part, place.name), part, place)
        plan = self._plans[id(part)]
        structural, values = plan.values(place)
        key = self._key(plan, structural, place)
        prepared = self._kept.get(key)
        if prepared is None:
            prepared = self._prepare(plan, structural, place, reused=plan.is_kept and key not in self._too_large)
            if plan.is_kept:
                with self._lock:
                    self._keep(key, prepared, place)
        prepared.last_used = self._candidate
        constant = ("merge", key) if prepared.is_constant else None
        return PendingTensor(slot, constant, part, place, prepared.state, values)

    def is_prepared(self, node: Node, slot: Slot) -> bool:
        """Whether ``pending`` has nothing to prepare that could be kept."""
        part, place = self._locate(node, slot)
        if isinstance(part, Source):
            return True
        plan = self._plans[id(part)]
        key = self._key(plan, plan.values(place)[0], place)
        return key in self._kept or key in self._too_large or not plan.is_kept

    def write(self, pending: PendingTensor, out: Tensor) -> None:
        """Write the tensor into ``out`` in place, rounded once to its dtype.

        Raises:
            UserError: values the method does not take, for example a density of 0.
        """
        if isinstance(pending.node, Source):
            out.copy_(self.models.tensor(pending.node, pending.place.name))
            return
        plan, state = self._plans[id(pending.node)], pending.state
        if state is None:
            state = self._state(plan, plan.values(pending.place)[0], pending.place, reused=False)
        assert pending.values is not None
        with _naming(plan, pending.slot):
            if pieces := plan.cut(pending.place):
                write_pieces(plan.method, state, pieces, out)
            else:
                plan.method.apply(state, pending.values, out)

    def _locate(self, node: Node, slot: Slot) -> tuple[Source | Merge, Slot]:
        """The source or merge that gives a node's tensor, and the tensor's place in it."""
        present = node if self._present is None else self._present.node(node, slot.name)
        part, place = self._places.locate(present, slot)
        assert isinstance(part, Source | Merge)
        return part, place

    def _key(self, plan: MergePlan, structural: Mapping[str, Value], slot: Slot) -> tuple[Hashable, ...]:
        # Hashing whole nodes for every tensor would cost more than merging small ones.
        return (plan.key_number, plan.survey_number, tuple(structural.items()), slot.name)

    def _add_plans(self, node: Node) -> None:
        if isinstance(node, Source):
            self.models.get(node)
            return
        if id(node) in self._plans:
            return
        for child in children(node):
            self._add_plans(child)
        if not isinstance(node, Merge):
            return
        plan = MergePlan(node, self._places.depth(node), self.models.architecture)
        if plan.spec.takes == "adapters":
            check_adapters(node, self.models)
        inputs = (node.method, node.base, node.experts, node.seed)
        # A merge inside that no candidate had before may be one that no candidate has again.
        plan.is_kept = inputs in self._key_numbers or all(isinstance(child, Source) for child in plan.inputs)
        plan.key_number = self._key_numbers.setdefault(inputs, len(self._key_numbers))
        self._plans[id(node)] = plan

    def _survey(self, root: Node) -> None:
        """Look over the whole model for the methods that need it; a merge's inputs first."""
        if not any(isinstance(plan.method, WholeModelMethod) for plan in self._plans.values()):
            return
        seen: dict[int, dict[str, Slot]] = {key: {} for key in self._plans}

        def visit(node: Node, slot: Slot) -> None:
            part, place = self._locate(node, slot)
            if isinstance(part, Merge) and place.name not in seen[id(part)]:
                seen[id(part)][place.name] = place
                for child in self._plans[id(part)].inputs:
                    if not isinstance(child, Source):
                        visit(child, place)

        for slot in self.models.architecture.slots:
            visit(root, slot)
        # One merge goes by several plans where some models hold only a part of the tensors.
        roots = () if self._present is None else self._present.roots
        together = [id(node) for node in roots if isinstance(node, Merge)]
        for key, plan in self._plans.items():
            if key not in together and seen[key]:
                if together and surveys_of(plan.method, plan.values, seen[key].values()):
                    raise UserError(
                        f"recipe: {plan.node.method} looks at whole models, and inside another merge every model must "
                        "hold all tensors"
                    )
                self._survey_plans([plan], dict.fromkeys(seen[key], plan), seen[key])
        if together:
            of_slot = {name: self._plans[key] for key in together for name in seen[key]}
            places = {slot.name: slot for slot in self.models.architecture.slots if slot.name in of_slot}
            self._survey_plans([self._plans[key] for key in together], of_slot, places)

    def _survey_plans(
        self, plans: Sequence[MergePlan], of_slot: Mapping[str, MergePlan], places: Mapping[str, Slot]
    ) -> None:
        merge = _Surveyed(self, plans[0], of_slot)
        release = self.models.release if self.state_memory_bytes == 0 and not self.models.is_adapted else None
        with _naming(plans[0]):
            found = self._surveys.of(merge, list(places.values()), self._threads, release)
        for plan in plans:
            plan.survey_number, plan.statistics = found

    def _prepare(self, plan: MergePlan, structural: dict[str, Value], slot: Slot, reused: bool) -> _Prepared:
        started = time.perf_counter()
        state = self._state(plan, structural, slot, reused)
        num_bytes = plan.method.state_bytes(state) + self._input_bytes(plan, slot)
        is_constant = plan.method.is_constant(state)
        if is_constant and num_bytes:
            state, num_bytes = None, 0
        with self._lock:
            self._prepared_elements += slot.num_elements
            if self._prepared_elements >= TRIM_EVERY_ELEMENTS:
                self._prepared_elements = 0
                return_free_memory()
            self.prepare_seconds += time.perf_counter() - started
        return _Prepared(state, is_constant, num_bytes, self._candidate)

    def _state(self, plan: MergePlan, structural: dict[str, Value], slot: Slot, reused: bool) -> Any:
        base, experts = self.inputs(plan, slot)
        context = plan.context(slot, plan.statistics, reused and self.state_memory_bytes > 0)
        context = with_factors(context, plan, self.models, slot, self.device)
        with _naming(plan, slot):
            return plan.method.prepare(base, experts, structural, context)

    def inputs(self, plan: MergePlan, slot: Slot) -> tuple[Tensor | None, list[Tensor]]:
        """Base and experts of one tensor."""
        base = None if plan.node.base is None else self._input(plan.node.base, slot)
        return base, [self._input(source, slot) for source in plan.experts]

    def _input(self, node: Node, slot: Slot) -> Tensor:
        part, place = self._places.locate(node, slot)
        if isinstance(part, Source):
            tensor = self.models.tensor(part, place.name).to(self.device)
            self._check_source(part, place, tensor)
            return tensor
        result = torch.empty(slot.shape, dtype=torch.float32, device=self.device)
        self.write(self.pending(node, slot), result)
        return result

    def _check_source(self, source: Source, slot: Slot, tensor: Tensor) -> None:
        """Refuse values that a method might trim away or pass on."""
        if (source, slot.name) not in self._checked:
            if not bool(checked_copy(None, tensor).isfinite()) and not bool(tensor.isfinite().all()):
                raise MergeFailed(
                    f"model {source}: tensor {slot.name} holds NaN or infinite values, which cannot be merged. The "
                    "checkpoint is damaged or its training diverged: download it again or leave it out."
                )
            self._checked.add((source, slot.name))

    def _input_bytes(self, plan: MergePlan, slot: Slot) -> int:
        """Bytes of inputs that are not views of mapped files, which a state may hold on to."""
        total = 0
        for node in plan.inputs:
            part, place = self._places.locate(node, slot)
            if not isinstance(part, Source):
                total += 4 * slot.num_elements
            elif self.device.type != "cpu" or not self.models.is_mapped(part, place.name):
                total += self.models.get(part).dtype(place.name).itemsize * slot.num_elements
        return total

    def _keep(self, key: Any, prepared: _Prepared, slot: Slot) -> None:
        if self.state_memory_bytes == 0:
            return
        if self.state_bytes + prepared.num_bytes > self.state_memory_bytes:
            self._forget_unused()
        if self.state_bytes + prepared.num_bytes > self.state_memory_bytes:
            self.not_kept.add(slot.name)
            self._too_large.add(key)
            return
        self._kept[key] = prepared
        self.state_bytes += prepared.num_bytes

    def _forget_unused(self) -> None:
        for key, prepared in list(self._kept.items()):
            if prepared.last_used < self._candidate - KEEP_FOR_CANDIDATES:
                self.state_bytes -= prepared.num_bytes
                del self._kept[key]
                self._too_large.clear()


@contextlib.contextmanager
def _naming(plan: MergePlan, slot: Slot | None = None) -> Iterator[None]:
    """Say of values that a method refuses which merge they belong to, and to which tensor."""
    try:
        yield
    except ValueError as error:
        where = f", tensor {slot.name}" if slot is not None else ""
        raise UserError(f"recipe: {plan.node.method}{where}: {error}") from error


class _Surveyed:
    """A merge node as surveys see it."""

    def __init__(self, merger: TensorMerger, plan: MergePlan, of_slot: Mapping[str, MergePlan]) -> None:
        self._merger, self._of_slot = merger, of_slot
        self.method, self.key_number = plan.method, plan.key_number

    def structural(self, slot: Slot) -> Mapping[str, Value]:
        return self._of_slot[slot.name].values(slot)[0]

    def tensors(self, slot: Slot) -> tuple[Tensor | None, Sequence[Tensor]]:
        return self._merger.inputs(self._of_slot[slot.name], slot)

    def context(self, slot: Slot, statistics: Statistics) -> TensorContext:
        return self._of_slot[slot.name].context(slot, statistics)


class OutputDtype:
    """The dtype each merged tensor is stored in: the recipe's, else the dtype of the same tensor in its reference."""

    def __init__(self, recipe: Recipe, models: OpenModels) -> None:
        """Look up the recipe's dtype.

        Raises:
            UserError: a dtype that weights cannot be stored in.
        """
        if recipe.dtype is not None and recipe.dtype not in DTYPES:
            raise UserError(f"recipe: dtype {recipe.dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
        self._dtype = None if recipe.dtype is None else DTYPES[recipe.dtype]
        self._models, self._reference = models, recipe.reference

    def of(self, slot: Slot) -> torch.dtype:
        """Dtype of one tensor."""
        return self._dtype or self._models.output_dtype(self._reference, slot)


def check_finite(sums: list[tuple[str, Tensor]]) -> None:
    """Check what ``checked_copy`` returned for written tensors, in one go.

    Raises:
        MergeFailed: naming the tensors that are not finite.
    """
    if not sums or bool(torch.stack([total.float() for _, total in sums]).isfinite().all()):
        return
    broken = [name for name, total in sums if not bool(total.isfinite())]
    some = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
    raise MergeFailed(f"merged weights are NaN or infinite in {len(broken)} tensors: {some}")


def return_free_memory() -> None:
    """Give free pages of the heap back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
