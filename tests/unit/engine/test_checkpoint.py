from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from evomerge.engine.checkpoint import Checkpoint
from evomerge.engine.shard_writer import ShardWriter, TensorEntry, plan_shards
from evomerge.errors import UserError

TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "full": torch.arange(7, dtype=torch.float32),
    "scalar": torch.tensor(2.5, dtype=torch.float16),
    "empty": torch.empty(0, 4),
}


def write(directory: Path, shard_bytes: int) -> None:
    directory.mkdir(exist_ok=True)
    entries = [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    writer = ShardWriter(directory, plan_shards(entries, shard_bytes))
    for entry in writer.entries:
        writer.write(entry.name, TENSORS[entry.name])
    writer.finish()


@pytest.mark.parametrize("shard_bytes", [10**9, 30])
def test_written_shards_read_back(tmp_path: Path, shard_bytes: int) -> None:
    write(tmp_path, shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes == 10**9)
    theirs = {name: tensor for path in files for name, tensor in safetensors.torch.load_file(path).items()}
    ours = Checkpoint(tmp_path)
    assert set(ours.names) == set(theirs) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours.tensor(name), tensor)
        assert (ours.dtype(name), ours.info(name).shape) == (tensor.dtype, tuple(tensor.shape))


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        checkpoint.release(name)
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_misaligned_tensor_is_read(tmp_path: Path) -> None:
    entries = {"a": ("U8", [1], [0, 1]), "b": ("F32", [2], [1, 9])}
    keys = ("dtype", "shape", "data_offsets")
    header = json.dumps({name: dict(zip(keys, entry, strict=True)) for name, entry in entries.items()}).encode()
    data = b"\x05" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert Checkpoint(tmp_path).tensor("b").tolist() == [1.5, -2.0]


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10**9)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="truncated"):
        Checkpoint(tmp_path)
