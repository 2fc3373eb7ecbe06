"""A merge node made ready for many tensors: its method, its inputs, and its values by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.engine.architecture import Architecture, Slot
from evomerge.engine.stretch_merge import pieces_of
from evomerge.errors import InvalidInput, MergeFailed, Problem
from evomerge.methods.base import MergeMethod, MethodSpec, TensorContext, Value
from evomerge.methods.catalogue import get_spec, load_method
from evomerge.methods.whole_model import Statistics
from evomerge.recipes.recipe import Merge
from evomerge.recipes.resolve import resolve_values
from evomerge.recipes.tensor_layout import Piece

Values = Mapping[str, Value | Sequence[float]]


class MergePlan:
    """A merge node made ready for many tensors: method, inputs and values by tensor."""

    def __init__(self, node: Merge, num_blocks: int, architecture: Architecture) -> None:
        """Look up the method.

        Raises:
            UserError: unknown method, a number of models it cannot handle, or stretches laid over other tensors.
            MergeFailed: coefficients of stretches are NaN or infinite.
        """
        self.node = node
        self.spec = get_spec(node.method)
        self.method: MergeMethod = load_method(node.method)
        self.key_number = 0
        self.survey_number = 0
        self.is_kept = True
        self.statistics: Statistics = ()
        # A method on adapters is given their factors, see adapter_factors.
        self.experts = tuple(source for _, source in node.experts) if self.spec.takes == "tensors" else ()
        self.inputs = (*(() if node.base is None else (node.base,)), *self.experts)
        self.expert_keys = tuple(name for name, _ in node.experts)
        _check_models(node, self.spec)
        self._pieces = pieces_of(node, architecture)
        self._num_blocks = num_blocks
        self._structural = frozenset(entry.name for entry in self.spec.hyperparameters if entry.structural)
        self._split: dict[int, tuple[Mapping[str, Any], dict[str, Value], Values]] = {}  # by id of resolved values

    def values(self, slot: Slot) -> tuple[dict[str, Value], Values]:
        """Structural and other hyperparameters of a tensor.

        Raises:
            MergeFailed: a value is NaN or infinite.
        """
        resolved: Mapping[str, Any] = resolve_values(self.node, slot.name, slot.block, slot.component, self._num_blocks)
        if id(resolved) not in self._split:
            for name, value in resolved.items():
                numbers = value if isinstance(value, tuple) else (value,)
                if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                    raise MergeFailed(f"{self.node.method}: {name} is {value} for {slot.name}; expected finite numbers")
            structural = {name: resolved[name] for name in sorted(self._structural)}
            cheap = {name: value for name, value in resolved.items() if name not in self._structural}
            self._split[id(resolved)] = (resolved, structural, cheap)
        _, structural, others = self._split[id(resolved)]
        return structural, {**others, "coefficient": self._pieces[slot.name][0].value} if self._pieces else others

    def cut(self, slot: Slot) -> tuple[Piece, ...]:
        """The pieces of a tensor whose coefficients change inside it; empty for all others."""
        pieces = self._pieces.get(slot.name, ())
        return pieces if len(pieces) > 1 else ()

    def context(self, slot: Slot, statistics: Statistics, reused: bool = True) -> TensorContext:
        """What the method may know of a tensor."""
        return TensorContext(
            slot.name,
            self.node.seed,
            self.expert_keys,
            reused,
            component=slot.component,
            block=slot.block,
            num_blocks=self._num_blocks,
            statistics=statistics,
        )


def _check_models(node: Merge, spec: MethodSpec) -> None:
    count, where = len(node.experts), f"recipe: {node.method}"
    problems = []
    if spec.needs_base and node.base is None:
        problems.append(Problem(where, "needs a base model; give `base`"))
    if count < spec.min_experts or (spec.max_experts is not None and count > spec.max_experts):
        upper = "" if spec.max_experts is None else f" to {spec.max_experts}"
        wanted = f"{spec.min_experts}{upper}" if upper != f" to {spec.min_experts}" else f"exactly {spec.min_experts}"
        problems.append(Problem(where, f"expected {wanted}{' or more' if not upper else ''} experts, got {count}"))
    if problems:
        raise InvalidInput(problems)
