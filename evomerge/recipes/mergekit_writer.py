"""Recipes as mergekit YAML, wherever mergekit's dialect can say the same.

Rules over block ranges become output slices, components become filters (parts of tensor names), and tensors outside the
blocks get filters of their own. What was written is read back and compared value by value before it is returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import UserError
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.mergekit_dialect import DIALECT, UNCHANGED, by_mergekit_name, to_mergekit
from evomerge.recipes.recipe import Merge, Recipe, Rule, Scalar, Source, children
from evomerge.recipes.recipe_reader import parse_source
from evomerge.recipes.resolve import knot_value, resolve_values
from evomerge.yaml_files import format_flow, parse_yaml_mapping

TensorPlace = tuple[str, int | None, str]
Value = Scalar | tuple[float, ...]
Conditional = tuple[Value, str | None]

# Parts of tensor names that mean a component in one architecture or another.
_FILTERS = {
    "attention": ("self_attn", "self_attention", "attn", "attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "moe"),
    "norms": ("norm", "ln_", "layernorm"),
}


class NotExpressible(UserError):
    """The recipe says something mergekit's YAML has no words for."""


def format_mergekit(recipe: Recipe, num_blocks: int, tensors: Sequence[TensorPlace] | None = None) -> str:
    """The recipe as mergekit YAML that resolves to the same values for every tensor.

    Args:
        recipe: the recipe.
        num_blocks: number of blocks of the models.
        tensors: (name, block, component) of every tensor; a Llama's when left out.

    Raises:
        NotExpressible: mergekit cannot say this; the message tells what.
    """
    from evomerge.methods.catalogue import get_spec

    merge = recipe.model
    if not isinstance(merge, Merge):
        raise NotExpressible("the recipe is one model, not a merge")
    if merge.method not in DIALECT:
        raise NotExpressible(f"mergekit has no method {merge.method}")
    if any(not isinstance(node, Source) for node in children(merge)):
        raise NotExpressible("a merge of merges needs several mergekit files")
    places = tuple(tensors) if tensors is not None else llama_tensors(num_blocks)
    text = _Writer(recipe, merge, get_spec(merge.method), num_blocks, places).text()
    _check(text, merge, num_blocks, places)
    return text


def llama_tensors(num_blocks: int) -> tuple[TensorPlace, ...]:
    """Names, blocks and components of a Llama's tensors."""
    inside = [(f"self_attn.{name}_proj", "attention") for name in "qkvo"]
    inside += [(f"mlp.{name}_proj", "mlp") for name in ("gate", "up", "down")]
    inside += [("input_layernorm", "norms"), ("post_attention_layernorm", "norms")]
    return (
        ("model.embed_tokens.weight", None, "embeddings"),
        *((f"model.layers.{b}.{name}.weight", b, component) for b in range(num_blocks) for name, component in inside),
        ("model.norm.weight", None, "norms"),
        ("lm_head.weight", None, "head"),
    )


@dataclass(frozen=True)
class _Part:
    """The blocks of one output slice."""

    start: int
    end: int
    is_first: bool
    is_last: bool


class _Writer:
    def __init__(
        self, recipe: Recipe, merge: Merge, spec: MethodSpec, num_blocks: int, places: tuple[TensorPlace, ...]
    ) -> None:
        self._recipe = recipe
        self._merge = merge
        self._spec = spec
        self._num_blocks = num_blocks
        self._places = places
        self._dialect = DIALECT[merge.method]

    def text(self) -> str:
        """The whole file."""
        parts = self._parts()
        parameters = [
            (name, parameter)
            for name, parameter in by_mergekit_name(self._spec).items()
            if name in self._dialect.defaults
        ]
        common: dict[str, Any] = {}
        by_part: list[dict[str, Any]] = [{} for _ in parts]
        for name, parameter in parameters:
            if parameter.per == "merge":
                written = [self._written(parameter, None, part) for part in parts]
                if all(value == written[0] for value in written) and (len(parts) == 1 or not _has_list(written[0])):
                    common[name] = written[0]
                else:
                    for entries, value in zip(by_part, written):
                        entries[name] = value
        lines = [f"merge_method: {self._merge.method}"]
        if self._spec.stochastic:
            lines.insert(
                0, "# Random masks: mergekit draws its own, so its result is another sample of the same merge."
            )
        base = self._base()
        if base is not None:
            lines.append(f"base_model: {format_flow(_reference(base))}")
        per_expert = [(name, parameter) for name, parameter in parameters if parameter.per == "expert"]
        lines += self._body(parts, per_expert, by_part)
        if common:
            lines += ["parameters:", *(f"  {format_flow(name)}: {format_flow(common[name])}" for name in common)]
        if self._recipe.dtype is not None:
            lines += ["dtype: float32", f"out_dtype: {self._recipe.dtype}"]
        extension: dict[str, Any] = {"seed": self._merge.seed} if self._merge.seed else {}
        if base is None or self._recipe.reference != base:
            lines.append(f"tokenizer_source: {format_flow(_plain_reference(self._recipe.reference))}")
            extension["vocabulary"] = UNCHANGED
        extension["experts"] = [name for name, _ in self._merge.experts]
        lines.append(f"evomerge: {format_flow(extension)}")
        return "\n".join(lines) + "\n"

    def _base(self) -> Source | None:
        dialect = self._dialect
        takes_base = self._spec.needs_base or dialect.base_is_first or dialect.base_is_optional
        node = self._merge.base if takes_base else None
        if node is None and self._dialect.base_is_first:
            node = self._merge.experts[0][1]
        assert node is None or isinstance(node, Source)
        return node

    def _body(
        self, parts: list[_Part], per_expert: list[tuple[str, Hyperparameter]], by_part: list[dict[str, Any]]
    ) -> list[str]:
        lines = ["models:" if len(parts) == 1 else "slices:"]
        base = self._base()
        for part, entries in zip(parts, by_part):
            span = {} if len(parts) == 1 else {"layer_range": [part.start, part.end]}
            sources: list[dict[str, Any]] = []
            for name, source in self._merge.experts:
                assert isinstance(source, Source)
                values = {key: self._written(parameter, name, part) for key, parameter in per_expert}
                sources.append({"model": _reference(source), **span, **({"parameters": values} if values else {})})
            if len(parts) == 1:
                lines += [f"  - {format_flow(source)}" for source in sources]
                continue
            if base is not None and base not in [source for _, source in self._merge.experts]:
                sources.append({"model": _reference(base), **span})
            lines += ["  - sources:", *(f"      - {format_flow(source)}" for source in sources)]
            if entries:
                lines.append(f"    parameters: {format_flow(entries)}")
        return lines

    def _parts(self) -> list[_Part]:
        """Blocks cut wherever a rule's range begins or ends."""
        cuts = {0, self._num_blocks}
        for _, rules in self._merge.parameters:
            for rule in rules:
                cuts.update(rule.blocks or ())
        edges = sorted(cuts)
        if edges[-1] > self._num_blocks:
            raise NotExpressible(f"the recipe names block {edges[-1] - 1}, the models have {self._num_blocks}")
        last = len(edges) - 2
        return [_Part(edges[i], edges[i + 1], i == 0, i == last) for i in range(last + 1)]

    def _written(self, parameter: Hyperparameter, expert: str | None, part: _Part) -> Any:
        """The YAML value of one hyperparameter in one slice: a scalar, a gradient, or a list of filters."""
        conditionals = self._inside(parameter, expert, part)
        outside = []
        for name, block, component in self._places:
            owner = part.is_first if component == "embeddings" else part.is_last
            if block is None and owner:
                wanted = self._resolved(parameter, expert, name, component)
                if _evaluate(conditionals, name) != wanted:
                    outside.append((wanted, name))
        conditionals = outside + conditionals
        if len(conditionals) == 1:
            return self._translated(parameter, conditionals[0][0])
        return [
            {**({} if text is None else {"filter": text}), "value": self._translated(parameter, value)}
            for value, text in conditionals
        ]

    def _resolved(self, parameter: Hyperparameter, expert: str | None, name: str, component: str) -> Scalar:
        value = resolve_values(self._merge, name, None, component, self._num_blocks)[parameter.name]
        if isinstance(value, tuple):
            return value[[other for other, _ in self._merge.experts].index(str(expert))]
        return value

    def _translated(self, parameter: Hyperparameter, value: Value) -> Any:
        if isinstance(value, tuple):
            return list(value)
        written = to_mergekit(parameter, value)
        if written is None:
            raise NotExpressible(f"mergekit has no {parameter.name}: {value} for {self._spec.name}")
        return written

    def _inside(self, parameter: Hyperparameter, expert: str | None, part: _Part) -> list[Conditional]:
        """The rules that reach tensors of the part's blocks, as filters; the last one catches all."""
        prefix = {name: component for name, block, component in self._places if block == part.start}
        remaining = dict(prefix)
        found: list[Conditional] = []
        for rule in self._merge.rules(parameter.name):
            if rule.expert not in (None, expert) or rule.outside_blocks or not remaining:
                continue
            if rule.blocks is not None and not (rule.blocks[0] <= part.start and part.end <= rule.blocks[1]):
                continue
            text, reached = self._filter(rule, remaining)
            if reached:
                found.append((self._value(rule, part), text))
                remaining = {name: component for name, component in remaining.items() if name not in reached}
        if remaining:
            if parameter.default is None:
                raise NotExpressible(f"the recipe gives no {parameter.name} for {next(iter(remaining))}")
            found.append((parameter.default, None))
        found[-1] = (found[-1][0], None)
        return found

    def _filter(self, rule: Rule, remaining: dict[str, str]) -> tuple[str | None, list[str]]:
        """A substring that selects what the rule selects among the remaining tensors of a block, and these tensors."""
        if (rule.component or "").startswith("regex:"):
            raise NotExpressible("mergekit filters are plain parts of tensor names, not regular expressions")
        reached = [
            name
            for name, component in remaining.items()
            if rule.component in (None, component) and (rule.contains is None or rule.contains in name)
        ]
        if len(reached) == len(remaining):
            return None, reached
        for text in _FILTERS.get(rule.component or "", ()) if rule.contains is None else (rule.contains,):
            if [name for name in remaining if text in name] == reached:
                return text, reached
        if reached:
            raise NotExpressible(f"no part of a tensor name selects {rule.component or rule.contains}")
        return None, reached

    def _value(self, rule: Rule, part: _Part) -> Value:
        if not isinstance(rule.value, tuple):
            return rule.value
        start, end = rule.blocks or (0, self._num_blocks)
        if (start, end) == (part.start, part.end):
            return rule.value
        knots = tuple(knot_value(rule.value, block - start, end - start) for block in range(part.start, part.end))
        return knots if len(knots) > 1 else knots[0]


def _evaluate(conditionals: list[Conditional], name: str) -> Scalar:
    """The value of a tensor outside the blocks: the first filter that matches, a gradient's first number."""
    value = next(value for value, text in conditionals if text is None or text in name)
    return value[0] if isinstance(value, tuple) else value


def _has_list(value: Any) -> bool:
    """Whether the value holds a gradient, which starts anew in every slice."""
    return isinstance(value, list) and any(
        not isinstance(item, dict) or isinstance(item["value"], list) for item in value
    )


def _reference(source: Source) -> Any:
    """The model in mergekit's words: text where that reads back the same, else a mapping."""
    if parse_source(str(source)) == source:
        return str(source)

    def path(name: str, revision: str | None) -> Any:
        return {"path": name, "revision": revision} if revision else {"path": name}

    entries = {"model": path(source.model, source.revision)}
    if source.adapter:
        entries["lora"] = path(source.adapter, source.adapter_revision)
    return entries


def _plain_reference(source: Source) -> Any:
    return _reference(Source(source.model, source.revision))


def _check(text: str, merge: Merge, num_blocks: int, places: tuple[TensorPlace, ...]) -> None:
    """Read the text back and compare every value of every tensor."""
    from evomerge.recipes.mergekit_reader import MergekitReader

    reader = MergekitReader("mergekit YAML")
    back = reader.recipe(parse_yaml_mapping(text, "mergekit YAML"))
    if back is None or not isinstance(back.model, Merge):
        raise NotExpressible(f"mergekit would not take it: {reader.problems[0].message}")
    for name, block, component in places:
        wanted = resolve_values(merge, name, block, component, num_blocks)
        found = resolve_values(back.model, name, block, component, num_blocks)
        for key, value in wanted.items():
            if not _same(value, found[key]):
                raise NotExpressible(f"mergekit would give {key} = {found[key]} for {name}, the recipe has {value}")


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right))
    if isinstance(left, float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-15)
    return bool(left == right)
