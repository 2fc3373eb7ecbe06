"""Which value every hyperparameter has for one tensor: rules, gradients, defaults.

A recipe's rules are compiled once per merge (and cached by identity), so that resolving all tensors of a model costs a
few milliseconds for every candidate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from evomerge.errors import UserError
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.recipe import Merge, Rule, Scalar

Resolved = Scalar | tuple[Scalar, ...]


def resolve_values(
    merge: Merge, tensor_name: str, block: int | None, component: str, num_blocks: int | None
) -> Mapping[str, Resolved]:
    """Every hyperparameter of a merge for one tensor.

    The first matching rule wins; without one the default of the method counts.

    Args:
        merge: the merge.
        tensor_name: name of the tensor in the model.
        block: index of its block, None outside the blocks.
        component: one of COMPONENTS.
        num_blocks: number of blocks of the model.

    Returns:
        Hyperparameter name to a scalar, or to a tuple ``(E,)`` in expert order; shared between calls, so read only.

    Raises:
        UserError: a required value is missing, or a rule names blocks the model does not have.
    """
    return _compiled(_Identity(merge), num_blocks).values(tensor_name, block, component)


def knot_value(knots: tuple[float, ...], index: int | None, length: int) -> float:
    """A gradient's value at one block, as mergekit has it.

    At fraction ``t = index / (length - 1)`` (1 when there is a single block, 0 outside the blocks) the value is taken
    at ``x = t * (number of knots - 1)``, linearly between neighbouring knots.

    Args:
        knots: the values ``(K,)``.
        index: block index within the range, None outside the blocks.
        length: number of blocks of the range.
    """
    fraction = 0.0 if index is None else 1.0 if length == 1 else index / (length - 1)
    x = fraction * (len(knots) - 1)
    low = math.floor(x)
    if low >= len(knots) - 1:
        return float(knots[-1])
    share = x - low
    return float(knots[low] + share * (knots[low + 1] - knots[low]))  # exact where both are equal


class _Identity:
    """A merge as a cache key, by identity: hashing all rules for every tensor would cost more than resolving."""

    __slots__ = ("merge",)

    def __init__(self, merge: Merge) -> None:
        self.merge = merge

    def __hash__(self) -> int:
        return id(self.merge)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.merge is self.merge


@lru_cache(maxsize=16)
def _compiled(key: _Identity, num_blocks: int | None) -> CompiledMerge:
    return CompiledMerge(key.merge, num_blocks)


class CompiledMerge:
    """The rules of one merge sorted by block, and the values of every kind of tensor met so far."""

    def __init__(self, merge: Merge, num_blocks: int | None) -> None:
        from evomerge.methods.catalogue import get_spec

        self._merge = merge
        self._num_blocks = num_blocks or 0
        self._spec: MethodSpec = get_spec(merge.method)
        self._names = [name for name, _ in merge.experts]
        self._by_block: dict[str, list[list[Rule]]] = {}
        self._reads_names = False
        for name, rules in merge.parameters:
            self._by_block[name] = self._sorted(name, rules)
        self._constant = {
            parameter.name: self._over_experts(parameter, list(merge.rules(parameter.name)), "", None)
            for parameter in self._spec.hyperparameters
            if self._is_constant(parameter)
        }
        self._cache: dict[tuple[int | None, str, str], Mapping[str, Resolved]] = {}

    def values(self, tensor_name: str, block: int | None, component: str) -> Mapping[str, Resolved]:
        """See resolve_values."""
        key = (block, component, tensor_name if self._reads_names else "")
        values = self._cache.get(key)
        if values is None:
            values = self._cache[key] = self._resolve(tensor_name, block, component)
        return values

    def _is_constant(self, parameter: Hyperparameter) -> bool:
        """Whether a hyperparameter is the same for all tensors, so that it is resolved once."""
        rules = self._merge.rules(parameter.name)
        if any(isinstance(rule.value, tuple) or rule != Rule(rule.value, expert=rule.expert) for rule in rules):
            return False
        given = {rule.expert for rule in rules}
        return parameter.default is not None or None in given or given.issuperset(self._names)

    def _sorted(self, name: str, rules: tuple[Rule, ...]) -> list[list[Rule]]:
        """Rules that can match each block in order, and last those for tensors outside the blocks."""
        lists: list[list[Rule]] = [[] for _ in range(self._num_blocks + 1)]
        for rule in rules:
            if rule.contains is not None or (rule.component or "").startswith("regex:"):
                self._reads_names = True
            if rule.outside_blocks:
                places = range(self._num_blocks, self._num_blocks + 1)
            elif rule.blocks is None:
                places = range(self._num_blocks + 1)
            else:
                start, end = rule.blocks
                if not 0 <= start < end <= self._num_blocks:
                    raise UserError(
                        f"the recipe gives {name} for blocks {start} to {end - 1}, "
                        f"but the model has blocks 0 to {self._num_blocks - 1}"
                    )
                places = range(start, end)
            for place in places:
                lists[place].append(rule)
        return lists

    def _resolve(self, tensor_name: str, block: int | None, component: str) -> Mapping[str, Resolved]:
        values = dict(self._constant)
        place = self._num_blocks if block is None else block
        for parameter in self._spec.hyperparameters:
            if parameter.name not in values:
                lists = self._by_block.get(parameter.name)
                found = [] if lists is None else [rule for rule in lists[place] if _fits(rule, tensor_name, component)]
                values[parameter.name] = self._over_experts(parameter, found, tensor_name, block)
        return values

    def _over_experts(
        self, parameter: Hyperparameter, rules: list[Rule], tensor_name: str, block: int | None
    ) -> Resolved:
        if parameter.per == "merge":
            return self._value(parameter, rules, None, tensor_name, block)
        return tuple(self._value(parameter, rules, expert, tensor_name, block) for expert in self._names)

    def _value(
        self, parameter: Hyperparameter, rules: list[Rule], expert: str | None, tensor_name: str, block: int | None
    ) -> Scalar:
        for rule in rules:
            if rule.expert is None or rule.expert == expert:
                value = rule.value
                if isinstance(value, tuple):
                    start, end = rule.blocks or (0, self._num_blocks)
                    value = knot_value(value, None if block is None else block - start, end - start)
                return float(value) if parameter.kind == "float" else value
        if parameter.default is None:
            who = f" of expert {expert!r}" if expert is not None else ""
            raise UserError(f"{self._merge.method}: the recipe gives no {parameter.name}{who} for tensor {tensor_name}")
        return parameter.default


def _fits(rule: Rule, tensor_name: str, component: str) -> bool:
    if rule.contains is not None and rule.contains not in tensor_name:
        return False
    if rule.component is None or rule.component == component:
        return True
    return rule.component.startswith("regex:") and re.search(rule.component[6:], tensor_name) is not None
