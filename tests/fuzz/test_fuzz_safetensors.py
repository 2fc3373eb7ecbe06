"""Damaged safetensors files: refused by name, or every tensor they declare can be read."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from evomerge.engine.checkpoint import Checkpoint
from evomerge.errors import UserError

SEEDS = range(100)
SECONDS = 1.0
TENSORS = {
    "layers.0.weight": torch.arange(60.0).view(6, 10),
    "layers.1.weight": torch.arange(60.0).view(6, 10).bfloat16(),
    "layers.1.bias": torch.arange(10, dtype=torch.int32),
    "flag": torch.tensor(True),
    "none": torch.empty(0, 3),
}
WHOLE = save(TENSORS)
LENGTHS = (0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, 90_000_000)
WRONG: tuple[Any, ...] = (None, -1, 1.5, "x", [], {}, True, 10**30, [[1]], [0, 2**62], "F4", [1, 2, 3], [-4, 4], "F32")


def damaged(seed: int) -> bytes:
    draw = random.Random(seed)
    length = int.from_bytes(WHOLE[:8], "little")
    kind = draw.choice(("cut", "bytes", "length", "header", "entry", "shift", "append"))
    if kind == "cut":
        return WHOLE[: draw.randrange(len(WHOLE))]
    if kind == "bytes":
        data = bytearray(WHOLE)
        for _ in range(draw.randint(1, 30)):
            data[draw.randrange(8 + length if draw.random() < 0.8 else len(data))] = draw.randrange(256)
        return bytes(data)
    if kind == "length":
        number = draw.choice((*LENGTHS, draw.randrange(2 * length)))
        return number.to_bytes(8, "little") + WHOLE[8:]
    if kind == "append":
        return WHOLE + draw.randbytes(draw.randrange(100))
    header = json.loads(WHOLE[8 : 8 + length])
    name = draw.choice([name for name in header if name != "__metadata__"])
    if kind == "header":
        header[draw.choice((name, "", "../x", "new", "__metadata__"))] = draw.choice(WRONG)
    elif kind == "entry":
        header[name][draw.choice(("dtype", "shape", "data_offsets", "more"))] = draw.choice(WRONG)
    else:
        size = draw.randint(-80, 80)
        header[name]["data_offsets"] = [offset + size for offset in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + WHOLE[8 + length :]


def read_all(folder: Path) -> str:
    """Read every tensor; returns why the file was refused, if it was."""
    try:
        checkpoint = Checkpoint(folder)
    except UserError as error:
        return str(error)
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        assert tuple(tensor.shape) == checkpoint.shape(name)
        tensor.float().sum()
        checkpoint.release(name)
    return ""


@pytest.mark.parametrize("part", range(5))
def test_damaged_files(part: int, tmp_path: Path) -> None:
    refused = 0
    for seed in [seed for seed in SEEDS if seed % 5 == part]:
        (tmp_path / "model.safetensors").write_bytes(damaged(seed))
        began = time.perf_counter()
        try:
            told = read_all(tmp_path)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        if told:
            refused += 1
            assert "model.safetensors" in told
            assert len(told) < 2000
        assert time.perf_counter() - began < SECONDS, f"seed {seed}"
    assert refused > 5


def test_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "header",
    [b"[" * 1_000_000, b'{"a":' * 100_000, b"{" + b'"x":1,' * 100_000 + b'"y":1}', b"9" * 1_000_000, b"\xff" * 1000],
    ids=["lists", "objects", "repeated names", "number", "no text"],
)
def test_hostile_headers(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Checkpoint(tmp_path)
    assert time.perf_counter() - began < 2 * SECONDS
