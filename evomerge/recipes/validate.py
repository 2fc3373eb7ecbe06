"""What can be wrong with a recipe before any model is read, all of it at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from evomerge.errors import Problem, UserError, did_you_mean
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.chat_templates import chat_template_problems
from evomerge.recipes.recipe import COMPONENTS, Merge, Modules, Node, Recipe, Route, Rule, Scalar, Source, Stack
from evomerge.recipes.route_yaml import route_problems
from evomerge.recipes.stretches_yaml import has_stretches, stretch_problems

DTYPES = ("bfloat16", "float16", "float32")
OPTIONS = ("num_blocks", "output", "rank")
OUTPUTS = ("model", "adapter")
PARITIES = ("mergekit",)
MAX_DEPTH = 20


def recipe_problems(recipe: Recipe, where: str = "") -> list[Problem]:
    """Everything wrong with a recipe that shows without its models.

    Args:
        recipe: any recipe.
        where: file name shown in the problems.
    """
    prefix = f"{where}: " if where else ""
    return [Problem(prefix + key if key else where, message) for key, message in _recipe(recipe)]


def is_pairwise(spec: MethodSpec) -> bool:
    """Whether a method merges exactly two models, of which a base would be the first."""
    return (spec.min_experts, spec.max_experts, spec.needs_base) == (1, 2, False)


def value_problem(parameter: Hyperparameter, value: Scalar | tuple[float, ...]) -> str | None:
    """Why a value does not suit a hyperparameter, None when it does."""
    if isinstance(value, tuple):
        if parameter.kind != "float":
            return f"{parameter.name} is a {parameter.kind} and takes no gradient, got {list(value)}"
        if len(value) < 2:
            return "a gradient needs two numbers or more"
        return next(filter(None, (value_problem(parameter, knot) for knot in value)), None)
    if parameter.kind == "bool":
        return None if isinstance(value, bool) else f"expected true or false, got {value!r}"
    if parameter.kind == "choice":
        if isinstance(value, str) and value in parameter.choices:
            return None
        return f"expected one of {', '.join(parameter.choices)}, got {value!r}"
    if not _finite(value):
        return f"expected a finite number, got {value!r}"
    if parameter.kind == "int" and not isinstance(value, int):
        return f"expected a whole number, got {value!r}"
    if parameter.name == "density" and not (isinstance(value, int | float) and 0 < value <= 1):
        return f"expected a number above 0, at most 1, got {value!r}"
    if parameter.is_closed and isinstance(value, int | float) and not parameter.low <= value <= parameter.high:
        return f"expected a number from {parameter.low:g} to {parameter.high:g}, got {value!r}"
    return None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _recipe(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.dtype is not None and recipe.dtype not in DTYPES:
        yield "dtype", f"expected one of {', '.join(DTYPES)}, got {recipe.dtype!r}"
    if recipe.chat_template is not None:
        for message in chat_template_problems(recipe.chat_template):
            yield "chat_template", message
    yield from _parity(recipe)
    yield from _stretched(recipe)
    for name, value in recipe.options:
        if name not in OPTIONS:
            yield f"options.{name}", f"unknown option. {did_you_mean(name, OPTIONS)}"
        elif name == "output":
            if value not in OUTPUTS:
                yield f"options.{name}", f"expected {' or '.join(OUTPUTS)}, got {value!r}"
            elif value == "adapter" and "rank" not in dict(recipe.options):
                yield "options.rank", "missing; an adapter needs a rank"
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"options.{name}", f"expected a whole number of at least 1, got {value!r}"
    if isinstance(recipe.model, Route):
        yield from route_problems(recipe)
        for name, inner in recipe.model.models:
            yield from _node(inner, f"route.models.{name}", 1)
        return
    yield from _node(recipe.model, "", 0)


def _parity(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.parity is not None and recipe.parity not in PARITIES:
        yield "parity", f"expected {' or '.join(PARITIES)}, got {recipe.parity!r}"
    if recipe.compute_dtype is None:
        return
    if recipe.compute_dtype not in DTYPES:
        yield "compute_dtype", f"expected one of {', '.join(DTYPES)}, got {recipe.compute_dtype!r}"
    if recipe.parity is None:
        yield "compute_dtype", "only counts with parity: mergekit; evomerge computes in float32"


def _stretched(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What does not go with coefficients by stretches."""
    if not has_stretches(recipe.model):
        return
    if recipe.parity is not None:
        yield "parity", "mergekit has no coefficients by stretches; leave `parity` out"
    if dict(recipe.options).get("output") == "adapter":
        yield "options.output", "an adapter holds whole tensors, not stretches of them; write the model"
    if "num_blocks" in dict(recipe.options) or recipe.vocabulary is not None:
        key = "tokenizer" if recipe.vocabulary is not None else "options.num_blocks"
        yield key, "stretches are laid over all tensors as the models have them; merge to disk first"


def _node(node: Node, key: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(node, Source):
        if not node.model:
            yield key, "the model has no name"
        return
    if depth > MAX_DEPTH:
        yield key, f"recipes are nested deeper than {MAX_DEPTH}"
        return
    if isinstance(node, Route):
        yield key, "a route cannot be a part of another model; merge it to disk first and use the directory"
        return
    if isinstance(node, Stack):
        yield from _stack(node, key, depth)
        return
    if isinstance(node, Modules):
        place = f"{key}.modules".lstrip(".")
        if not node.parts or len({name for name, _ in node.parts}) < len(node.parts):
            yield place, "expected modules with different names"
        for name, inner in node.parts:
            yield from _node(inner, f"{place}.{name}", depth + 1)
        return
    yield from _merge(node, key + "." if key else "")
    for name, expert in node.experts:
        yield from _node(expert, f"{key}.experts.{name}".lstrip("."), depth + 1)
    if node.base is not None:
        yield from _node(node.base, f"{key}.base".lstrip("."), depth + 1)


def _stack(stack: Stack, key: str, depth: int) -> Iterator[tuple[str, str]]:
    place = f"{key}.stack".lstrip(".")
    if not stack.parts:
        yield place, "has no parts; expected a list of {from: model, blocks: [first, last]}"
    for index, part in enumerate(stack.parts):
        if not 0 <= part.start < part.end:
            found = f"got [{part.start}, {part.end - 1}]"
            yield f"{place}[{index}].blocks", f"expected [first, last] with at least one block, {found}"
        elif isinstance(part.node, Stack) and part.end > part.node.num_blocks:
            found = f"names block {part.end - 1}, the stack has {part.node.num_blocks}"
            yield f"{place}[{index}].blocks", found
        yield from _node(part.node, f"{place}[{index}].from", depth + 1)


def _merge(merge: Merge, prefix: str) -> Iterator[tuple[str, str]]:
    from evomerge.methods.catalogue import get_spec

    try:
        spec = get_spec(merge.method)
    except UserError as error:
        yield f"{prefix}method", str(error)
        return
    yield from _models(merge, spec, prefix)
    for key, message in stretch_problems(merge):
        yield prefix + key, message
    if not isinstance(merge.seed, int) or isinstance(merge.seed, bool) or not 0 <= merge.seed < 2**63:
        yield f"{prefix}seed", f"expected a whole number from 0 to 2^63 - 1, got {merge.seed!r}"
    names = [name for name, _ in merge.parameters]
    known = [parameter.name for parameter in spec.hyperparameters]
    for name, rules in merge.parameters:
        if name not in known:
            yield f"{prefix}parameters.{name}", f"{spec.name} has no such parameter. {did_you_mean(name, known)}"
        elif names.count(name) > 1:
            yield f"{prefix}parameters.{name}", "given twice"
        elif not rules:
            yield f"{prefix}parameters.{name}", "has no value"
        else:
            for index, rule in enumerate(rules):
                for message in _rule(rule, spec.hyperparameter(name), merge):
                    yield f"{prefix}parameters.{name}" + (f"[{index}]" if len(rules) > 1 else ""), message
    for parameter in spec.hyperparameters:
        if parameter.default is None and not merge.rules(parameter.name):
            yield f"{prefix}parameters.{parameter.name}", f"missing; {spec.name} needs it"


def _models(merge: Merge, spec: MethodSpec, prefix: str) -> Iterator[tuple[str, str]]:
    count = len(merge.experts)
    if len({name for name, _ in merge.experts}) < count:
        yield f"{prefix}experts", "two experts have the same name"
    if count < spec.min_experts:
        yield f"{prefix}experts", f"{spec.name} needs at least {spec.min_experts}, got {count}"
    if spec.max_experts is not None and count > spec.max_experts:
        yield f"{prefix}experts", f"{spec.name} takes at most {spec.max_experts}, got {count}"
    if spec.needs_base and merge.base is None:
        yield f"{prefix}base", f"missing; {spec.name} needs the base model that the experts come from"
    if is_pairwise(spec) and count + (merge.base is not None) != 2:
        yield f"{prefix}experts", f"{spec.name} merges two models: a base and one expert, or two experts without a base"


def _rule(rule: Rule, parameter: Hyperparameter, merge: Merge) -> Iterator[str]:
    message = value_problem(parameter, rule.value)
    if message:
        yield message
    if rule.expert is not None:
        names = [name for name, _ in merge.experts]
        if parameter.per == "merge":
            yield f"{parameter.name} is one value for all experts; remove expert {rule.expert!r}"
        elif rule.expert not in names:
            yield f"there is no expert {rule.expert!r}. {did_you_mean(rule.expert, names)}"
    if rule.blocks is not None:
        if not 0 <= rule.blocks[0] < rule.blocks[1]:
            yield f"blocks: expected [first, last], got [{rule.blocks[0]}, {rule.blocks[1] - 1}]"
        if rule.outside_blocks:
            yield "blocks and outside_blocks exclude each other"
    if rule.component is not None:
        yield from component_problems(rule.component)


def component_problems(component: str) -> Iterator[str]:
    """What is wrong with the name of a component or a ``regex:``."""
    if component.startswith("regex:"):
        try:
            re.compile(component[6:])
        except re.error as error:
            yield f"component: {component[6:]!r} is not a regular expression ({error})"
    elif component not in COMPONENTS:
        yield f"component: unknown {component!r}. {did_you_mean(component, COMPONENTS)} A pattern is written regex:..."
