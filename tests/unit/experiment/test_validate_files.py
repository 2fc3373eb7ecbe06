"""`validate` tells what a file is, also by a path relative to where one stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import evomerge

FILES = {
    "search space": "kind: data_flow\nencoding: sequence\n",
    "recipe": "route: {models: {a: ./a.safetensors}, ends: a, hops: [[a, 0], [a, 0, 0.5]]}\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_files_in_a_folder_are_found_and_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.yaml").write_text(FILES[kind])
    save_file({"layers.0.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    assert evomerge.validate("folder/file.yaml").kind == kind
