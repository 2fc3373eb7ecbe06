"""A merge of models of which some hold only a part of the tensors, told as a merge of those that hold a given one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from evomerge.errors import UserError
from evomerge.methods.catalogue import get_spec
from evomerge.recipes.recipe import Merge, Node, Rule, Source
from evomerge.recipes.validate import is_pairwise


def without_absent(node: Node, absent: Collection[Source]) -> Node | None:
    """The merge of a tensor that some models do not hold, None when none of its models does.

    A method over task vectors sees an absent expert as equal to the base. Two models that would be met half-way become
    the one that is there. An average is taken over the experts that are there, normalised over them.

    Args:
        node: the merge of tensors that all models hold.
        absent: the models without the tensor.

    Raises:
        UserError: a base lacks a tensor that the task vectors of experts are added to.
    """
    if not absent:
        return node
    if isinstance(node, Source):
        return None if node in absent else node
    if not isinstance(node, Merge):
        raise UserError(
            "recipe: a stack or modules of models of which some hold only a part of the tensors; merge them to disk "
            "first and use the directory as a model"
        )
    if node.stretches is not None:
        raise UserError(
            "recipe: merges with stretches need models that hold all tensors; merge the parts to disk first"
        )
    base = None if node.base is None else without_absent(node.base, absent)
    experts = [(name, without_absent(expert, absent)) for name, expert in node.experts]
    there = tuple((name, expert) for name, expert in experts if expert is not None)
    if len(there) == len(experts) and (base is None) == (node.base is None):
        return replace(node, base=base, experts=there)
    if not there:
        return base
    spec = get_spec(node.method)
    if spec.needs_base:
        if base is None:
            raise UserError(
                f"recipe: {node.method}: the base {node.base} lacks tensors that experts have; make the model that "
                "holds all tensors the base"
            )
        return replace(node, base=base, experts=tuple((name, expert or base) for name, expert in experts))
    if is_pairwise(spec):
        return base or there[0][1]
    if len(there) < spec.min_experts or (len(there) == 1 and base is None):
        return there[0][1] if base is None else base
    parameters = node.parameters
    if any(parameter.name == "normalize" for parameter in spec.hyperparameters):
        parameters = (*(entry for entry in parameters if entry[0] != "normalize"), ("normalize", (Rule(True),)))
    return replace(node, base=base, experts=there, parameters=parameters)


class PresentModels:
    """The merge of every tensor of one candidate, made once for all tensors that the same models lack."""

    def __init__(self, root: Node, absent: dict[str, tuple[Source, ...]]) -> None:
        """Rewrite the recipe for every set of absent models.

        Args:
            root: the recipe's merge.
            absent: tensor name to the models without it, for tensors that some model lacks.

        Raises:
            UserError: see ``without_absent``; or no model of the recipe has a tensor.
        """
        self._root = root
        made: dict[tuple[Source, ...], Node] = {}
        self._by_name: dict[str, Node] = {}
        for name, sources in absent.items():
            if sources not in made:
                node = without_absent(root, sources)
                if node is None:
                    raise UserError(f"recipe: none of its models has {name}; add the whole model as an expert or base")
                made[sources] = node
            self._by_name[name] = made[sources]
        self.roots = (root, *made.values())

    def node(self, root: Node, name: str) -> Node:
        """What to merge for one tensor."""
        return self._by_name.get(name, root) if root is self._root else root
