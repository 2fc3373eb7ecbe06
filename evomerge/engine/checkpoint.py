"""The tensors of one model on disk, memory-mapped: names, shapes and dtypes at once, data only when it is touched."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from evomerge.engine.safetensors_header import TensorInfo, read_header, weight_files
from evomerge.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


class MappedFile:
    """One safetensors file mapped into memory; tensors are views of the mapping and must not be written to.

    The mapping is private, so pages stay the page cache's and are shared by all processes that map the file.
    """

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            UserError: it is no readable safetensors file.
        """
        self.path = path
        self.infos = read_header(path)
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, name: str) -> Tensor:
        """The tensor as a view of the mapping."""
        info = self.infos[name]
        dtype = DTYPES[info.dtype]
        if info.num_bytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        if info.start % dtype.itemsize:  # legal in the format, though usual writers align
            data = bytearray(self._map[info.start : info.end])
            return torch.frombuffer(data, dtype=dtype).view(info.shape)
        count = info.num_bytes // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=info.start).view(info.shape)

    def release(self, name: str) -> None:
        """Let go of the pages of a tensor; it can still be read again."""
        info = self.infos[name]
        start = info.start - info.start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, info.end - start)


class Checkpoint:
    """All tensors of a model directory under the names they have on disk."""

    def __init__(self, directory: Path) -> None:
        """Read the headers of every shard.

        Raises:
            UserError: no safetensors weights, or a broken file.
        """
        self.directory = directory
        self._file_of: dict[str, MappedFile] = {}
        for path in weight_files(directory):
            file = MappedFile(path)
            for name in file.infos:
                if name in self._file_of:
                    raise UserError(f"{directory}: {name} is in both {self._file_of[name].path.name} and {path.name}")
                self._file_of[name] = file

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the files."""
        return tuple(self._file_of)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.info(name).num_bytes for name in self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor."""
        return self._file_of[name].infos[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Stored shape of a tensor."""
        return self.info(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a tensor."""
        return DTYPES[self.info(name).dtype]

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped; do not write to it."""
        return self._file_of[name].tensor(name)

    def release(self, name: str) -> None:
        """Let go of a tensor's pages, so that a walk over a large model keeps little of it resident."""
        self._file_of[name].release(name)
