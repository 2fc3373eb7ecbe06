"""Models, slices and references of a mergekit file, and whether its slices leave the blocks where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import Problem, did_you_mean
from evomerge.recipes.mergekit_parameters import Entry, Slice
from evomerge.recipes.recipe import Node, Source
from evomerge.recipes.recipe_reader import parse_source

TWICE = (
    "is listed twice, which mergekit refuses; to merge blocks of one model with other blocks of it use evomerge's own "
    "form (experts: {a: {stack: [...]}, b: {stack: [...]}})"
)


class SliceReader:
    """Reads the parts of a mergekit file that name models; ``problems`` holds everything that was wrong."""

    def __init__(self, where: str, named: Mapping[str, Node] | None = None) -> None:
        """Start without problems.

        Args:
            where: file name shown in problems.
            named: results of other documents of the file, by name.
        """
        self.problems: list[Problem] = []
        self._where = where
        self.named = named or {}

    def add(self, key: str, message: str) -> None:
        """Note a problem at a key of the file."""
        self.problems.append(Problem(f"{self._where}: {key}", message))

    def check_keys(self, entries: Mapping[str, Any], known: tuple[str, ...], key: str) -> None:
        """Note every unknown key."""
        for name in entries:
            if name not in known:
                self.add(f"{key}.{name}".lstrip("."), f"unknown key. {did_you_mean(str(name), known)}")

    def mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        """A mapping, empty where there is none."""
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        self.add(key, f"expected a mapping, got {value!r}")
        return {}

    def node(self, value: Any, key: str) -> Node | None:
        """A model reference, or the result of another document."""
        source = self.source(value, key)
        if source is None or source.model not in self.named:
            return source
        if source != Source(source.model):
            self.add(key, f"{source.model!r} is a document of this file and takes no revision and no LoRA adapter")
            return None
        return self.named[source.model]

    def source(self, value: Any, key: str) -> Source | None:
        """A model reference: ``path[@revision][+lora[@revision]]`` or ``{model: ..., lora: ...}``."""
        if isinstance(value, str) and value:
            if value.count("+") > 1 or any(part.count("@") > 1 for part in value.split("+")):
                self.add(key, f"expected path[@revision][+lora[@revision]], got {value!r}; write it as a mapping")
                return None
            return parse_source(value)
        if not isinstance(value, Mapping):
            self.add(key, f"expected a model, got {value!r}")
            return None
        self.check_keys(value, ("model", "lora", "override_architecture"), key)
        if value.get("override_architecture") is not None:
            self.add(
                f"{key}.override_architecture",
                "is not supported: evomerge finds the architecture from config.json; correct it there",
            )
        model, revision = self._path(value.get("model"), f"{key}.model")
        adapter, adapter_revision = None, None
        if value.get("lora") is not None:
            adapter, adapter_revision = self._path(value["lora"], f"{key}.lora")
        return Source(model, revision, adapter, adapter_revision) if model else None

    def slices(self, entries: Mapping[str, Any], key: str) -> list[Slice]:
        """The output slices of ``models`` or ``slices``; ``models`` are one slice of the whole depth.

        Args:
            entries: holds either.
            key: key of ``entries`` with a dot at its end, empty at the top of the file.
        """
        if isinstance(entries.get("models"), list) and entries["models"]:
            found = self._entries(entries["models"], f"{key}models", ("model", "parameters"))
            return [Slice(found, {}, "")]
        if not isinstance(entries.get("slices"), list) or not entries["slices"]:
            for name in ("models", "slices"):
                if entries.get(name) is not None:
                    self.add(f"{key}{name}", f"expected a list, got {entries[name]!r}")
            return [Slice([], {}, "")]
        return [self._slice(value, f"{key}slices[{index}]") for index, value in enumerate(entries["slices"])]

    def _slice(self, value: Any, key: str) -> Slice:
        entries = self.mapping(value, key)
        self.check_keys(entries, ("sources", "parameters", "base_model", "residual_weight"), key)
        base = entries.get("base_model")
        sources = entries.get("sources")
        if not isinstance(sources, list) or not sources:
            self.add(f"{key}.sources", f"expected a list of models, got {sources!r}")
            sources = []
        known = ("model", "layer_range", "parameters", "residual_weight")
        parameters = self.mapping(entries.get("parameters"), f"{key}.parameters")
        found = Slice(self._entries(sources, f"{key}.sources", known), parameters, key)
        found.base = None if base is None else self.node(base, f"{key}.base_model")
        ranges = {entry.layer_range for entry in found.entries}
        found.layer_range = next(iter(ranges)) if len(ranges) == 1 else None
        lengths = {span[1] - span[0] for span in ranges if span is not None}
        if len(lengths) > 1:
            self.add(key, f"its sources must have the same number of blocks, got {sorted(lengths)}")
        return found

    def _entries(self, values: list[Any], key: str, known: tuple[str, ...]) -> list[Entry]:
        found: list[Entry] = []
        for index, value in enumerate(values):
            place = f"{key}[{index}]"
            entries = self.mapping(value, place)
            self.check_keys(entries, known, place)
            node = self.node(entries.get("model"), f"{place}.model")
            parameters = self.mapping(entries.get("parameters"), f"{place}.parameters")
            layer_range = self._layer_range(entries.get("layer_range"), f"{place}.layer_range")
            if node is not None:
                if node in [entry.source for entry in found]:
                    self.add(f"{place}.model", f"{entries['model']} {TWICE}")
                found.append(Entry(node, parameters, place, layer_range))
        return found

    def _layer_range(self, value: Any, key: str) -> tuple[int, int] | None:
        if value is None:
            return None
        whole = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
        if whole and 0 <= value[0] < value[1]:
            return value[0], value[1]
        self.add(key, f"expected [start, end) with start < end, got {value!r}")
        return None

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


def keeps_blocks(slices: list[Slice]) -> bool:
    """Whether slices are the blocks in order, each merged from the same models: then one merge can say it all."""
    if len(slices) == 1 and all(entry.layer_range is None for entry in slices[0].entries):
        return True
    position = 0
    for item in slices:
        if item.layer_range is None or item.layer_range[0] != position:
            return False
        position = item.layer_range[1]
    models = [sorted(str(entry.source) for entry in item.entries) for item in slices]
    return all(names == models[0] for names in models) and all(item.base == slices[0].base for item in slices)
