"""What a merged checkpoint was made from: fingerprints of the sources' files, and the identity of one merge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.engine.safetensors_header import weight_files
from evomerge.engine.shard_writer import Shard
from evomerge.engine.sources import ADAPTER_WEIGHTS, fingerprint, resolve_adapter, resolve_source
from evomerge.recipes.recipe import Merge, Node, Recipe, Source

HASH_KINDS = ("headers", "full")
READ_BYTES = 1 << 24


def fingerprints(recipe: Recipe, kind: str = "headers") -> dict[str, Any]:
    """Fingerprints of every source's weight files.

    Args:
        recipe: what is merged.
        kind: ``headers`` = size and SHA-256 of the header of every file, ``full`` = also SHA-256 of the whole file.

    Returns:
        JSON-ready: source to file name to ``bytes``, ``header_sha256`` and, if asked for, ``sha256``.
    """
    return {
        str(source): {name: _describe(path, kind) for name, path in _files(source)}
        for source in dict.fromkeys((*recipe.sources, recipe.reference))
    }


def merge_identity(recipe: Recipe, shards: Sequence[Shard]) -> dict[str, Any]:
    """What two merges share exactly when one may go on with what the other has written."""
    import torch

    from evomerge import __version__

    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.file}:{len(shard.header)}:".encode() + shard.header)
    sources = dict.fromkeys((*recipe.sources, recipe.reference))
    return {
        "format": 1,
        "evomerge": __version__,
        "torch": str(torch.__version__),
        "recipe_id": recipe.recipe_id,
        "sources": {str(source): [fingerprint(source), *_times(source)] for source in sources},
        "methods": {name: _code(name) for name in _methods(recipe.model)},
        "shards": digest.hexdigest(),
    }


def _files(source: Source) -> Iterator[tuple[str, Path]]:
    for path in weight_files(resolve_source(source)):
        yield path.name, path
    adapter = resolve_adapter(source)
    if adapter is not None:
        yield ADAPTER_WEIGHTS, adapter / ADAPTER_WEIGHTS


def _times(source: Source) -> list[int]:
    # The fingerprint samples contents; a file that was written to since has another time.
    return [path.stat().st_mtime_ns for _, path in _files(source)]


def _describe(path: Path, kind: str) -> dict[str, Any]:
    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        entries: dict[str, Any] = {
            "bytes": path.stat().st_size, "header_sha256": hashlib.sha256(header).hexdigest(),
        }  # fmt: skip
        if kind == "full":
            stream.seek(0)
            whole = hashlib.sha256()
            while part := stream.read(READ_BYTES):
                whole.update(part)
            entries["sha256"] = whole.hexdigest()
    return entries


def _methods(node: Node) -> list[str]:
    if not isinstance(node, Merge):
        return []
    inner = [expert for _, expert in node.experts] + ([] if node.base is None else [node.base])
    return sorted({node.method, *(name for child in inner for name in _methods(child))})


def _code(name: str) -> str:
    from evomerge.methods.own_method import source_fingerprint

    return source_fingerprint(name) if ":" in name else ""
