"""Writing a checkpoint tensor by tensor into sharded safetensors."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from evomerge.engine.checkpoint import DTYPES
from evomerge.files import atomic_write_json

DEFAULT_SHARD_BYTES = 5_000_000_000
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


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint.

    Attributes:
        file: its name.
        entries: its tensors in order.
    """

    file: str
    entries: tuple[TensorEntry, ...]

    @cached_property
    def header(self) -> bytes:
        """Everything before the data: length and JSON."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for entry in self.entries:
            end = position + entry.num_bytes
            header[entry.name] = {
                "dtype": NAME_OF_DTYPE[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end],
            }  # fmt: skip
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins aligned
        return len(text).to_bytes(8, "little") + text

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(entry.num_bytes for entry in self.entries)


def plan_shards(
    entries: Sequence[TensorEntry], shard_bytes: int = DEFAULT_SHARD_BYTES, stem: str = "model"
) -> tuple[Shard, ...]:
    """Decide which tensor goes into which file.

    Args:
        entries: every tensor; wider dtypes come first in the files, else the order stays.
        shard_bytes: largest shard; a single larger tensor gets a shard of its own.
        stem: beginning of the file names.
    """
    parts = _split(entries, shard_bytes)
    if len(parts) == 1:
        return (Shard(f"{stem}.safetensors", tuple(parts[0])),)
    count = len(parts)
    return tuple(
        Shard(f"{stem}-{number:05d}-of-{count:05d}.safetensors", tuple(part)) for number, part in enumerate(parts, 1)
    )


class ShardWriter:
    """Writes tensors in a fixed order into safetensors shards; only the tensor at hand is in memory.

    Attributes:
        entries: every tensor that is to be written, in the order in which ``write`` expects them.
    """

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        kept: Container[str] = (),
        finished: Callable[[Shard, int], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            directory: where to write.
            shards: all files of the checkpoint.
            kept: names of files that are there already.
            finished: called with each shard that is on the disk and the CRC-32 of its file.
        """
        self._directory, self._shards, self._finished = directory, shards, finished
        self._todo = [(shard, entry) for shard in shards if shard.file not in kept for entry in shard.entries]
        self.entries = [entry for _, entry in self._todo]
        self._next = 0
        self._stream: BinaryIO | None = None
        self._open_shard: Shard | None = None
        self._checksum = 0

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor; its name, dtype and shape must be those announced."""
        shard, entry = self._todo[self._next]
        assert (name, tensor.dtype, tuple(tensor.shape)) == (entry.name, entry.dtype, entry.shape), (name, entry)
        if self._open_shard is not shard:
            self._stream, self._open_shard, self._checksum = (self._directory / shard.file).open("wb"), shard, 0
            self._append(shard.header)
        if entry.num_bytes:
            self._append(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._next += 1
        if self._next == len(self._todo) or self._todo[self._next][0] is not shard:
            self._finish_shard()

    def finish(self) -> None:
        """Write the index where there are several shards."""
        assert self._next == len(self._todo), "tensors were announced and not written"
        if len(self._shards) > 1:
            weight_map = {entry.name: shard.file for shard in self._shards for entry in shard.entries}
            total = sum(entry.num_bytes for shard in self._shards for entry in shard.entries)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            stem = self._shards[0].file.rpartition("-of-")[0].rpartition("-")[0]
            atomic_write_json(self._directory / f"{stem}.safetensors.index.json", index)

    def close(self) -> None:
        """Close an unfinished shard."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _append(self, data: bytes | memoryview) -> None:
        assert self._stream is not None
        self._checksum = zlib.crc32(data, self._checksum)
        self._stream.write(data)

    def _finish_shard(self) -> None:
        assert self._stream is not None
        assert self._open_shard is not None
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.close()
        if self._finished is not None:
            self._finished(self._open_shard, self._checksum)


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
