"""One model in memory that every candidate of a search is written into, straight into its parameters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.engine.adapted_models import check_live, cut_to_depth
from evomerge.engine.architecture import Architecture, claims_tied, load_config, model_factories
from evomerge.engine.block_places import BlockPlaces
from evomerge.engine.depth_groups import DepthGroups
from evomerge.engine.live_routes import LiveRoutes
from evomerge.engine.model_cost import model_cost
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.prefix_cache import DEFAULT_BYTES
from evomerge.engine.recipe_magnitudes import mean_magnitudes
from evomerge.engine.sources import resolve_source
from evomerge.engine.tensor_merge import DTYPES, OutputDtype, TensorMerger
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.engine.tensor_writer import Scratch, TensorWriter
from evomerge.engine.tokenizer_files import has_tokenizer
from evomerge.errors import UserError
from evomerge.recipes.recipe import Recipe, Route, Source
from evomerge.terms import HopCounts, ModelCost


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
        *,
        any_depth: bool = False,
        prefix_cache_bytes: int | None = None,
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
            any_depth: whether experts may be of another depth than the reference, as only routes can use them.
            prefix_cache_bytes: cap on what is kept of a route's hops for routes that begin alike; 0 = nothing is,
                None = 512 MB.

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
        self._groups = DepthGroups(self.reference, sources, any_depth)
        self.models = self._groups.main
        self.dtype = choose_dtype(dtype, self.device, self.models.get(self.reference).stored_dtype)
        self.model: Any = self._load()
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        self.model_bytes = sum(p.numel() * p.element_size() for p in parameters.values())
        self._state_cap = default_state_bytes(self.device) if state_memory_bytes is None else state_memory_bytes
        num_threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._threads = TensorThreads(num_threads, self.architecture)
        self._mergers: dict[int, TensorMerger] = {}  # by id of the group of models
        self._scratch = Scratch(self.device)
        self._writer = self._new_writer(parameters)
        self._routes: LiveRoutes | None = None  # from the first route on
        self._recipe = Recipe(self.reference)
        self._prefix_cap = DEFAULT_BYTES if prefix_cache_bytes is None else prefix_cache_bytes
        if self.models.get(self.reference).adapter is not None or not self._loaded_as_tied:
            self.apply(Recipe(self.reference))

    @property
    def architecture(self) -> Architecture:
        """Blocks and components of the model."""
        return self.models.architecture

    @cached_property
    def tokenizer(self) -> Any:
        """The reference model's tokenizer, None where no tokenizer lies beside it (image classifiers).

        Raises:
            UserError: it cannot be read.
        """
        directory = resolve_source(self.reference)
        return load_tokenizer(directory) if has_tokenizer(directory) else None

    @property
    def prepared_bytes(self) -> int:
        """Bytes of merge state held between candidates."""
        return sum(merger.state_bytes for merger in self._mergers.values())

    @property
    def prepare_seconds(self) -> float:
        """Seconds spent so far on preparing merge state, added up over threads."""
        return sum(merger.prepare_seconds for merger in self._mergers.values())

    @property
    def lane_bytes(self) -> int:
        """Bytes of blocks held for routes beside the live model's own."""
        return 0 if self._routes is None else sum(lane.num_bytes for lane in self._routes.lanes)

    @property
    def memory_plan(self) -> str:
        """One line: what this worker holds in memory and what it shares."""
        free, groups = torch.get_num_threads(), self._groups.all
        where = f"{self.device}" + (f", {free} threads" if self.device.type == "cpu" else "")
        mapped = f"{_megabytes(sum(group.file_bytes for group in groups))} (page cache, shared)"
        parts = [
            f"live model {_megabytes(self.model_bytes)} ({_name(self.dtype)}, {where})",
            f"prepared merge state {_megabytes(self.prepared_bytes)} of at most {_megabytes(self._state_cap)}",
            f"scratch {_megabytes(self._scratch.num_bytes)}",
            f"{sum(group.num_models for group in groups)} models mapped, {mapped}",
        ]
        if self._routes is not None:
            parts.insert(1, f"{len(self._routes.lanes)} lanes of blocks {_megabytes(self.lane_bytes)}")
            kept = f"{_megabytes(self._routes.prefixes.num_bytes)} of at most {_megabytes(self._prefix_cap)}"
            parts.insert(2, f"prefix cache {kept}")
        if not_kept := set().union(*(merger.not_kept for merger in self._mergers.values())):
            parts.append(f"state of {len(not_kept)} tensors does not fit and is prepared for each candidate")
        return "; ".join(parts)

    def cost(self, context: int, with_magnitudes: bool = False) -> ModelCost:
        """What the model costs as it is now.

        Args:
            context: positions that attention looks at.
            with_magnitudes: also of the recipe's numbers.
        """
        counted = model_cost(self.model, self.architecture, context)
        if not with_magnitudes:
            return counted
        return replace(counted, magnitudes=mean_magnitudes(self._recipe.model, self.architecture))

    def check(self) -> None:
        """Check again that all models fit together.

        Raises:
            InvalidInput: naming models, tensors and shapes.
        """
        for group in self._groups.all:
            group.check()

    def apply(self, recipe: Recipe) -> float:
        """Make the live model this recipe's merge, or let it run the recipe's route.

        Args:
            recipe: may name any models that fit the reference.

        Returns:
            Seconds it took, including what had to be prepared.

        Raises:
            MergeFailed: hyperparameters or merged weights are NaN or infinite; the next ``apply`` repairs the model.
            UserError: an unknown method, or a model that is not there or does not fit.
        """
        started = time.perf_counter()
        self._recipe = recipe
        output = OutputDtype(recipe, self.models)
        check_live(recipe)
        if isinstance(recipe.model, Route):
            if self._routes is None:
                self._routes = LiveRoutes(
                    self.model, self._groups, self._writer, self._merger, self._new_writer, self._prefix_cap
                )
            self._routes.apply(recipe)
            return time.perf_counter() - started
        root = cut_to_depth(recipe, self.architecture.num_blocks)
        if self._groups.any_depth:
            BlockPlaces(self._groups.depth, self.architecture).depth(root)
        merger = self._merger(self.models)
        merger.start_candidate(root)
        if self._routes is not None:
            self._routes.leave()
        self._writer.write(merger, root, self.architecture.slots, output.of)
        return time.perf_counter() - started

    def take_hop_counts(self) -> HopCounts:
        """Hops that forward passes of routes ran and skipped since the last call."""
        return HopCounts() if self._routes is None else self._routes.prefixes.take_counts()

    def drop_prefixes(self) -> None:
        """Let go of what is kept of hops; memory ran out."""
        if self._routes is not None:
            self._routes.prefixes.clear()

    @contextmanager
    def out_of_route(self) -> Iterator[None]:
        """The model looks as it does outside routes while the context lasts; its weights are the last recipe's."""
        if self._routes is None:
            yield
        else:
            with self._routes.aside():
                yield

    def _merger(self, group: OpenModels) -> TensorMerger:
        if id(group) not in self._mergers:
            cap = self._state_cap // len(self._groups.all)
            self._mergers[id(group)] = TensorMerger(group, self.device, cap, self._threads)
        return self._mergers[id(group)]

    def _new_writer(self, parameters: dict[str, Tensor]) -> TensorWriter:
        return TensorWriter(parameters, self._threads, self._scratch)

    def _load(self) -> nn.Module:
        directory = resolve_source(self.reference)
        config = load_config(directory)
        if self.models.architecture.build is None:
            raise UserError(f"{directory}: transformers cannot build the model, so it can be merged to disk only")
        self._loaded_as_tied = claims_tied(config) == self.architecture.is_tied
        if not self._loaded_as_tied:
            text = config.get_text_config()
            text.tie_word_embeddings = config.tie_word_embeddings = self.architecture.is_tied
        try:
            with _no_progress_bar():
                model: Any = model_factories(config)[0].from_pretrained(
                    str(directory), config=config, dtype=self.dtype, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise UserError(f"{directory}: transformers cannot load the model ({_first_line(error)})") from error
        module: nn.Module = model.to(self.device).eval().requires_grad_(False)
        return module


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in a model's directory.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory}: no tokenizer that transformers can load ({_first_line(error)})") from error


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


def default_state_bytes(device: torch.device) -> int:
    """Cap on prepared merge state where none is given: half of what is free on the device now."""
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
