"""Recipes as mergekit YAML, wherever mergekit's dialect can say the same.

Rules over block ranges become output slices, components become filters (parts of tensor names), and tensors outside the
blocks get filters of their own. ``mergekit_documents`` makes whole files of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import UserError
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.mergekit_dialect import DIALECT, by_mergekit_name, to_mergekit
from evomerge.recipes.recipe import Merge, Node, Rule, Scalar, Source, Stack
from evomerge.recipes.recipe_reader import parse_source
from evomerge.recipes.resolve import knot_value, resolve_values
from evomerge.yaml_files import format_flow

TensorPlace = tuple[str, int | None, str]
Value = Scalar | tuple[float, ...]
Conditional = tuple[Value, str | None]
Names = Mapping[int, str]  # by id of a node

# Parts of tensor names that mean a component in one architecture or another.
_FILTERS = {
    "attention": ("self_attn", "self_attention", "attn", "attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "moe"),
    "norms": ("norm", "ln_", "layernorm"),
}


class NotExpressible(UserError):
    """The recipe says something mergekit's YAML has no words for."""


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
class Part:
    """The blocks of one output slice."""

    start: int
    end: int
    is_first: bool
    is_last: bool


class MergeWriter:
    """Writes one merge, as a file of its own or as one output slice."""

    def __init__(
        self, merge: Merge, spec: MethodSpec, num_blocks: int, places: tuple[TensorPlace, ...], names: Names
    ) -> None:
        """Remember what to write.

        Args:
            merge: the merge; its models are sources or in ``names``.
            spec: its method, which mergekit has.
            num_blocks: its depth.
            places: every tensor.
            names: documents of the file that stand for models.
        """
        self._names = names
        self._merge = merge
        self._spec = spec
        self._num_blocks = num_blocks
        self._places = places
        self._dialect = DIALECT[merge.method]

    def lines(self, as_slices: bool = False) -> list[str]:
        """``base_model``, ``models`` or ``slices``, and ``parameters``.

        Args:
            as_slices: name the blocks also where all of them are merged in one way.
        """
        parts = self._parts()
        common: dict[str, Any] = {}
        by_part: list[dict[str, Any]] = [{} for _ in parts]
        for name, parameter in self._parameters("merge"):
            written = [self._written(parameter, None, part) for part in parts]
            if all(value == written[0] for value in written) and (len(parts) == 1 or not _has_list(written[0])):
                common[name] = written[0]
            else:
                for entries, value in zip(by_part, written):
                    entries[name] = value
        base = self.base
        lines = [] if base is None else [f"base_model: {format_flow(self._model(base))}"]
        if len(parts) == 1 and not as_slices:
            lines += ["models:", *(f"  - {format_flow(source)}" for source in self._sources(parts[0], {}))]
        else:
            lines.append("slices:")
            for part, entries in zip(parts, by_part):
                models = [*(node for _, node in self._merge.experts), *(() if base is None else (base,))]
                lines += self._slice(part, dict.fromkeys(models, (part.start, part.end)), entries)
        if common:
            lines += ["parameters:", *(f"  {format_flow(name)}: {format_flow(common[name])}" for name in common)]
        return lines

    def slice_lines(self, is_first: bool, is_last: bool) -> list[str]:
        """The merge as one output slice; its models are stacks of some blocks of one model."""
        if len(self._parts()) > 1:
            raise NotExpressible("a merge inside a stack has rules over some of its blocks")
        part = Part(0, self._num_blocks, is_first, is_last)
        entries = {name: self._written(parameter, None, part) for name, parameter in self._parameters("merge")}
        lines = self._slice(part, {}, entries)
        if self.base is not None:
            lines.append(f"    base_model: {format_flow(self._model(self.base))}")
        return lines

    @property
    def base(self) -> Node | None:
        """What stands as ``base_model``."""
        dialect = self._dialect
        takes_base = self._spec.needs_base or dialect.base_is_first or dialect.base_is_optional
        node = self._merge.base if takes_base else None
        return self._merge.experts[0][1] if node is None and dialect.base_is_first else node

    def _parameters(self, per: str) -> list[tuple[str, Hyperparameter]]:
        found = by_mergekit_name(self._spec).items()
        return [(name, entry) for name, entry in found if name in self._dialect.defaults and entry.per == per]

    def _slice(self, part: Part, spans: Mapping[Node, tuple[int, int]], entries: Mapping[str, Any]) -> list[str]:
        sources = self._sources(part, spans)
        base = self.base
        if base is not None and base not in [node for _, node in self._merge.experts]:
            sources.append({"model": self._model(base), "layer_range": self._span(base, spans)})
        lines = ["  - sources:", *(f"      - {format_flow(source)}" for source in sources)]
        return lines + ([f"    parameters: {format_flow(dict(entries))}"] if entries else [])

    def _sources(self, part: Part, spans: Mapping[Node, tuple[int, int]]) -> list[dict[str, Any]]:
        sources: list[dict[str, Any]] = []
        for name, node in self._merge.experts:
            entry: dict[str, Any] = {"model": self._model(node)}
            if spans or isinstance(node, Stack):
                entry["layer_range"] = self._span(node, spans)
            values = {key: self._written(parameter, name, part) for key, parameter in self._parameters("expert")}
            sources.append({**entry, **({"parameters": values} if values else {})})
        return sources

    def _span(self, node: Node, spans: Mapping[Node, tuple[int, int]]) -> list[int]:
        if node in spans:
            return list(spans[node])
        assert isinstance(node, Stack)
        return [node.parts[0].start, node.parts[0].end]

    def _model(self, node: Node) -> Any:
        """A model's reference; of a stack of one part that of the model below it."""
        if isinstance(node, Stack) and len(node.parts) == 1:
            node = node.parts[0].node
        if isinstance(node, Source):
            return reference(node)
        if id(node) not in self._names:
            raise NotExpressible("mergekit has no words for this merge inside a merge")
        return self._names[id(node)]

    def _parts(self) -> list[Part]:
        """Blocks cut wherever a rule's range begins or ends."""
        cuts = {0, self._num_blocks}
        for _, rules in self._merge.parameters:
            for rule in rules:
                cuts.update(rule.blocks or ())
        edges = sorted(cuts)
        if edges[-1] > self._num_blocks:
            raise NotExpressible(f"the recipe names block {edges[-1] - 1}, the models have {self._num_blocks}")
        last = len(edges) - 2
        return [Part(edges[i], edges[i + 1], i == 0, i == last) for i in range(last + 1)]

    def _written(self, parameter: Hyperparameter, expert: str | None, part: Part) -> Any:
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

    def _inside(self, parameter: Hyperparameter, expert: str | None, part: Part) -> list[Conditional]:
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

    def _value(self, rule: Rule, part: Part) -> Value:
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


def reference(source: Source) -> Any:
    """The model in mergekit's words: text where that reads back the same, else a mapping."""
    if parse_source(str(source)) == source:
        return str(source)

    def path(name: str, revision: str | None) -> Any:
        return {"path": name, "revision": revision} if revision else {"path": name}

    entries = {"model": path(source.model, source.revision)}
    if source.adapter:
        entries["lora"] = path(source.adapter, source.adapter_revision)
    return entries
