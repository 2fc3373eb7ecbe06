"""Lanes: sets of blocks beside those of the live model, each holding one model's weights for routes to run through."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from evomerge.engine.adapted_config import block_tables, load_adapted_config
from evomerge.engine.architecture import Slot, build_on_meta, load_config
from evomerge.engine.block_places import BlockNames
from evomerge.engine.depth_groups import DepthGroups
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.sources import resolve_source
from evomerge.engine.tensor_merge import TensorMerger
from evomerge.engine.tensor_writer import DtypeOf, TensorWriter
from evomerge.errors import UserError
from evomerge.recipes.recipe import Node, Source

_VERSIONS = itertools.count(1)


class Lane:
    """Blocks that hold the weights of one node, made and written as routes come to use them.

    Attributes:
        shape: which kinds of blocks it has.
        blocks: those made so far, by number.
        content: names what the blocks hold; None = nothing known.
        version: changes with the content.
    """

    def __init__(
        self, shape: LaneShape, writer: TensorWriter, make: Callable[[int], nn.Module], blocks: Iterable[nn.Module] = ()
    ) -> None:
        """Start with nothing written.

        Args:
            shape: which kinds of blocks it has.
            writer: of the blocks' parameters.
            make: gives a further block, whose parameters it makes known to the writer.
            blocks: the first ones, where they are there already.
        """
        self.shape = shape
        self.blocks = dict(enumerate(blocks))
        self.content: Hashable = None
        self.version = 0
        self._writer, self._make = writer, make
        self._filled: set[int] = set()

    @property
    def num_bytes(self) -> int:
        """Bytes of its blocks."""
        return sum(p.nbytes for block in self.blocks.values() for p in block.parameters())

    def forget(self) -> None:
        """Its blocks may have been written by others."""
        self.content = None
        self._filled.clear()

    def hold(self, content: Hashable) -> None:
        """From now on the blocks are to hold this; none is written yet where that is new."""
        if content != self.content:
            self._filled.clear()
            self.content, self.version = content, next(_VERSIONS)

    def missing(self, wanted: Iterable[int]) -> list[int]:
        """Which of some blocks are not written yet."""
        return [block for block in dict.fromkeys(wanted) if block not in self._filled]

    def fill(
        self, wanted: list[int], merger: TensorMerger, node: Node, slots: Mapping[int, list[Slot]], output: DtypeOf
    ) -> None:
        """Write blocks.

        Args:
            wanted: their numbers.
            merger: has started on the node.
            node: whose weights.
            slots: of each block.
            output: the dtype each tensor is rounded to.

        Raises:
            MergeFailed: hyperparameters or merged weights are NaN or infinite.
        """
        for number in wanted:
            if number not in self.blocks:
                self.blocks[number] = self._make(number)
        try:
            self._writer.write(merger, node, [slot for number in wanted for slot in slots[number]], output)
        except BaseException:
            self.forget()
            raise
        self._filled.update(wanted)


class LaneShape:
    """What blocks a model has, by number: lists of its configuration, and the blocks themselves without memory.

    Attributes:
        tables: what the configuration lists per block (``layer_types``).
        key: equal for models with the same blocks.
    """

    def __init__(self, tables: dict[str, list[Any]], depth: int, build: Callable[[], nn.Module]) -> None:
        self.tables = tables
        self.key = (depth, json.dumps(tables, sort_keys=True, default=str))
        self._build = build

    @cached_property
    def model(self) -> nn.Module:
        """A model of such blocks on the meta device, with the reference's settings."""
        return self._build()


class BlockMaker:
    """Makes blocks as a model's own configuration asks for, with the reference's settings where a model has but one."""

    def __init__(self, model: Any, groups: DepthGroups, stack: str, dtype: torch.dtype) -> None:
        """Remember the live model.

        Args:
            model: the live model, not in a route.
            groups: the opened models.
            stack: module path of the list of blocks.
            dtype: of parameters the live model does not have.
        """
        self._model = model
        self._groups, self._stack, self._dtype = groups, stack, dtype
        self._names = BlockNames(groups.main.architecture)
        self._live_blocks = list(model.get_submodule(stack).children())
        self._shapes: dict[Source, LaneShape] = {}
        config: Any = model.config
        text = config.get_text_config()
        self.own = LaneShape(block_tables(text), text.num_hidden_layers, self._reference_on_meta)

    def shape(self, source: Source) -> LaneShape:
        """The shape of a source's blocks.

        Raises:
            UserError: the reference has no place for such blocks.
        """
        if source not in self._shapes:
            self._shapes[source] = self._find_shape(source)
        return self._shapes[source]

    def _find_shape(self, source: Source) -> LaneShape:
        reference = self._groups.reference
        if source == reference:
            return self.own
        self._groups.warn_of_other_settings(source)
        directory, depth = resolve_source(source), self._groups.depth(source)
        home = resolve_source(reference)
        config = load_adapted_config(home, [(directory, block) for block in range(depth)])
        tables = block_tables(config.get_text_config())
        kinds = [set(table.get("layer_types", ())) for table in (tables, self.own.tables)]
        if lacking := sorted(kinds[0] - kinds[1]):
            raise UserError(
                f"model {source}: has blocks of the type {', '.join(lacking)}, {reference} has none; make {source} "
                "the base, or merge to disk (evomerge merge) and use the directory as a model"
            )
        shape = LaneShape(tables, depth, lambda: build_on_meta(config, directory))
        return self.own if shape.key == self.own.key else shape

    def _reference_on_meta(self) -> nn.Module:
        directory = resolve_source(self._groups.reference)
        return build_on_meta(load_config(directory), directory)

    def make(self, shape: LaneShape, number: int, like: Source, parameters: dict[str, Tensor]) -> nn.Module:
        """One block with memory of its own.

        Args:
            shape: of the model it is from.
            number: of the block.
            like: the source whose buffers it has.
            parameters: takes the block's parameters by the names they have in the source.
        """
        model: Any = shape.model
        text = self._model.config.get_text_config()
        block: nn.Module = copy.deepcopy(
            cast(Any, model.get_submodule(self._stack))[number],
            {id(config): text for config in (model.config, model.config.get_text_config())},
        )
        group, beside = self._groups.of(like), self._live_blocks[number % len(self._live_blocks)]
        of_live = {**dict(beside.named_parameters()), **dict(beside.named_buffers())}
        for path, module in block.named_modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is None:
                        continue
                    inside = f"{path}.{name}" if path else name
                    made = self._tensor(tensor, f"{self._stack}.{number}.{inside}", of_live.get(inside), group, like)
                    is_parameter = kind is module._parameters
                    kind[name] = nn.Parameter(made, requires_grad=False) if is_parameter else made
        parameters.update((f"{self._stack}.{number}.{name}", p) for name, p in block.named_parameters())
        return block.eval()

    def _tensor(self, empty: Tensor, name: str, live: Tensor | None, group: OpenModels, like: Source) -> Tensor:
        """Room for a tensor that is merged; any other as it is in the source, or else in the live model's block."""
        device = self._model.device
        if name in group.architecture.by_name:
            return torch.empty(empty.shape, dtype=self._dtype if live is None else live.dtype, device=device)
        holder = group.get(like)
        if holder.has(name):
            return holder.tensor(name).to(device, copy=True)
        if live is None or live.shape != empty.shape:
            raise UserError(f"model {like}: {name} cannot be made in memory; merge to disk and use the directory")
        return live.clone()
