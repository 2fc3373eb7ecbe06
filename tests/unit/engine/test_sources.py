from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from evomerge.engine.sources import describe_source, fingerprint, resolve_source
from evomerge.errors import UserError
from evomerge.recipes.recipe import Source

from .conftest import Family


def test_local_directory_is_itself(family: Family) -> None:
    assert resolve_source(family.base) == family.directory
    status = describe_source(family.base)
    assert (status.state, status.path, status.ready) == ("local", family.directory, True)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c"])
def test_missing_directory_is_named(name: str) -> None:
    with pytest.raises(UserError, match="no such directory"):
        resolve_source(Source(name))
    assert describe_source(Source(name)).state == "missing"


def test_hub_id_that_is_not_cached_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'some-org/some-model' at revision 'v1' is neither .* nor in the hub cache"):
        resolve_source(Source("some-org/some-model", revision="v1"))
    assert describe_source(Source("some-org/some-model")).state == "missing"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert describe_source(Source("some-org/some-model")).state == "to_download"


def test_hub_id_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: Family) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some-org--some-model"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(family.directory, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert describe_source(Source("some-org/some-model")).state == "cached"
    assert resolve_source(Source("some-org/some-model")) == snapshot
    (snapshot / "model.safetensors").unlink()  # a download that was cut off
    assert describe_source(Source("some-org/some-model")).state == "missing"


def test_unknown_zoo_model() -> None:
    with pytest.raises(UserError, match="zoo"):
        resolve_source(Source("zoo:no-such-model"))
    assert describe_source(Source("zoo:no-such-model")).state == "missing"


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        resolve_source(Source(str(tmp_path)))


def test_adapter_given_as_model_is_explained(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="LoRA adapter, not a model"):
        resolve_source(Source(str(tmp_path)))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model-00001-of-00002"):
        resolve_source(Source(str(tmp_path)))


def test_fingerprint_follows_content_not_place(family: Family, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(family.directory, copy)
    assert fingerprint(Source(str(copy))) == fingerprint(family.base)
    assert fingerprint(family.experts[0][1]) != fingerprint(family.base)
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"\x07")
    assert fingerprint(Source(str(copy))) != fingerprint(family.base)


@pytest.mark.parametrize("data", [b"", b"\x00" * 7, b"\xff" * 64, (5).to_bytes(8, "little") + b"[1,2]"])
def test_broken_weight_file_is_named(data: bytes, family: Family, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(family.directory, copy)
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        fingerprint(Source(str(copy)))
