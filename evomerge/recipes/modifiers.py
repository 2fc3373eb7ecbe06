"""Methods around a merge: on each expert before it, or on its result after it. Both are merges of their own.

Before: each expert is replaced by what a method makes of it alone (``bitdelta``, ``tswitch``, ``star``).
After: the merged model takes the place of an expert (``lines``; ``task_arithmetic`` for a scale); a method of two or
more experts gets the merged model first and the experts behind it (``svc``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evomerge.methods.base import MethodSpec
from evomerge.recipes.recipe import Merge, Node, Rule

MERGED = "merged"
EXPERT = "expert"

Parameters = tuple[tuple[str, tuple[Rule, ...]], ...]


def takes_experts(spec: MethodSpec) -> bool:
    """Whether a method needs the experts beside the merged model when it is put after a merge."""
    return spec.min_experts > 1


def experts_after(spec: MethodSpec, merged: Node, experts: Sequence[tuple[str, Node]]) -> tuple[tuple[str, Node], ...]:
    """The experts of a method put after a merge."""
    return ((MERGED, merged), *(experts if takes_experts(spec) else ()))


def put_before(merge: Merge, method: str, base: Node | None, parameters: Parameters, seed: int) -> Merge:
    """The merge with every expert replaced by what the method makes of it alone.

    Rules for expert ``expert`` mean whichever expert it is.
    """
    experts = tuple(
        (name, Merge(method, ((name, expert),), base, renamed_rules(parameters, {EXPERT: name}), seed))
        for name, expert in merge.experts
    )
    return replace(merge, experts=experts)


def renamed_rules(parameters: Parameters, names: Mapping[str, str]) -> Parameters:
    """The parameters with other names for their experts."""
    return tuple(
        (key, tuple(replace(rule, expert=names.get(rule.expert or "", rule.expert)) for rule in rules))
        for key, rules in parameters
    )


def put_after(
    merge: Merge,
    experts: Sequence[tuple[str, Node]],
    spec: MethodSpec,
    base: Node | None,
    parameters: Parameters,
    seed: int,
) -> Merge:
    """The method with the merge in the place of its first expert; ``experts`` are those the merge was made of."""
    return Merge(spec.name, experts_after(spec, merge, experts), base, parameters, seed)
