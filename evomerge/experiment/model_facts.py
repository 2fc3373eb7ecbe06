"""What the models of an experiment say without reading weights: depths, sizes, tensors, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.engine.architecture import Architecture
from evomerge.engine.model_tensors import check_models
from evomerge.engine.route_fit import check_route_models
from evomerge.errors import UserError
from evomerge.recipes.recipe import Source
from evomerge.spaces.joint_config import JointConfig, data_flow_of
from evomerge.spaces.space import ModelShape


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the models that are on this machine.

    Attributes:
        num_blocks: depth of the model that lends the architecture, None while it is not here.
        tensors: (name, component) of every merged tensor; empty without a merge of models.
        shapes: (name, shape) of the models; the base's name is ``base``.
        notes: lines worth telling.
        sizes: number of entries of each of ``tensors``.
    """

    num_blocks: int | None = None
    tensors: tuple[tuple[str, str], ...] = ()
    shapes: tuple[tuple[str, ModelShape], ...] = ()
    notes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def depths(self) -> dict[str, int]:
        """Number of blocks by name."""
        return {name: shape.num_blocks for name, shape in self.shapes}


def find_model_facts(
    base: Source | None, experts: Sequence[tuple[str, Source]], here: Sequence[Source], space: object
) -> ModelFacts:
    """Look at the models that are on this machine.

    Merges need models of equal shapes; a data flow alone takes models that differ in depth.

    Args:
        base: the common ancestor, or None.
        experts: (name, model) in the experiment's order.
        here: the models that are on this machine.
        space: configuration of the search space, None where it is not valid.

    Raises:
        UserError: the models do not fit together, told by model, tensor and shape.
    """
    names = dict(experts)
    if base is not None:
        names.setdefault("base", base)
    reference = base or experts[0][1]
    flow = data_flow_of(space)
    merged: Architecture | None = None
    if (flow is None or isinstance(space, JointConfig)) and reference in here:
        merged = check_models([reference, *(source for source in here if source != reference)])
    tensors = tuple((slot.name, slot.component) for slot in ([] if merged is None else merged.slots))
    sizes = tuple(slot.num_elements for slot in ([] if merged is None else merged.slots))
    if flow is None:
        if merged is None:
            return ModelFacts()
        shape = _shape_of(merged)
        shapes = tuple((name, shape) for name, source in names.items() if source in here)
        return ModelFacts(merged.num_blocks, tensors, shapes, sizes=sizes)
    first = [name for name in flow.pool or () if name in names]  # its first model lends the ends
    order = [name for name in (*first, *(name for name in names if name not in first)) if names[name] in here]
    models, notes = check_route_models([(name, names[name]) for name in order]) if order else ((), ())
    shapes = tuple(
        (model.name, ModelShape(len(model.block_parameters), model.block_parameters, model.outside_parameters))
        for model in models
    )
    facts = ModelFacts(None if merged is None else merged.num_blocks, tensors, shapes, notes)
    if merged is not None and len(set(facts.depths.values())) > 1:
        listed = ", ".join(f"{name} has {depth}" for name, depth in facts.depths.items())
        raise UserError(f"the merge of a joint search space needs models of one depth: {listed} blocks")
    return facts


def _shape_of(architecture: Architecture) -> ModelShape:
    counts: Mapping[int | None, int] = _parameters_by_block(architecture)
    blocks = tuple(counts.get(block, 0) for block in range(architecture.num_blocks))
    return ModelShape(architecture.num_blocks, blocks, counts.get(None, 0))


def _parameters_by_block(architecture: Architecture) -> dict[int | None, int]:
    counts: dict[int | None, int] = {}
    for slot in architecture.slots:
        counts[slot.block] = counts.get(slot.block, 0) + slot.num_elements
    return counts
