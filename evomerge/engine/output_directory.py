"""The directory of a merged checkpoint: it appears whole or not at all, and a merge that was killed can go on.

What is being written lies in ``.<name>.partial`` beside the target. A journal there names the merge and every finished
shard; the same merge started again keeps those shards. A lock beside it keeps two processes from writing one target.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.engine.shard_writer import Shard
from evomerge.errors import UserError
from evomerge.files import fsync_dir

JOURNAL_NAME = ".merge.jsonl"
SPARE_BYTES = 64_000_000  # tokenizer files, headers and the like
READ_BYTES = 1 << 24
FULL = (errno.ENOSPC, errno.EDQUOT)

_logger = logging.getLogger(__name__)


@dataclass
class PartialOutput:
    """A checkpoint that is being written.

    Attributes:
        path: the directory to write to.
        kept: file names of shards that an earlier process finished and that are as it left them.
    """

    path: Path
    kept: frozenset[str] = frozenset()
    _finished: dict[str, int] = field(default_factory=dict)

    def record(self, shard: Shard, checksum: int) -> None:
        """Note that a shard is on the disk.

        Args:
            shard: written, flushed and closed.
            checksum: CRC-32 of the file.
        """
        self._finished[shard.file] = shard.file_bytes
        _append(self.path / JOURNAL_NAME, {"file": shard.file, "bytes": shard.file_bytes, "crc32": checksum})

    @property
    def finished_bytes(self) -> int:
        """Bytes of the finished shards."""
        return sum(self._finished.values())


def check_output_dir(out_dir: Path) -> None:
    """Refuse an output directory that something is in.

    Raises:
        UserError: it exists and is not empty, or is a file.
    """
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir}: exists and is not empty; choose another output directory or remove it")
    if (out_dir.exists() or out_dir.is_symlink()) and not out_dir.is_dir():
        raise UserError(f"{out_dir}: exists and is a file; expected a new directory")


@contextmanager
def output_directory(out_dir: Path, identity: Mapping[str, Any], shards: Sequence[Shard]) -> Iterator[PartialOutput]:
    """A directory beside ``out_dir`` that becomes it when the block ends well.

    When the block fails nothing is left behind, except finished shards where the disk became full or the user
    interrupted: those are kept for the next attempt, as after a kill.

    Args:
        out_dir: must not exist, or be empty.
        identity: JSON-ready; what was written for another identity is discarded.
        shards: what will be written.

    Raises:
        UserError: the place is taken, in use or cannot be written, or the disk is too small or becomes full.
    """
    target = Path(os.path.abspath(out_dir))
    target = target.resolve() if target.is_symlink() else target
    check_output_dir(target)
    partial = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _Lock(target.parent / f".{target.name}.lock", target)
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be created ({error.strerror})") from error
    try:
        check_output_dir(target)  # another process may have finished it while this one waited for the lock
        with _failures(target, partial) as output:
            _open(output, dict(identity), shards)
            _check_space(target, output, shards)
            yield output
            _finish(output, target)
    finally:
        lock.release()


@contextmanager
def _failures(target: Path, partial: Path) -> Iterator[PartialOutput]:
    output = PartialOutput(partial)
    try:
        yield output
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"{target}: the disk became full while writing; {_leave(output, target)}") from error
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{target}: cannot be written ({error})") from error
    except (KeyboardInterrupt, _TooSmall) as error:
        told = _leave(output, target)
        if isinstance(error, _TooSmall):
            raise UserError(f"{error}; {told}" if output.finished_bytes else str(error)) from None
        _logger.warning("%s: interrupted; %s", target, told)
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _leave(output: PartialOutput, target: Path) -> str:
    """Keep finished shards and nothing else; says so."""
    if not output.finished_bytes:
        shutil.rmtree(output.path, ignore_errors=True)
        return "nothing is left behind"
    for path in output.path.iterdir():
        if path.name not in output._finished and path.name != JOURNAL_NAME:
            path.unlink()
    count = len(output._finished)
    return (
        f"{count} finished shards ({output.finished_bytes / 1e9:.2f} GB) are kept in {output.path}. Run the same merge "
        f"into {target.name} again to go on, or remove that folder"
    )


def _open(output: PartialOutput, identity: dict[str, Any], shards: Sequence[Shard]) -> None:
    """Find what an earlier process finished and clear away everything else."""
    output.path.mkdir(exist_ok=True)
    journal = output.path / JOURNAL_NAME
    entries = _read_journal(journal)
    if entries and entries[0] == identity:
        by_file = {shard.file: shard for shard in shards}
        for entry in entries[1:]:
            shard = by_file.get(str(entry.get("file")))
            if shard is not None and _is_intact(output.path / shard.file, shard, entry):
                output._finished[shard.file] = shard.file_bytes
        output.kept = frozenset(output._finished)
        checksums = {str(entry.get("file")): entry for entry in entries[1:]}
        lines = [identity, *(checksums[file] for file in sorted(output.kept))]
        if output.kept:
            _logger.warning(
                "%s: going on with %d of %d shards that an earlier merge finished",
                output.path, len(output.kept), len(shards),
            )  # fmt: skip
    else:
        lines = [identity]
        if entries:
            _logger.warning("%s: left by another merge or by other sources; starting over", output.path)
    for path in output.path.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in output.kept:
            path.unlink()
    for line in lines:
        _append(journal, line)


def _check_space(target: Path, output: PartialOutput, shards: Sequence[Shard]) -> None:
    wanted = sum(shard.file_bytes for shard in shards) - output.finished_bytes + SPARE_BYTES
    free = shutil.disk_usage(target.parent).free
    if free < wanted:
        raise _TooSmall(
            f"{target}: the disk has {free / 1e9:.2f} GB free, the model needs {wanted / 1e9:.2f} GB; free some space "
            "or choose another disk"
        )


def _finish(output: PartialOutput, target: Path) -> None:
    (output.path / JOURNAL_NAME).unlink()
    for path in sorted(output.path.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    fsync_dir(output.path)
    output.path.rename(target)
    fsync_dir(target.parent)


def _read_journal(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    entries = []
    for line in text.split("\n")[:-1]:  # what follows the last newline was cut off by the kill
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    return entries


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(entry, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _is_intact(path: Path, shard: Shard, entry: Mapping[str, Any]) -> bool:
    try:
        if path.is_symlink() or path.stat().st_size != shard.file_bytes:
            return False
        checksum = 0
        with path.open("rb") as stream:
            start = stream.read(len(shard.header))
            if start != shard.header:
                return False
            checksum = zlib.crc32(start)
            while part := stream.read(READ_BYTES):
                checksum = zlib.crc32(part, checksum)
    except OSError:
        return False
    return checksum == entry.get("crc32")


class _TooSmall(Exception):
    """The disk is too small for what is still to be written."""


class _Lock:
    """Held on a file beside the target; the operating system frees it when the process ends, however it ends."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        while True:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._handle, 100).decode(errors="replace").strip() or "another process"
                os.close(self._handle)
                raise UserError(
                    f"{target}: {holder} is writing there. Wait until it ends, or choose another output directory"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                    os.close(self._handle)
                    raise
                _logger.warning("%s: this file system has no locks; do not start a second merge into it", target)
            if self._is_current():
                break
            os.close(self._handle)  # its holder removed it between our open and our lock
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._handle)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except FileNotFoundError:
            return False
