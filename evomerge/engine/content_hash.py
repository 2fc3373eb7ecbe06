"""What models hold, byte by byte: hashes of all files that are read of them, each computed once and kept on disk.

`fingerprint` samples large files, which tells models apart in milliseconds. A hash that scores are kept under must also
notice one changed number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.engine.safetensors_header import weight_files
from evomerge.engine.sources import ADAPTER_WEIGHTS, resolve_adapter, resolve_source
from evomerge.files import atomic_write_json, cache_dir
from evomerge.recipes.recipe import Source

# Weights that are hashed by name, and what no model or tokenizer is read from.
_OTHERS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".md", ".log", ".lock", ".tmp")
# A file that changed so lately may change once more without a new time stamp.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class _State:
    """What the file system says of a file; another one when it was written to."""

    path: str
    size: int
    modified: int
    changed: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> _State:
        found = path.stat()
        return cls(
            str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
        )

    @property
    def is_settled(self) -> bool:
        return time.time() - max(self.modified, self.changed) / 1e9 > _SETTLED_SECONDS


class ContentHashes:
    """Hashes of models, and whether their files still are what was hashed."""

    def __init__(self) -> None:
        self._hashes: dict[Source, str] = {}
        self._states: dict[str, _State] = {}

    def of(self, source: Source) -> str:
        """64 hex digits of everything that is read of a model and its adapter. They do not depend on where it lies.

        Raises:
            UserError: it is not there.
            OSError: a file cannot be read.
        """
        if source not in self._hashes:
            folder, adapter = resolve_source(source), resolve_adapter(source)
            files = [("model", path) for path in [*weight_files(folder), *_small_files(folder)]]
            if adapter is not None:
                files += [("adapter", path) for path in [adapter / ADAPTER_WEIGHTS, *_small_files(adapter)]]
            entries = [[role, path.name, self._file(path)] for role, path in files]
            self._hashes[source] = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
        return self._hashes[source]

    @property
    def are_current(self) -> bool:
        """Whether no file was written to, replaced or removed since it was hashed."""
        try:
            return all(_State.of(Path(path)) == state for path, state in self._states.items())
        except OSError:
            return False

    def _file(self, path: Path) -> str:
        state = _State.of(path)
        self._states[state.path] = state
        kept = _kept(state)
        if kept is not None:
            return kept
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if state.is_settled and _State.of(path) == state:
            _keep(state, digest)
        return digest


def _small_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix not in _OTHERS and path.is_file())


def _kept(state: _State) -> str | None:
    try:
        found: dict[str, Any] = json.loads(_place(state).read_text())
        digest = str(found["sha256"])
        return digest if found == _entry(state, digest) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(state: _State, digest: str) -> None:
    with contextlib.suppress(OSError):
        path = _place(state)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, _entry(state, digest))


def _entry(state: _State, digest: str) -> dict[str, Any]:
    """What is kept: the hash, whose it is, and a checksum of both."""
    entry = {**vars(state), "sha256": digest}
    return {**entry, "check": hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()}


def _place(state: _State) -> Path:
    name = hashlib.sha256(json.dumps(vars(state), sort_keys=True).encode()).hexdigest()
    return cache_dir() / "fingerprints" / f"{name[:32]}.json"
