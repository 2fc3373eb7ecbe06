"""From a YAML mapping in evomerge's own form to a recipe, collecting every problem on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.base import MethodSpec
from evomerge.methods.catalogue import get_spec
from evomerge.recipes.modifiers import Parameters, put_after, put_before
from evomerge.recipes.recipe import Merge, Modules, Node, Recipe, Rule, Scalar, Source, Stack, StackPart, Vocabulary
from evomerge.recipes.recipe_presets import expand_preset
from evomerge.recipes.route_yaml import read_route
from evomerge.recipes.stretches_yaml import read_stretches
from evomerge.recipes.validate import MAX_DEPTH
from evomerge.recipes.vocabulary_yaml import WORDS, VocabularyReader
from evomerge.yaml_files import is_finite_number

MERGE_KEYS = ("method", "base", "experts", "parameters", "stretches", "seed", "before", "after")
MODIFIER_KEYS = ("method", "base", "parameters", "seed")
ROOT_KEYS = ("dtype", "tokenizer", "options", "fingerprints", "chat_template", "parity", "compute_dtype")
SOURCE_KEYS = ("model", "revision", "adapter", "adapter_revision", "into")
STACK_KEYS = ("from", "blocks")
RULE_KEYS = ("value", "blocks", "component", "expert", "contains", "outside_blocks")


def parse_source(text: str) -> Source:
    """The source written as ``model[@revision][+adapter[@revision]]``.

    A local path that contains ``@`` or ``+`` needs the mapping form.
    """
    model, _, adapter = text.partition("+")
    name, _, revision = model.partition("@")
    adapter_name, _, adapter_revision = adapter.partition("@")
    return Source(name, revision or None, adapter_name or None, adapter_revision or None)


class RecipeReader:
    """Reads one recipe; ``problems`` holds (key, message) of everything that was wrong."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def recipe(self, entries: Mapping[str, Any]) -> Recipe | None:
        """The recipe, as far as it could be understood; None when not even its method could."""
        if "preset" in entries:
            expanded = expand_preset(entries, self._problem)
            if expanded is None:
                return None
            entries = expanded
        model = self._root(entries)
        tokenizer, vocabulary = self._tokenizer(entries.get("tokenizer"))
        expected = {"dtype": "the name of a dtype", "compute_dtype": "the name of a dtype",
                    "chat_template": "auto, a name or a Jinja template", "parity": "mergekit"}  # fmt: skip
        texts: dict[str, Any] = {}
        for name, what in expected.items():
            texts[name] = entries.get(name)
            if not isinstance(texts[name], str | None):
                self._problem(name, f"expected {what}, got {texts[name]!r}")
                texts[name] = None
        options = self._options(entries.get("options"))
        if not isinstance(entries.get("fingerprints", {}), Mapping):  # a record of the sources, no part of the recipe
            self._problem("fingerprints", f"expected a mapping of sources, got {entries['fingerprints']!r}")
        if model is None:
            return None
        return Recipe(model, tokenizer=tokenizer, options=options, vocabulary=vocabulary, **texts)

    def _tokenizer(self, value: Any) -> tuple[Source | None, Vocabulary | None]:
        """Whose tokenizer files, and whose tokens where they change."""
        reader = VocabularyReader(self._problem, self.source)
        if value is None:
            return None, None
        if value in WORDS:
            return None, Vocabulary(value)
        if not isinstance(value, Mapping) or "model" in value:
            return self.source(value, "tokenizer"), None
        given = {name: value.get(name) for name in ("reference", "base")}
        read = {name: self.source(item, f"tokenizer.{name}") for name, item in given.items() if item is not None}
        vocabulary = reader.vocabulary(value, "tokenizer", ("reference", "base"), read.get("base"))
        return read.get("reference"), vocabulary

    def _root(self, entries: Mapping[str, Any]) -> Node | None:
        if "stack" in entries and "method" not in entries:
            self._check_keys(entries, "", ("stack", *ROOT_KEYS))
            return self._stack(entries["stack"], "stack", 0)
        if "route" in entries and "method" not in entries:
            self._check_keys(entries, "", ("route", *ROOT_KEYS))
            return read_route(entries["route"], lambda item, key: self._node(item, key, 1), self._problem)
        if "modules" in entries and "method" not in entries:
            self._check_keys(entries, "", ("modules", *ROOT_KEYS))
            return self._modules(entries["modules"], "modules", 0)
        if "model" in entries and "method" not in entries:
            self._check_keys(entries, "", ("model", *ROOT_KEYS))
            return self.source(entries["model"], "model")
        self._check_keys(entries, "", MERGE_KEYS + ROOT_KEYS)
        return self._merge(entries, "", 0)

    def source(self, value: Any, key: str) -> Source | None:
        """A model written as text or as a mapping."""
        if isinstance(value, str) and value:
            return parse_source(value)
        if not isinstance(value, Mapping):
            self._problem(key, f"expected a model (model[@revision][+adapter]) or a mapping, got {value!r}")
            return None
        self._check_keys(value, key, SOURCE_KEYS)
        wrong = [name for name in SOURCE_KEYS if not isinstance(value.get(name), str | None)]
        for name in wrong:
            self._problem(f"{key}.{name}", f"expected text, got {value[name]!r}; put it in quotes")
        model = value.get("model")
        if not model:
            self._problem(f"{key}.model", "missing; it is required")
        if wrong or not model:
            return None
        return Source(model, **{name: value.get(name) for name in SOURCE_KEYS if name != "model"})

    def _problem(self, key: str, message: str) -> None:
        self.problems.append((key.lstrip("."), message))

    def _check_keys(self, entries: Mapping[str, Any], key: str, known: tuple[str, ...]) -> None:
        for name in entries:
            if name not in known:
                self._problem(f"{key}.{name}", f"unknown key. {did_you_mean(name, known)}")

    def _options(self, value: Any) -> tuple[tuple[str, Scalar], ...]:
        if value is None:
            return ()
        if not isinstance(value, Mapping):
            self._problem("options", f"expected a mapping, got {value!r}")
            return ()
        return tuple(sorted((name, item) for name, item in value.items() if self._is_scalar(item, f"options.{name}")))

    def _is_scalar(self, value: Any, key: str) -> bool:
        if isinstance(value, bool | str) or is_finite_number(value):
            return True
        self._problem(key, f"expected a finite number, true, false or text, got {value!r}")
        return False

    def _node(self, value: Any, key: str, depth: int) -> Node | None:
        if isinstance(value, Mapping) and "method" in value:
            self._check_keys(value, key, MERGE_KEYS)
            return self._merge(value, key, depth)
        if isinstance(value, Mapping) and "stack" in value:
            self._check_keys(value, key, ("stack",))
            return self._stack(value["stack"], f"{key}.stack", depth)
        if isinstance(value, Mapping) and "modules" in value:
            self._check_keys(value, key, ("modules",))
            return self._modules(value["modules"], f"{key}.modules", depth)
        return self.source(value, key)

    def _modules(self, value: Any, key: str, depth: int) -> Modules | None:
        if not isinstance(value, Mapping) or not value:
            self._problem(key, f"expected a mapping of modules to models, got {value!r}")
            return None
        if depth > MAX_DEPTH:
            self._problem(key, f"recipes are nested deeper than {MAX_DEPTH}")
            return None
        nodes = [(name, self._node(item, f"{key}.{name}", depth + 1)) for name, item in value.items()]
        return Modules(tuple((name, node if node is not None else Source("?")) for name, node in nodes))

    def _stack(self, value: Any, key: str, depth: int) -> Stack | None:
        if depth > MAX_DEPTH:
            self._problem(key, f"recipes are nested deeper than {MAX_DEPTH}")
            return None
        if not isinstance(value, list) or not value:
            self._problem(key, f"expected a list of {{from: model, blocks: [first, last]}}, got {value!r}")
            return None
        parts = []
        for index, item in enumerate(value):
            place = f"{key}[{index}]"
            if not isinstance(item, Mapping):
                self._problem(place, f"expected {{from: model, blocks: [first, last]}}, got {item!r}")
                continue
            self._check_keys(item, place, STACK_KEYS)
            missing = [name for name in STACK_KEYS if item.get(name) is None]
            for name in missing:
                self._problem(f"{place}.{name}", "missing; it is required")
            if missing:
                continue
            node = self._node(item["from"], f"{place}.from", depth + 1)
            blocks = self._blocks(item["blocks"], f"{place}.blocks")
            # A placeholder keeps the number of parts right for the checks that follow.
            parts.append(StackPart(node if node is not None else Source("?"), *(blocks or (0, 1))))
        return Stack(tuple(parts)) if parts else None

    def _merge(self, entries: Mapping[str, Any], key: str, depth: int) -> Merge | None:
        if depth > MAX_DEPTH:
            self._problem(key, f"recipes are nested deeper than {MAX_DEPTH}")
            return None
        method = entries.get("method")
        if not isinstance(method, str):
            found = "missing; it is required" if method is None else f"expected the name of a method, got {method!r}"
            self._problem(f"{key}.method", found)
        experts = self._experts(entries.get("experts"), f"{key}.experts".lstrip("."), depth)
        base = None
        if entries.get("base") is not None:
            base = self._node(entries["base"], f"{key}.base".lstrip("."), depth + 1)
        parameters = self._parameters(entries.get("parameters"), f"{key}.parameters".lstrip("."))
        names, place = [name for name, _ in experts], f"{key}.stretches".lstrip(".")
        stretches = read_stretches(entries.get("stretches"), place, names, self._problem)
        seed = entries.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int):
            self._problem(f"{key}.seed", f"expected a whole number, got {seed!r}")
            seed = 0
        if not isinstance(method, str):
            return None
        return self._modified(Merge(method, experts, base, parameters, seed, stretches), entries, key, depth)

    def _modified(self, merge: Merge, entries: Mapping[str, Any], key: str, depth: int) -> Merge:
        """The merge with the methods of ``before`` and ``after`` around it, in their order."""
        for spec, rest in self._modifiers(entries, "before", merge, key, depth):
            merge = put_before(merge, spec.name, *rest)
        experts = merge.experts
        for spec, rest in self._modifiers(entries, "after", merge, key, depth):
            merge = put_after(merge, experts, spec, *rest)
        return merge

    def _modifiers(
        self, entries: Mapping[str, Any], place: str, merge: Merge, key: str, depth: int
    ) -> Iterator[tuple[MethodSpec, tuple[Node | None, Parameters, int]]]:
        values = entries.get(place)
        if values is not None and not isinstance(values, list):
            self._problem(f"{key}.{place}", f"expected a list of methods with their parameters, got {values!r}")
            return
        for index, value in enumerate(values or []):
            where = f"{key}.{place}[{index}]".lstrip(".")
            if not isinstance(value, Mapping):
                self._problem(where, f"expected a mapping with a method and its parameters, got {value!r}")
                continue
            self._check_keys(value, where, MODIFIER_KEYS)
            base = merge.base if value.get("base") is None else self._node(value["base"], f"{where}.base", depth + 1)
            parameters = self._parameters(value.get("parameters"), f"{where}.parameters")
            try:
                yield get_spec(str(value.get("method"))), (base, parameters, value.get("seed", merge.seed))
            except UserError as error:
                self._problem(f"{where}.method", str(error))

    def _experts(self, value: Any, key: str, depth: int) -> tuple[tuple[str, Node], ...]:
        if not isinstance(value, Mapping) or not value:
            found = "missing; it is required" if value is None else f"got {value!r}"
            self._problem(key, f"expected a mapping of names to models ({found})")
            return ()
        experts = []
        for name, item in value.items():
            node = self._node(item, f"{key}.{name}", depth + 1)
            # A placeholder keeps the count and the names right for the checks that follow.
            experts.append((name, node if node is not None else Source("?")))
        return tuple(experts)

    def _parameters(self, value: Any, key: str) -> tuple[tuple[str, tuple[Rule, ...]], ...]:
        if value is None:
            return ()
        if not isinstance(value, Mapping):
            self._problem(key, f"expected a mapping of parameters to values, got {value!r}")
            return ()
        return tuple(sorted((name, self._rules(item, f"{key}.{name}")) for name, item in value.items()))

    def _rules(self, value: Any, key: str) -> tuple[Rule, ...]:
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            return tuple(rule for index, item in enumerate(value) for rule in self._rule(item, f"{key}[{index}]"))
        return tuple(self._valued(value, key, None, {}))

    def _valued(self, value: Any, key: str, expert: str | None, matcher: Mapping[str, Any]) -> list[Rule]:
        """Rules of a scalar, of a gradient, or of one such value for each expert."""
        if isinstance(value, Mapping) and value and expert is None:
            return [rule for name in value for rule in self._valued(value[name], f"{key}.{name}", name, matcher)]
        if isinstance(value, list):
            if len(value) < 2 or not all(is_finite_number(item) for item in value):
                expected = "a gradient of two or more finite numbers, or a list of rules"
                self._problem(key, f"expected {expected}, got {value!r}")
                return []
            return [Rule(tuple(value), expert=expert, **matcher)]
        if isinstance(value, Mapping):
            self._problem(key, f"expected a value, got {dict(value)!r}")
            return []
        return [Rule(value, expert=expert, **matcher)] if self._is_scalar(value, key) else []

    def _rule(self, entries: Mapping[str, Any], key: str) -> list[Rule]:
        before = len(self.problems)
        self._check_keys(entries, key, RULE_KEYS)
        for name in ("component", "contains", "expert"):
            if not isinstance(entries.get(name), str | None) or entries.get(name) == "":
                self._problem(f"{key}.{name}", f"expected text, got {entries[name]!r}")
        outside = entries.get("outside_blocks", False)
        if not isinstance(outside, bool):
            self._problem(f"{key}.outside_blocks", f"expected true or false, got {outside!r}")
        if "value" not in entries:
            self._problem(f"{key}.value", "missing; it is required")
        blocks = self._blocks(entries.get("blocks"), f"{key}.blocks")
        if len(self.problems) > before:
            return []
        matcher = {
            "blocks": blocks,
            "component": entries.get("component"),
            "contains": entries.get("contains"),
            "outside_blocks": outside,
        }
        return self._valued(entries["value"], f"{key}.value", entries.get("expert"), matcher)

    def _blocks(self, value: Any, key: str) -> tuple[int, int] | None:
        if value is None:
            return None
        pair = [value, value] if isinstance(value, int) else value
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(item) is int for item in pair)
        if not whole or not 0 <= pair[0] <= pair[1]:
            self._problem(key, f"expected [first, last] (both included) or one block, got {value!r}")
            return None
        return pair[0], pair[1] + 1
