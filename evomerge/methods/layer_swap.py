"""Take the bottom and top blocks of another model and keep one's own between (layer swapping)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.task_vectors import check_one_expert, interpolate


@dataclass(frozen=True)
class LayerSwapState:
    """Both models and where the tensor is.

    Attributes:
        inputs: the models.
        block: index of the tensor's block, None outside.
        num_blocks: number of blocks.
    """

    inputs: Inputs
    block: int | None
    num_blocks: int


class LayerSwap(MergeMethod):
    """``(1 - w) A + w B`` of the base A and the expert B: w is 1 in B's blocks, 0 in A's, and ``seam_weight`` between.

    A is fine-tuned for a task, B for a language, both from the same model. B's are the first ``bottom_share`` and the
    last ``top_share`` of the blocks, in whole numbers; their defaults are the published 5 and 2 blocks of 32. The
    ``transition_bottom`` and ``transition_top`` blocks next to them are the seams; where no block is swapped there is
    none. Tensors outside the blocks get ``outside_weight``. How the paper weighs those, and whether it weighs the seams
    by the size of changes, could not be verified.
    Reference: Bandarkar 2024, https://arxiv.org/abs/2410.01335
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> LayerSwapState:
        """Keep the models.

        Raises:
            UserError: not exactly one expert.
        """
        check_one_expert("layer_swap", experts)
        return LayerSwapState(Inputs.check(base, experts, needs_base=True), context.block, context.num_blocks)

    def apply(self, state: LayerSwapState, values: Values, out: Tensor) -> None:
        """Write the merged tensor; a copy where a model's weight is 1.

        Raises:
            ValueError: a share outside [0, 1], or a transition below 0.
        """
        interpolate(out, state.inputs, expert_weight(values, state.block, state.num_blocks))

    def is_constant(self, state: LayerSwapState) -> bool:
        """Whether both models are equal."""
        return not state.inputs.active

    def state_bytes(self, state: LayerSwapState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


def expert_weight(values: Values, block: int | None, num_blocks: int) -> float:
    """The expert's weight in a block, or outside the blocks.

    Args:
        values: the hyperparameters.
        block: index of the block, None outside.
        num_blocks: number of blocks.

    Raises:
        ValueError: a share outside [0, 1], or a transition below 0.
    """
    shares = {side: read_number(values, f"{side}_share") for side in ("bottom", "top")}
    seams = {side: read_number(values, f"transition_{side}") for side in ("bottom", "top")}
    seam_weight, outside_weight = read_number(values, "seam_weight"), read_number(values, "outside_weight")
    for side, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{side}_share must be in [0, 1], got {share:g}")
        if seams[side] < 0.0:
            raise ValueError(f"transition_{side} must not be negative, got {seams[side]:g}")
    if block is None:
        return outside_weight
    weight = 0.0
    for side, place in (("bottom", block), ("top", num_blocks - 1 - block)):
        swapped = int(shares[side] * num_blocks + 0.5)
        if place < swapped:
            return 1.0
        if swapped and place < swapped + seams[side]:
            weight = seam_weight
    return weight
