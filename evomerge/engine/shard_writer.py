"""Writing a checkpoint tensor by tensor: sharded safetensors, in a directory that appears whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from evomerge.engine.checkpoint import DTYPES
from evomerge.engine.safetensors_header import INDEX_NAME
from evomerge.errors import UserError
from evomerge.files import atomic_write_json, fsync_dir

DEFAULT_SHARD_BYTES = 5_000_000_000
SPARE_BYTES = 64_000_000  # tokenizer files, headers and the like
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_output_dir(out_dir: Path) -> None:
    """Refuse an output directory that something is in.

    Raises:
        UserError: it exists and is not empty, or is a file, or its parent cannot hold it.
    """
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir}: exists and is not empty; choose another output directory or remove it")
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir}: exists and is a file; expected a new directory")


@contextmanager
def atomic_directory(out_dir: Path, num_bytes: int) -> Iterator[Path]:
    """A temporary directory beside ``out_dir`` that becomes it when the block ends well, and vanishes otherwise.

    Args:
        out_dir: must not exist, or be empty.
        num_bytes: bytes about to be written, checked against the free space first.

    Raises:
        UserError: the place is taken, cannot be written, or the disk is too small or becomes full.
    """
    check_output_dir(out_dir)
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out_dir.parent).free
        if free < num_bytes + SPARE_BYTES:
            raise UserError(
                f"{out_dir}: the disk has {free / 1e9:.2f} GB free, the model needs "
                f"{(num_bytes + SPARE_BYTES) / 1e9:.2f} GB; free some space or choose another disk"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".partial", dir=out_dir.parent))
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be created ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _fsync_all(temporary)
        temporary.rename(out_dir)
        fsync_dir(out_dir.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{out_dir}: the disk became full while writing; nothing is left behind") from error
        raise UserError(f"{out_dir}: cannot be written ({error})") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class ShardWriter:
    """Writes tensors in a fixed order into safetensors shards; only the tensor at hand is in memory.

    Attributes:
        entries: every tensor in the order in which ``write`` expects them.
    """

    def __init__(self, directory: Path, entries: Sequence[TensorEntry], shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        """Decide which tensor goes into which shard.

        Args:
            directory: an empty directory.
            entries: every tensor, in any order.
            shard_bytes: largest shard; a single larger tensor gets a shard of its own.
        """
        self._directory = directory
        self._shards = _split(entries, shard_bytes)
        count = len(self._shards)
        self._names = (
            ["model.safetensors"]
            if count == 1
            else [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        )
        self.entries = [entry for part in self._shards for entry in part]
        self._todo = [(shard, entry) for shard, part in enumerate(self._shards) for entry in part]
        self._next = 0
        self._stream: BinaryIO | None = None

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor; its name, dtype and shape must be those announced."""
        shard, entry = self._todo[self._next]
        assert (name, tensor.dtype, tuple(tensor.shape)) == (entry.name, entry.dtype, entry.shape), (name, entry)
        if self._next == 0 or self._todo[self._next - 1][0] != shard:
            self._open(shard)
        assert self._stream is not None
        if entry.num_bytes:
            self._stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._next += 1

    def finish(self) -> None:
        """Close the last shard and write the index where there are several."""
        assert self._next == len(self._todo), "tensors were announced and not written"
        self.close()
        if len(self._shards) > 1:
            weight_map = {entry.name: self._names[shard] for shard, entry in self._todo}
            total = sum(entry.num_bytes for _, entry in self._todo)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            atomic_write_json(self._directory / INDEX_NAME, index)

    def close(self) -> None:
        """Close the open shard."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, shard: int) -> None:
        self.close()
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for entry in self._shards[shard]:
            end = position + entry.num_bytes
            header[entry.name] = {
                "dtype": NAME_OF_DTYPE[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end],
            }  # fmt: skip
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins aligned
        self._stream = (self._directory / self._names[shard]).open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)


def _split(entries: Sequence[TensorEntry], shard_bytes: int) -> list[list[TensorEntry]]:
    # Wider dtypes first within a shard, as the format's own writer does, so that every tensor is aligned.
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    shards: list[list[TensorEntry]] = [[]]
    used = 0
    for entry in ordered:
        if shards[-1] and used + entry.num_bytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.num_bytes
    return shards


def _fsync_all(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    fsync_dir(directory)
