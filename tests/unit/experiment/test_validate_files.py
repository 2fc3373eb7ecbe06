"""`validate` tells what a file is, also by a path relative to where one stands."""

from __future__ import annotations

from pathlib import Path

import pytest

import evomerge

FILES = {
    "search space": "kind: data_flow\nencoding: sequence\n",
    "recipe": "route: {models: {a: ./a}, ends: a, hops: [[a, 0], [a, 0, 0.5]]}\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_files_in_a_folder_are_found_and_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.yaml").write_text(FILES[kind].replace("./a", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert evomerge.validate("folder/file.yaml").kind == kind


def test_a_stack_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(f"stack: [{{from: {tmp_path}, blocks: [0, 1]}}]\n")
    assert evomerge.validate(path).kind == "recipe"
