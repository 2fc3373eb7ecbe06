"""One model in memory that every candidate of a search is written into, straight into its parameters."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.engine.adapted_models import check_live, cut_to_depth
from evomerge.engine.architecture import Architecture, Slot, load_config, model_factories
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.sources import resolve_source
from evomerge.engine.tensor_merge import DTYPES, OutputDtype, PendingTensor, TensorMerger, check_finite
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.errors import UserError
from evomerge.methods.elementwise import checked_copy
from evomerge.recipes.recipe import Node, Recipe, Source


class LiveModel:
    """A transformers model whose weights become any recipe's, in place.

    What it holds after ``apply(recipe)`` is exactly what loading the checkpoint written by ``merge_to_disk(recipe)`` in
    the same dtype gives: merged values are rounded to the recipe's dtype before they enter a wider live parameter.
    Between calls nobody else may write to the parameters. Tied weights stay tied; buffers are never touched.
    """

    def __init__(
        self,
        base: Source | None,
        experts: Iterable[tuple[str, Source]],
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        state_memory_bytes: int | None = None,
    ) -> None:
        """Open and check all models, then load the reference (the base, else the first expert).

        Args:
            base: the base model; lends architecture, configuration and tokenizer.
            experts: (name, source) of every model that recipes will merge.
            dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``. Auto keeps the checkpoint's dtype where the
                device computes in it, and takes float32 on CPUs without bfloat16 arithmetic.
            device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.
            threads: torch threads on CPU; None leaves them as they are.
            state_memory_bytes: cap on prepared merge state; None = half of what is free on the device now. What does
                not fit is prepared again for every candidate.

        Raises:
            UserError: models that are missing or do not fit together, naming tensors and shapes; unknown dtype, device.
        """
        sources = [source for _, source in experts]
        if base is None and not sources:
            raise UserError("no model given: name a base model or at least one expert")
        self.reference = base if base is not None else sources[0]
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = choose_device(device)
        self.models = OpenModels(self.reference, sources)
        self.dtype = choose_dtype(dtype, self.device, self.models.get(self.reference).stored_dtype)
        self.model: Any = self._load()
        self._parameters = dict(self.model.named_parameters())
        self.model_bytes = sum(p.numel() * p.element_size() for p in self._parameters.values())
        cap = _default_state_bytes(self.device) if state_memory_bytes is None else state_memory_bytes
        num_threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._threads = TensorThreads(num_threads, self.architecture)
        self._merger = TensorMerger(self.models, self.device, cap, self._threads)
        self._scratch: dict[tuple[int, torch.dtype], Tensor] = {}  # by thread
        self._holds: dict[str, Hashable] = {}  # parameters whose content no candidate of the same models changes
        self._upper: dict[str, Tensor] = {}  # bf16 views of fp32 parameters that hold nothing more precise
        if self.models.get(self.reference).adapter is not None or not self._loaded_as_tied:
            self.apply(Recipe(self.reference))

    @property
    def architecture(self) -> Architecture:
        """Blocks and components of the model."""
        return self.models.architecture

    @cached_property
    def tokenizer(self) -> Any:
        """The reference model's tokenizer.

        Raises:
            UserError: the reference has none.
        """
        from transformers import AutoTokenizer

        directory = resolve_source(self.reference)
        try:
            return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{directory}: no tokenizer that transformers can load ({_first_line(error)})") from error

    @property
    def prepared_bytes(self) -> int:
        """Bytes of merge state held between candidates."""
        return self._merger.state_bytes

    @property
    def prepare_seconds(self) -> float:
        """Seconds spent so far on preparing merge state, added up over threads."""
        return self._merger.prepare_seconds

    @property
    def memory_plan(self) -> str:
        """One line: what this worker holds in memory and what it shares."""
        merger, free = self._merger, torch.get_num_threads()
        scratch = sum(tensor.nbytes for tensor in self._scratch.values())
        where = f"{self.device}" + (f", {free} threads" if self.device.type == "cpu" else "")
        parts = [
            f"live model {_megabytes(self.model_bytes)} ({_name(self.dtype)}, {where})",
            f"prepared merge state {_megabytes(merger.state_bytes)} of at most {_megabytes(merger.state_memory_bytes)}",
            f"scratch {_megabytes(scratch)}",
            f"{self.models.num_models} models mapped, {_megabytes(self.models.file_bytes)} (page cache, shared)",
        ]
        if merger.not_kept:
            parts.append(f"state of {len(merger.not_kept)} tensors does not fit and is prepared for each candidate")
        return "; ".join(parts)

    def check(self) -> None:
        """Check again that all models fit together.

        Raises:
            InvalidInput: naming models, tensors and shapes.
        """
        self.models.check()

    def apply(self, recipe: Recipe) -> float:
        """Make the live model this recipe's merge.

        Args:
            recipe: may name any models that fit the reference.

        Returns:
            Seconds it took, including what had to be prepared.

        Raises:
            MergeFailed: hyperparameters or merged weights are NaN or infinite; the next ``apply`` repairs the model.
            UserError: an unknown method, or a model that is not there or does not fit.
        """
        started = time.perf_counter()
        output = OutputDtype(recipe, self.models)
        check_live(recipe)
        root = cut_to_depth(recipe, self.architecture.num_blocks)
        self._merger.start_candidate(root)
        sums: dict[str, Tensor] = {}

        self._prepare(root)
        try:
            self._write_all(root, output, sums)
            check_finite([(slot.name, sums[slot.name]) for slot in self.architecture.slots if slot.name in sums])
        except BaseException:
            self._holds.clear()
            raise
        return time.perf_counter() - started

    def _prepare(self, root: Node) -> None:
        """Prepare what is missing, several tensors at a time: sorting and the like is slow and uses one core each."""
        slots = sorted(self.architecture.slots, key=lambda slot: -slot.num_elements)
        missing = [slot for slot in slots if not self._merger.is_prepared(root, slot)]

        def prepare(slot: Slot) -> None:
            with torch.no_grad():
                self._merger.pending(root, slot)

        if missing:
            self._threads.each(prepare, missing)

    def _write_all(self, root: Node, output: OutputDtype, sums: dict[str, Tensor]) -> None:
        def write(slot: Slot) -> None:
            with torch.no_grad():
                self._write(self._merger.pending(root, slot), output.of(slot), sums)

        slots = sorted(self.architecture.slots, key=lambda slot: -slot.num_elements)
        # What one core would still be busy with when the others are done is split over all of them.
        share = sum(slot.num_elements for slot in slots) // (2 * self._threads.num_workers)
        for slot in slots:
            if slot.num_elements > share:
                write(slot)
        self._threads.each(write, [slot for slot in slots if slot.num_elements <= share])

    def _write(self, pending: PendingTensor, output: torch.dtype, sums: dict[str, Tensor]) -> None:
        slot = pending.slot
        held = None if pending.constant is None else (pending.constant, output)
        if held is not None and self._holds.get(slot.name) == held:
            return
        self._holds.pop(slot.name, None)
        parameter = self._parameters[slot.name]
        # A dtype at least as wide as the method's fp32 adds no rounding of its own.
        is_direct = output in (parameter.dtype, torch.float32, torch.float64)
        if output == torch.bfloat16 and _has_upper_halves(parameter):
            self._merger.write(pending, self._upper_halves(slot.name, parameter))
            sums[slot.name] = checked_copy(None, parameter)
        else:
            self._upper.pop(slot.name, None)
            target = parameter if is_direct else self._scratch_for(slot, output)
            self._merger.write(pending, target)
            sums[slot.name] = checked_copy(None if is_direct else parameter, target)
        if held is not None:
            self._holds[slot.name] = held

    def _upper_halves(self, name: str, parameter: Tensor) -> Tensor:
        """A view to write bf16 on, which is the upper half of the same number in fp32, the lower one being 0."""
        if name not in self._upper:
            self._upper[name] = parameter.zero_().view(torch.bfloat16)[..., 1::2]
        return self._upper[name]

    def _scratch_for(self, slot: Slot, dtype: torch.dtype) -> Tensor:
        key = (threading.get_ident(), dtype)
        if key not in self._scratch or self._scratch[key].numel() < slot.num_elements:
            self._scratch[key] = torch.empty(slot.num_elements, dtype=dtype, device=self.device)
        return self._scratch[key][: slot.num_elements].view(slot.shape)

    def _load(self) -> nn.Module:
        directory = resolve_source(self.reference)
        config = load_config(directory)
        if self.models.architecture.build is None:
            raise UserError(f"{directory}: transformers cannot build the model, so it can be merged to disk only")
        text = config.get_text_config()
        self._loaded_as_tied = bool(text.tie_word_embeddings) == self.models.architecture.is_tied
        if not self._loaded_as_tied:
            text.tie_word_embeddings = config.tie_word_embeddings = self.models.architecture.is_tied
        try:
            with _no_progress_bar():
                model: Any = model_factories(config)[0].from_pretrained(
                    str(directory), config=config, dtype=self.dtype, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise UserError(f"{directory}: transformers cannot load the model ({_first_line(error)})") from error
        module: nn.Module = model.to(self.device).eval().requires_grad_(False)
        return module


def choose_device(device: str) -> torch.device:
    """The device a word stands for.

    Raises:
        UserError: unknown, or CUDA is asked for and not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown; expected auto, cpu, cuda or cuda:<n>") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: this torch sees no CUDA device; use cpu or auto")
    return chosen


def choose_dtype(dtype: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The live model's dtype; ``auto`` depends only on the device's capabilities and the checkpoint.

    Raises:
        UserError: an unknown dtype.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UserError(f"dtype {dtype!r} is unknown; expected auto, {', '.join(DTYPES)}")
    if stored == torch.float64:
        return torch.float32
    if device.type == "cpu" and not (stored == torch.bfloat16 and cpu_computes_bfloat16()):
        return torch.float32
    return stored


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; without that float32 is several times faster."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


def _has_upper_halves(parameter: Tensor) -> bool:
    is_whole = parameter.dim() > 0 and parameter.is_contiguous()
    return parameter.dtype == torch.float32 and is_whole and sys.byteorder == "little"


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _default_state_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    import psutil

    return int(psutil.virtual_memory().available) // 2


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
