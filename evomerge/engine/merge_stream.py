"""A recipe's merged tensors one after the other, under the names a checkpoint gives them, for engines that load those.

It runs in another engine's own process: beside torch it needs numpy, safetensors, transformers, huggingface_hub,
pyyaml, psutil and numba, and none of lm-eval, Ray and the optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from evomerge.engine.adapted_models import check_live, cut_to_depth
from evomerge.engine.depth_groups import DepthGroups
from evomerge.engine.live_model import default_state_bytes
from evomerge.engine.output_plan import OutputUnit, plan_output
from evomerge.engine.tensor_merge import TensorMerger, check_finite
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.errors import UserError
from evomerge.methods.elementwise import checked_copy
from evomerge.recipes.recipe import Recipe, Route, Source


class MergeStream:
    """Streams recipes over one set of models, keeping what methods prepare between candidates.

    The tensors are bit for bit those of the checkpoint that ``merge_to_disk`` writes of the same recipe on the same
    device.
    """

    def __init__(
        self,
        reference: Source,
        sources: Iterable[Source],
        device: torch.device,
        state_memory_bytes: int | None = None,
    ) -> None:
        """Open the models.

        Args:
            reference: lends the architecture and its names.
            sources: every model that recipes will merge.
            device: where the arithmetic happens and tensors are handed out.
            state_memory_bytes: cap on prepared state, None = half of what is free on the device now.

        Raises:
            InvalidInput: models that are missing or do not fit together.
        """
        self._models = DepthGroups(reference, list(sources), any_depth=False).main
        self.device = device
        cap = default_state_bytes(device) if state_memory_bytes is None else state_memory_bytes
        num_threads = torch.get_num_threads() if device.type == "cpu" else 1
        threads = TensorThreads(num_threads, self._models.architecture)
        self._merger = TensorMerger(self._models, device, cap, threads)

    @property
    def state_bytes(self) -> int:
        """Bytes of prepared merge state held."""
        return self._merger.state_bytes

    @torch.no_grad()
    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """Name and values of every tensor, in the order of a checkpoint; the receiver must not keep them.

        Raises:
            MergeFailed: hyperparameters or merged weights are not finite; raised after the last tensor at the latest.
            UserError: the recipe does not fit the models, or is a route.
        """
        if isinstance(recipe.model, Route):
            raise UserError("a route through blocks cannot be streamed into an engine; export it and load the export")
        check_live(recipe)
        root = cut_to_depth(recipe, self._models.architecture.num_blocks)
        self._merger.start_candidate(root)
        sums: list[tuple[str, Tensor]] = []
        for unit in plan_output(recipe, self._models):
            merged = []
            for slot in unit.slots:
                tensor = torch.empty(slot.shape, dtype=unit.entries[0].dtype, device=self.device)
                self._merger.write(self._merger.pending(root, slot), tensor)
                sums.append((slot.name, checked_copy(None, tensor)))
                merged.append(tensor)
            yield from zip([entry.name for entry in unit.entries], self._stored(unit, merged), strict=True)
        check_finite(sums)

    def _stored(self, unit: OutputUnit, merged: list[Tensor]) -> list[Tensor]:
        if unit.given is not None:
            return [unit.given]
        if not unit.slots:
            buffer = self._models.buffer(unit.copied)
            assert buffer is not None
            return [buffer]
        return unit.stored(merged)
