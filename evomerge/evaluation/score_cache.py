"""The evaluation cache on disk: small files that many runs and workers read and write at once.

One file for each entry, named by the hash of its key, written to a temporary neighbour and renamed. That is safe for
any number of writers, also on network folders, where the locks and shared memory that a database needs are not to be
relied on: a reader sees a whole entry or none, and two writers of one key write the same. Nothing is synchronised to
disk: an entry that a power cut tore fails its checksum and is computed again.

An entry holds its whole key and a checksum. What is torn, altered or of another key (a collision of hashes) is no
entry. The checksum is no signature: who can write to the folder can also forge scores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)

_MAGIC = b"evomerge scores 1 "
_ENDING = ".scores"
_NAME = re.compile(r"[0-9a-f]{62}\.scores")
_DAY = 86400.0
_STALE_TEMPORARY = 3600.0


class ScoreCache:
    """One folder of entries.

    Args:
        folder: created with the first entry.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._can_write = True

    def get(self, key: str) -> Any | None:
        """What is kept under a key, None where nothing is, or nothing that can be trusted.

        Args:
            key: any text; all of it is compared.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            value = _unpack(data, key)
        except (ValueError, KeyError, TypeError, zlib.error, RecursionError) as error:
            LOG.warning("%s: not used, the entry is damaged (%s)", path, error)
            return None
        with contextlib.suppress(OSError):
            # "Older than" means not used for so long; one write a day is enough to know that.
            if time.time() - path.stat().st_mtime > _DAY:
                os.utime(path)
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep JSON data under a key. Where the folder does not take it, a warning is logged once and the run goes on.

        Raises:
            ValueError: the value holds NaN or an infinity.
        """
        path, data = self._path(key), _pack(key, value)
        temporary: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            temporary.chmod(0o644)  # several users may share the folder
            temporary.replace(path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            if self._can_write:
                LOG.warning("%s: scores cannot be kept here (%s)", self._folder, error.strerror or error)
            self._can_write = False

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest[2:]}{_ENDING}"


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds, or what was taken out of it.

    Attributes:
        folder: where.
        entries: how many.
        num_bytes: their size.
        oldest: Unix seconds when the entry unused for longest was last used, to a day; None without entries.
    """

    folder: Path
    entries: int
    num_bytes: int
    oldest: float | None


def cache_use(folder: Path) -> CacheUse:
    """Count the entries of a cache; a folder that is not there is an empty one."""
    return _counted(folder, [status for _, status in _entries(folder)])


def clear_entries(folder: Path, older_than: float = 0.0) -> CacheUse:
    """Remove entries; runs that use the cache meanwhile compute them again. Other files in the folder stay.

    Args:
        folder: the cache's.
        older_than: seconds; only entries not used for so long.

    Returns:
        What was removed.

    Raises:
        OSError: an entry cannot be removed.
    """
    now, removed = time.time(), []
    for path, status in _entries(folder):
        if now - status.st_mtime >= older_than:
            path.unlink(missing_ok=True)
            removed.append(status)
    for path in folder.glob("[0-9a-f][0-9a-f]/.*.tmp"):  # of writers that were killed
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > _STALE_TEMPORARY:
                path.unlink(missing_ok=True)
    for path in folder.glob("[0-9a-f][0-9a-f]"):
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
    return _counted(folder, removed)


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in sorted(folder.glob(f"[0-9a-f][0-9a-f]/*{_ENDING}")):
        if _NAME.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()


def _counted(folder: Path, statuses: list[os.stat_result]) -> CacheUse:
    oldest = min((status.st_mtime for status in statuses), default=None)
    return CacheUse(folder, len(statuses), sum(status.st_size for status in statuses), oldest)


def _pack(key: str, value: Any) -> bytes:
    text = json.dumps({"key": key, "value": value}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body = zlib.compress(text.encode())
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _unpack(data: bytes, key: str) -> Any:
    head, _, body = data.partition(b"\n")
    if head != _MAGIC + hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its checksum is wrong")
    entry = json.loads(zlib.decompress(body))
    if entry["key"] != key:
        raise ValueError("it belongs to another key")
    return entry["value"]
