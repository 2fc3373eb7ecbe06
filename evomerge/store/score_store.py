"""Per-document scores: one small npz file for each evaluation, written whole or not at all, never pickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from evomerge.errors import UserError
from evomerge.files import fsync_dir
from evomerge.terms import Array, DocumentScores

_VERSION = 1
_FOLDER = "scores"
_MAX_NAME = 160


class ScoreStore:
    """The ``scores`` folder of a run.

    Args:
        run_path: the run directory; references are relative to it.
    """

    def __init__(self, run_path: Path) -> None:
        self._run_path = run_path
        self._unsynced: list[Path] = []

    def save(self, key: str, document_scores: Sequence[DocumentScores]) -> str:
        """Write the scores of one evaluation and return their reference.

        A killed process loses nothing. Against a power cut ``sync``, once per generation, makes them durable: an fsync
        for each file would cost more than all else that is written for a candidate.

        Args:
            key: key of the evaluation; saving it again replaces the file.
            document_scores: one table per objective.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        ref = f"{_FOLDER}/{safe_name(key)}.npz"
        path = self._run_path / ref
        data = _pack(document_scores)
        temporary: Path | None = None
        try:
            handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            temporary.replace(path)
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise UserError(
                f"{path}: cannot write per-document scores: {error.strerror or error}. Make room, then resume the run."
            ) from error
        self._unsynced.append(path)
        return ref

    def load(self, ref: str) -> tuple[DocumentScores, ...]:
        """Scores of one evaluation, as they were saved.

        Raises:
            UserError: the reference points nowhere or outside the run, or the file is damaged.
        """
        path = self._run_path / ref
        if Path(ref).is_absolute() or ".." in Path(ref).parts:
            raise UserError(f"{self._run_path}: scores reference {ref!r} points outside the run directory.")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return _unpack({name: arrays[name] for name in arrays.files})
        except FileNotFoundError:
            raise UserError(f"{path}: the per-document scores of this evaluation are missing.") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: the file of per-document scores is damaged ({error}).") from error

    def sync(self) -> None:
        """Make everything saved so far durable.

        Raises:
            UserError: the disk is full or broken.
        """
        try:
            for path in self._unsynced:
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            fsync_dir(self._run_path / _FOLDER)
        except OSError as error:
            raise UserError(
                f"{self._run_path / _FOLDER}: cannot write per-document scores: {error.strerror}."
            ) from error
        self._unsynced.clear()


def safe_name(key: str) -> str:
    """A file name for a key; different keys have different names.

    ``baseline:uniform_soup:search`` becomes ``baseline+uniform_soup+search``.
    """
    name = quote(key, safe=":").replace(":", "+")
    if len(name) > _MAX_NAME:
        name = f"{name[: _MAX_NAME - 17]}~{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return name


def _pack(document_scores: Sequence[DocumentScores]) -> bytes:
    """One ``(1 + extra columns, D)`` matrix per objective, and what the rows are as JSON text."""
    arrays: dict[str, Array] = {}
    tables = []
    for index, scores in enumerate(document_scores):
        columns = [np.asarray(column, dtype=np.float64) for column in (scores.values, *scores.extra.values())]
        num_documents = len(scores.document_ids)
        if any(column.shape != (num_documents,) for column in columns):
            shapes = [column.shape for column in columns]
            raise ValueError(f"scores of {scores.objective!r} have shapes {shapes} for {num_documents} documents")
        arrays[str(index)] = np.stack(columns)
        tables.append({"objective": scores.objective, "ids": scores.document_ids, "extra": list(scores.extra)})
    text = json.dumps({"v": _VERSION, "tables": tables}, ensure_ascii=False).encode()
    buffer = io.BytesIO()
    named: dict[str, Any] = {"about": np.frombuffer(text, dtype=np.uint8), **arrays}
    np.savez(buffer, allow_pickle=False, **named)
    return buffer.getvalue()


def _unpack(arrays: dict[str, Any]) -> tuple[DocumentScores, ...]:
    about = json.loads(arrays["about"].tobytes())
    if about["v"] != _VERSION:
        raise ValueError(f"schema version {about['v']}, this evomerge reads {_VERSION}")
    tables = []
    for index, table in enumerate(about["tables"]):
        matrix = arrays[str(index)]
        extra = {name: matrix[1 + row] for row, name in enumerate(table["extra"])}
        tables.append(DocumentScores(table["objective"], tuple(table["ids"]), matrix[0], extra))
    return tuple(tables)
