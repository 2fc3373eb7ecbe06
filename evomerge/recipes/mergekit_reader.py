"""From a mergekit YAML mapping to a recipe that gives mergekit's result, its defaults spelled out.

Only what evomerge can merge to the same result is accepted: slices that are all blocks in order, one module, no change
of the vocabulary. Everything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evomerge.errors import Problem, UserError, did_you_mean
from evomerge.methods.base import MethodSpec
from evomerge.recipes.mergekit_dialect import DIALECT, Dialect
from evomerge.recipes.mergekit_parameters import Entry, ParameterReader, Parameters, Slice
from evomerge.recipes.recipe import Merge, Node, Recipe, Source
from evomerge.recipes.recipe_reader import parse_source

TOP_KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "evomerge",
)  # fmt: skip


class MergekitReader:
    """Reads one mergekit file; ``problems`` holds everything that was wrong."""

    def __init__(self, where: str) -> None:
        self.problems: list[Problem] = []
        self._where = where

    def recipe(self, entries: Mapping[str, Any]) -> Recipe | None:
        """The recipe, or None when ``problems`` says why not."""
        from evomerge.methods.catalogue import get_spec

        self._check_top(entries)
        slices = self._slices(entries)
        base = self._source(entries["base_model"], "base_model") if entries.get("base_model") is not None else None
        method = entries.get("merge_method")
        if not isinstance(method, str) or method not in DIALECT:
            known = did_you_mean(str(method), DIALECT)
            self.add("merge_method", f"{method!r} cannot be read from mergekit's dialect. {known}")
            return None
        try:
            spec = get_spec(method)
        except UserError as error:
            self.add("merge_method", str(error))
            return None
        top = self._mapping(entries.get("parameters"), "parameters")
        experts, recipe_base = self._models(DIALECT[method], spec, slices, base, top)
        extension = self._mapping(entries.get("evomerge"), "evomerge")
        if DIALECT[method].base_is_first and recipe_base is not None and len(extension.get("experts") or ()) == 2:
            experts, recipe_base = [recipe_base, *experts], None
        extension = self._extension(extension, len(experts))
        names = extension.get("experts") or _names(experts)
        parameters = ParameterReader(self, spec, DIALECT[method], slices, top).rules(experts, names)
        tokenizer = self._tokenizer(entries, base)
        dtype = str(entries.get("out_dtype") or entries.get("dtype") or "").removeprefix("torch.") or None
        if self.problems:
            return None
        pairs: tuple[tuple[str, Node], ...] = tuple(zip(names, experts, strict=True))
        merge = Merge(method, pairs, recipe_base, parameters, int(extension.get("seed", 0)))
        depth = slices[-1].layer_range
        options = (("num_blocks", depth[1]),) if depth is not None else ()
        return Recipe(merge, dtype, tokenizer if tokenizer != next(iter(Recipe(merge).sources)) else None, options)

    def add(self, key: str, message: str) -> None:
        """Note a problem at a key of the file."""
        self.problems.append(Problem(f"{self._where}: {key}", message))

    def _mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        self.add(key, f"expected a mapping, got {value!r}")
        return {}

    def check_keys(self, entries: Mapping[str, Any], known: tuple[str, ...], key: str) -> None:
        """Note every unknown key."""
        for name in entries:
            if name not in known:
                self.add(f"{key}.{name}".lstrip("."), f"unknown key. {did_you_mean(name, known)}")

    def _check_top(self, entries: Mapping[str, Any]) -> None:
        self.check_keys(entries, TOP_KEYS, "")
        if entries.get("modules") is not None:
            self.add("modules", "merging several modules of one model is not supported")
        if entries.get("chat_template") is not None:
            self.add("chat_template", "setting a chat template is not supported; remove it to keep the tokenizer's own")
        given = [name for name in ("models", "slices", "modules") if entries.get(name) is not None]
        if len(given) != 1:
            self.add("models", f"expected exactly one of models, slices, modules; found {', '.join(given) or 'none'}")
        for name in ("dtype", "out_dtype"):
            if entries.get(name) is not None and not isinstance(entries[name], str):
                self.add(name, f"expected the name of a dtype, got {entries[name]!r}")

    def _source(self, value: Any, key: str) -> Source | None:
        """A model reference: ``path[@revision][+lora]`` or ``{model: ..., lora: ...}``."""
        if isinstance(value, str) and value:
            return parse_source(value)
        if not isinstance(value, Mapping):
            self.add(key, f"expected a model, got {value!r}")
            return None
        self.check_keys(value, ("model", "lora", "override_architecture"), key)
        if value.get("override_architecture") is not None:
            self.add(f"{key}.override_architecture", "is not supported")
        model, revision = self._path(value.get("model"), f"{key}.model")
        adapter, adapter_revision = None, None
        if value.get("lora") is not None:
            adapter, adapter_revision = self._path(value["lora"], f"{key}.lora")
        return Source(model, revision, adapter, adapter_revision) if model else None

    def _path(self, value: Any, key: str) -> tuple[str, str | None]:
        if isinstance(value, str) and value:
            plain, _, suffix = value.partition("@")
            return plain, suffix or None
        if isinstance(value, Mapping):
            self.check_keys(value, ("path", "revision"), key)
            path, revision = value.get("path"), value.get("revision")
            if isinstance(path, str) and path and isinstance(revision, str | None):
                return path, revision
        self.add(key, f"expected a path or {{path: ..., revision: ...}}, got {value!r}")
        return "", None

    def _slices(self, entries: Mapping[str, Any]) -> list[Slice]:
        if isinstance(entries.get("models"), list) and entries["models"]:
            return [Slice(self._entries(entries["models"], "models", ("model", "parameters")), {}, "")]
        if not isinstance(entries.get("slices"), list) or not entries["slices"]:
            for name in ("models", "slices"):
                if entries.get(name) is not None:
                    self.add(name, f"expected a list, got {entries[name]!r}")
            return [Slice([], {}, "")]
        return self._tiling([self._slice(value, f"slices[{index}]") for index, value in enumerate(entries["slices"])])

    def _slice(self, value: Any, key: str) -> Slice:
        entries = self._mapping(value, key)
        self.check_keys(entries, ("sources", "parameters", "base_model", "residual_weight"), key)
        if entries.get("base_model") is not None:
            self.add(f"{key}.base_model", "a base of its own for one slice is not supported")
        sources = entries.get("sources")
        if not isinstance(sources, list) or not sources:
            self.add(f"{key}.sources", f"expected a list of models, got {sources!r}")
            sources = []
        known = ("model", "layer_range", "parameters", "residual_weight")
        found = Slice(
            self._entries(sources, f"{key}.sources", known), self._mapping(entries.get("parameters"), key), key
        )
        ranges = {entry.layer_range for entry in found.entries}
        if len(ranges) > 1:
            self.add(key, "sources with different layer ranges are not supported: every slice takes the same blocks")
        found.layer_range = found.entries[0].layer_range if found.entries else None
        return found

    def _entries(self, values: list[Any], key: str, known: tuple[str, ...]) -> list[Entry]:
        found: list[Entry] = []
        for index, value in enumerate(values):
            place = f"{key}[{index}]"
            entries = self._mapping(value, place)
            self.check_keys(entries, known, place)
            source = self._source(entries.get("model"), f"{place}.model")
            parameters = self._mapping(entries.get("parameters"), f"{place}.parameters")
            layer_range = self._layer_range(entries.get("layer_range"), f"{place}.layer_range")
            if source is not None:
                if source in [entry.source for entry in found]:
                    self.add(f"{place}.model", f"{source} is listed twice")
                found.append(Entry(source, parameters, place, layer_range))
        return found

    def _layer_range(self, value: Any, key: str) -> tuple[int, int] | None:
        if value is None:
            return None
        whole = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
        if whole and 0 <= value[0] < value[1]:
            return value[0], value[1]
        self.add(key, f"expected [start, end) with start < end, got {value!r}")
        return None

    def _tiling(self, slices: list[Slice]) -> list[Slice]:
        """The slices, checked to be all blocks in order: anything else changes the depth of the model."""
        if len(slices) == 1 and slices[0].layer_range is None:
            return slices
        position = 0
        for item in slices:
            if item.layer_range is None:
                self.add(item.key, "layer_range is missing")
                return slices
            if item.layer_range[0] != position:
                self.add(
                    item.key,
                    f"starts at block {item.layer_range[0]}, expected {position}: slices that repeat, skip or reorder "
                    "blocks are not supported here",
                )
                return slices
            position = item.layer_range[1]
        models = [sorted(str(entry.source) for entry in item.entries) for item in slices]
        if any(names != models[0] for names in models):
            self.add("slices", "slices with different models are not supported: give every slice the same sources")
        return slices

    def _models(
        self, dialect: Dialect, spec: MethodSpec, slices: list[Slice], base: Source | None, top: Parameters
    ) -> tuple[list[Source], Source | None]:
        """Experts in listed order and the base of the merge."""
        listed = [entry.source for entry in slices[0].entries]
        if (spec.needs_base or dialect.base_is_first) and base is None:
            self.add("base_model", f"missing; {spec.name} needs it")
        if spec.needs_base:
            return [source for source in listed if source != base], base
        if base is not None and (dialect.base_is_first or dialect.base_is_optional):
            return [source for source in listed if source != base], base
        # mergekit appends an unlisted base to the models; where models have weights, it does not count without one.
        counts = top.get("weight") is not None or "weight" not in dialect.defaults
        if base is not None and base not in listed and counts:
            return [*listed, base], None
        return listed, None

    def _extension(self, given: Mapping[str, Any], num_experts: int) -> Mapping[str, Any]:
        """What mergekit's dialect has no place for: seed and names of the experts; mergekit ignores the key."""
        entries = dict(given)
        self.check_keys(entries, ("seed", "experts"), "evomerge")
        seed, names = entries.get("seed", 0), entries.get("experts")
        if type(seed) is not int or not 0 <= seed < 2**63:
            self.add("evomerge.seed", f"expected a whole number, got {seed!r}")
            entries.pop("seed")
        if names is not None and not (
            isinstance(names, list)
            and len(names) == num_experts == len(set(map(str, names)))
            and all(isinstance(name, str) for name in names)
        ):
            self.add("evomerge.experts", f"expected {num_experts} different names, got {names!r}")
            entries.pop("experts")
        return entries

    def _tokenizer(self, entries: Mapping[str, Any], base: Source | None) -> Source | None:
        key, value = "tokenizer_source", entries.get("tokenizer_source")
        if entries.get("tokenizer") is not None:
            if value is not None:
                self.add("tokenizer", "give tokenizer or tokenizer_source, not both")
            settings = self._mapping(entries["tokenizer"], "tokenizer")
            self.check_keys(settings, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
            for name in ("tokens", "pad_to_multiple_of"):
                if settings.get(name) is not None:
                    self.add(f"tokenizer.{name}", "changing the vocabulary is not supported")
            key, value = "tokenizer.source", settings.get("source")
        if value == "union":
            self.add(key, "union tokenizers are not supported; use base or one of the models")
            return None
        if value is None or value == "base":
            return base
        return self._source(value, key)


def _names(sources: list[Source]) -> list[str]:
    """Readable, distinct names: the last part of each path."""
    names: list[str] = []
    for source in sources:
        word = re.sub(r"[^\w.-]+", "_", (source.adapter or source.model).rstrip("/").split("/")[-1].split(":")[-1])
        word = word if re.match(r"[A-Za-z]", word) else f"m{word}"
        name, count = word, 1
        while name in names:
            count += 1
            name = f"{word}_{count}"
        names.append(name)
    return names
