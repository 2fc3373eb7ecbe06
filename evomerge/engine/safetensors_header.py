"""Reading what a safetensors file declares, without reading its data and without torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import UserError

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
INDEX_ENDING = ".safetensors.index.json"
INDEX_NAME = "model" + INDEX_ENDING
MAIN_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in its file: bytes ``[start, end)`` from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.start

    @property
    def is_float(self) -> bool:
        """Whether merging can handle the stored dtype."""
        return self.dtype in FLOAT_DTYPES

    @property
    def is_number(self) -> bool:
        """Whether the stored dtype is a float of any width, so that the tensor is one to merge."""
        return self.is_float or self.dtype.startswith("F")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names and places of all tensors of a safetensors file.

    Raises:
        UserError: the file is not safetensors, is truncated, or declares something impossible.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ValueError(f"its header would be {length} bytes long")
            if 8 + length > file_bytes:
                raise ValueError(f"it is truncated: {file_bytes:,} bytes where its header alone has {8 + length:,}")
            entries = json.loads(stream.read(length), object_pairs_hook=_without_duplicates)
        infos = {name: _info(name, entry, 8 + length) for name, entry in entries.items() if name != "__metadata__"}
        _check_places(infos, file_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise UserError(f"{path}: not a readable safetensors file (its header is nested too deeply)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing in its header" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path}: not a readable safetensors file ({reason[:300]}). Download or save it again."
        ) from error
    return infos


def _info(name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name} is described by {type(entry).__name__} instead of an object")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"tensor {name} has the unknown dtype {dtype}")
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not whole or not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        raise ValueError(f"tensor {name} has the impossible shape {shape} or bytes {offsets}")
    start, end = offsets
    if end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"tensor {name} of shape {shape} does not fill bytes {start}..{end}")
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _check_places(infos: dict[str, TensorInfo], file_bytes: int) -> None:
    position, before = 0, ""
    for name, info in sorted(infos.items(), key=lambda entry: (entry[1].start, entry[1].end)):
        if info.end > file_bytes:
            raise ValueError(f"it is truncated: {file_bytes:,} bytes where tensor {name} ends at {info.end:,}")
        if info.start < position and info.num_bytes:
            raise ValueError(f"tensors {before} and {name} overlap")
        if info.num_bytes:
            position, before = info.end, name


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is described twice")
    return found


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model in a directory, in name order.

    Raises:
        UserError: there is none, or a shard named in the index is missing; says how to convert pickled weights.
    """
    if directory.is_file():
        return [directory]
    index = _find_index(directory)
    if index is not None:
        return _shards_of(index)
    for name in MAIN_FILES:
        if (directory / name).is_file():
            return [directory / name]
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1 and not found[0].name.startswith("adapter"):
        return found
    raise UserError(_no_weights(directory, found))


def _find_index(directory: Path) -> Path | None:
    if (directory / INDEX_NAME).is_file():
        return directory / INDEX_NAME
    if any((directory / name).is_file() for name in MAIN_FILES):
        return None
    found = sorted(directory.glob("*" + INDEX_ENDING))
    return found[0] if len(found) == 1 else None


def _shards_of(index: Path) -> list[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not shards or not all(isinstance(shard, str) for shard in shards):
            raise ValueError("its weight_map names no files")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"{index}: not a readable index of shards ({error or type(error).__name__}). Download it again."
        ) from error
    # A name from a file must not lead out of the folder; links are followed, hub caches are made of them.
    if outside := [shard for shard in shards if Path(shard).name != shard or shard in ("", ".", "..")]:
        raise UserError(
            f"{index}: names files outside its folder ({', '.join(map(repr, outside[:3]))}); expected plain file "
            "names. Do not use this checkpoint unless you know why."
        )
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise UserError(
            f"{index.parent}: shards named in {index.name} are missing: {', '.join(missing[:3])}. Download them again."
        )
    return [index.parent / shard for shard in shards]


def _no_weights(directory: Path, found: list[Path]) -> str:
    if any(path.name.startswith("adapter_model") for path in directory.glob("adapter_model.*")):
        return (
            f"{directory}: this is a LoRA adapter, not a model. Give its base model as `model` and this as `adapter`, "
            "for example {model: org/base, adapter: " + str(directory) + "}"
        )
    if found:
        return f"{directory}: several .safetensors files but no {INDEX_NAME}; it is unclear which make up the model"
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        return (
            f"{directory}: only pickled weights ({', '.join(pickled[:3])}), which can run code when opened and are not "
            "read. Convert them once: AutoModelForCausalLM.from_pretrained(dir).save_pretrained(new_dir)"
        )
    return f"{directory}: no model.safetensors and no {INDEX_NAME} there"
