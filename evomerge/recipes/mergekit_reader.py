"""From a mergekit YAML mapping to a recipe that gives mergekit's result, its defaults spelled out.

Slices that are all blocks in order, merged from the same models, become one merge with rules over blocks; any others
become a stack, with a merge of its own for every slice. What evomerge cannot say is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.base import MethodSpec
from evomerge.recipes.mergekit_dialect import DIALECT, UNCHANGED
from evomerge.recipes.mergekit_parameters import Entry, ParameterReader, Parameters, Slice
from evomerge.recipes.mergekit_slices import SliceReader, keeps_blocks
from evomerge.recipes.recipe import Merge, Modules, Node, Recipe, Source, Stack, StackPart, Vocabulary
from evomerge.recipes.vocabulary_yaml import WORDS, VocabularyReader

TOP_KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "evomerge",
)  # fmt: skip
EXTENSION_KEYS = ("seed", "experts", "vocabulary", "parity")

Levels = Sequence[tuple[Parameters, str]]


class MergekitReader(SliceReader):
    """Reads one mergekit document; ``problems`` holds everything that was wrong."""

    def recipe(self, entries: Mapping[str, Any]) -> Recipe | None:
        """The recipe, or None when ``problems`` says why not."""
        self._check_top(entries)
        base = self.node(entries["base_model"], "base_model") if entries.get("base_model") is not None else None
        spec = self._spec(entries.get("merge_method"))
        if spec is None:
            return None
        extension = self._extension(self.mapping(entries.get("evomerge"), "evomerge"))
        top = self.mapping(entries.get("parameters"), "parameters")
        node, num_blocks = self._root(entries, spec, base, [(top, "parameters")], extension)
        tokenizer, vocabulary = self._tokenizer(entries, base, extension)
        if self.problems or node is None:
            return None
        first = next(iter(Recipe(node).sources))
        if vocabulary is not None and vocabulary.base in (None, _base_of(node)):
            vocabulary = Vocabulary(vocabulary.source, vocabulary.tokens, vocabulary.pad_to_multiple_of)
        compute = str(entries.get("dtype") or "").removeprefix("torch.") or None
        dtype = str(entries.get("out_dtype") or "").removeprefix("torch.") or compute
        parity = extension.get("parity")
        return Recipe(
            node,
            dtype,
            tokenizer if tokenizer != first else None,
            () if num_blocks is None else (("num_blocks", num_blocks),),
            vocabulary,
            entries.get("chat_template"),
            parity,
            None if parity is None else compute,
        )

    def _spec(self, method: Any) -> MethodSpec | None:
        from evomerge.methods.catalogue import get_spec

        if not isinstance(method, str) or method not in DIALECT:
            known = did_you_mean(str(method), DIALECT)
            self.add("merge_method", f"{method!r} cannot be read from mergekit's dialect. {known}")
            return None
        try:
            return get_spec(method)
        except UserError as error:
            self.add("merge_method", str(error))
            return None

    def _check_top(self, entries: Mapping[str, Any]) -> None:
        self.check_keys(entries, TOP_KEYS, "")
        given = [name for name in ("models", "slices", "modules") if entries.get(name) is not None]
        if len(given) != 1:
            self.add("models", f"expected exactly one of models, slices, modules; found {', '.join(given) or 'none'}")
        for name in ("dtype", "out_dtype"):
            if entries.get(name) is not None and not isinstance(entries[name], str):
                self.add(name, f"expected the name of a dtype, got {entries[name]!r}")
        if not isinstance(entries.get("chat_template"), str | None):
            self.add("chat_template", f"expected text, got {entries['chat_template']!r}")

    def _root(
        self,
        entries: Mapping[str, Any],
        spec: MethodSpec,
        base: Node | None,
        outer: Levels,
        extension: Mapping[str, Any],
    ) -> tuple[Node | None, int | None]:
        """The node of the file, and its depth where the file tells it and the node does not."""
        if entries.get("modules") is None:
            return self._model(entries, "", spec, base, outer, extension)
        parts: list[tuple[str, Node]] = []
        for name, value in self.mapping(entries["modules"], "modules").items():
            key = f"modules.{name}"
            own = self.mapping(value, key)
            self.check_keys(own, ("models", "slices", "parameters"), key)
            if (own.get("models") is None) == (own.get("slices") is None):
                self.add(key, "expected either models or slices")
            level = (self.mapping(own.get("parameters"), f"{key}.parameters"), f"{key}.parameters")
            node, num_blocks = self._model(own, f"{key}.", spec, base, [level, *outer], extension)
            if node is not None:
                # A tiling of fewer blocks than the models have cuts them.
                parts.append((name, node if num_blocks is None else Stack((StackPart(node, 0, num_blocks),))))
        return (Modules(tuple(parts)) if parts else None), None

    def _model(
        self,
        entries: Mapping[str, Any],
        key: str,
        spec: MethodSpec,
        base: Node | None,
        outer: Levels,
        extension: Mapping[str, Any],
    ) -> tuple[Node | None, int | None]:
        """The node of ``models`` or ``slices``, and its depth where the file tells it and the node does not."""
        slices = self.slices(entries, key)
        if keeps_blocks(slices):
            base = slices[0].base or base
            experts, merge_base = self._models(spec, slices[0], base, outer, appends=entries.get("models") is not None)
            node = self._merge(spec, slices, (experts, merge_base), outer, extension)
            span = slices[-1].layer_range
            return node, None if span is None else span[1]
        parts = []
        for index, item in enumerate(slices):
            missing = [entry for entry in item.entries if entry.layer_range is None]
            for entry in missing:
                self.add(entry.key, "layer_range is missing")
            if item.entries and not missing:
                names = extension.get("experts") or []
                own = {**extension, "experts": names[index] if index < len(names) else None}
                parts.append(self._part(spec, item, item.base or base, outer, own))
        return (None if self.problems or not parts else Stack(tuple(parts))), None

    def _part(
        self, spec: MethodSpec, item: Slice, base: Node | None, outer: Levels, extension: Mapping[str, Any]
    ) -> StackPart:
        """One output slice as a merge of its own, as deep as the slice is long."""
        experts, merge_base = self._models(spec, item, base, outer, appends=False)
        listed = {entry.source: entry for entry in item.entries}
        if merge_base is not None and merge_base not in listed:
            if item.layer_range is None:
                message = "its sources take different blocks, so the base_model must be one of them with its own"
                self.add(f"{item.key}.sources", message)
            else:
                listed[merge_base] = Entry(merge_base, {}, item.key, item.layer_range)
        first = item.entries[0].layer_range
        assert first is not None
        is_copy = spec.name == "passthrough" and len(experts) == 1 and not self._is_scaled(item, outer)
        if is_copy or (spec.needs_base and not experts and merge_base is not None):
            source = experts[0] if is_copy else merge_base
            assert source is not None
            span = listed[source].layer_range or first
            return StackPart(source, *span)
        if self.problems:
            return StackPart(experts[0], *first) if experts else StackPart(Source("?"), 0, 1)
        merge = self._merge(spec, [item], (experts, merge_base), outer, extension, listed)
        return StackPart(merge, 0, first[1] - first[0])

    def _is_scaled(self, item: Slice, outer: Levels) -> bool:
        levels = [item.parameters, *(entry.parameters for entry in item.entries), *(level for level, _ in outer)]
        return any(level.get("scale") is not None for level in levels)

    def _merge(
        self,
        spec: MethodSpec,
        slices: list[Slice],
        models: tuple[list[Node], Node | None],
        outer: Levels,
        extension: Mapping[str, Any],
        blocks_of: Mapping[Node, Entry] | None = None,
    ) -> Merge:
        """One merge of some output slices; with ``blocks_of`` each model stands for those of its blocks."""
        experts, base = models
        given = self._names(
            extension.get("experts"), len(experts), base is not None and DIALECT[spec.name].base_is_first
        )
        if given is not None and len(given) == len(experts) + 1:
            assert base is not None
            experts, base = [base, *experts], None
        names = given or readable_names([self._label(expert) for expert in experts])
        reader = ParameterReader(self, spec, slices, outer, is_renumbered=blocks_of is not None)
        parameters = reader.rules(experts, names)
        if blocks_of is not None:
            experts = [_taken(expert, blocks_of) for expert in experts]
            base = None if base is None else _taken(base, blocks_of)
        seed = int(extension.get("seed", 0))
        return Merge(spec.name, tuple(zip(names, experts, strict=True)), base, parameters, seed)

    def _models(
        self, spec: MethodSpec, item: Slice, base: Node | None, outer: Levels, appends: bool
    ) -> tuple[list[Node], Node | None]:
        """Experts in listed order and the base of the merge; ``appends`` as mergekit does to ``models``."""
        dialect = DIALECT[spec.name]
        listed = [entry.source for entry in item.entries]
        if (spec.needs_base or dialect.base_is_first) and base is None:
            self.add("base_model", f"missing; {spec.name} needs it")
        if spec.needs_base or (base is not None and (dialect.base_is_first or dialect.base_is_optional)):
            return [source for source in listed if source != base], base
        # mergekit appends an unlisted base to the models; where models have weights, it does not count without one.
        counts = any(level.get("weight") is not None for level, _ in outer) or "weight" not in dialect.defaults
        if appends and base is not None and base not in listed and counts:
            return [*listed, base], None
        return listed, None

    def _extension(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What mergekit's dialect has no place for; mergekit ignores the key."""
        entries = dict(given)
        self.check_keys(entries, EXTENSION_KEYS, "evomerge")
        seed = entries.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**63:
            self.add("evomerge.seed", f"expected a whole number, got {seed!r}")
            entries.pop("seed")
        if entries.get("vocabulary") not in (None, UNCHANGED):
            self.add("evomerge.vocabulary", f"expected {UNCHANGED}, got {entries['vocabulary']!r}")
        if not isinstance(entries.get("parity"), str | None):
            self.add("evomerge.parity", f"expected mergekit, got {entries['parity']!r}")
        if not isinstance(entries.get("experts"), list | None):
            self.add("evomerge.experts", f"expected a list of names, got {entries['experts']!r}")
            entries.pop("experts")
        return entries

    def _names(self, names: Any, count: int, may_have_base: bool) -> list[str] | None:
        """The names given to the experts; a pairwise merge's base may be named as the first of them."""
        if names is None:
            return None
        counts = (count, count + 1) if may_have_base else (count,)
        distinct = isinstance(names, list) and len(set(map(str, names))) == len(names) in counts
        if distinct and all(isinstance(name, str) for name in names):
            return list(names)
        self.add("evomerge.experts", f"expected {count} different names, got {names!r}")
        return None

    def _label(self, node: Node) -> str:
        """What a model is called: its document, or the last part of its path."""
        for name, other in self.named.items():
            if other is node:
                return name
        assert isinstance(node, Source)
        return (node.adapter or node.model).rstrip("/").split("/")[-1].split(":")[-1]

    def _tokenizer(
        self, entries: Mapping[str, Any], base: Node | None, extension: Mapping[str, Any]
    ) -> tuple[Source | None, Vocabulary | None]:
        """Whose configuration and files are used, and the tokens where mergekit would change them."""
        first = None if base is None else next(iter(Recipe(base).sources))
        reader = VocabularyReader(self.add, self.source)
        value = entries.get("tokenizer_source")
        if entries.get("tokenizer") is not None:
            if value is not None:
                self.add("tokenizer", "give tokenizer or tokenizer_source, not both")
            settings = self.mapping(entries["tokenizer"], "tokenizer")
            return first, reader.vocabulary(settings, "tokenizer", base=first)
        if value is None:
            return first, None
        if extension.get("vocabulary") == UNCHANGED and value not in WORDS:
            return self.source(value, "tokenizer_source"), None
        tokens = reader.tokens_of(value, "tokenizer_source")
        return first, None if tokens is None else Vocabulary(tokens, base=first)


def _taken(node: Node, blocks_of: Mapping[Node, Entry]) -> Node:
    span = blocks_of[node].layer_range
    assert span is not None
    return Stack((StackPart(node, *span),))


def _base_of(node: Node) -> Source | None:
    """The source that is the base of a recipe's merge, None where it is no single model."""
    base = node.base if isinstance(node, Merge) else None
    return base if isinstance(base, Source) else None


def readable_names(words: Sequence[str]) -> list[str]:
    """Distinct names made of words."""
    names: list[str] = []
    for text in words:
        word = re.sub(r"[^\w.-]+", "_", text)
        word = word if re.match(r"[A-Za-z]", word) else f"m{word}"
        name, count = word, 1
        while name in names:
            count += 1
            name = f"{word}_{count}"
        names.append(name)
    return names
