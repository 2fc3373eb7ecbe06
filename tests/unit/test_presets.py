from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evomerge.presets import preset_dir

ROOT = Path(__file__).parents[2]


def test_a_checkout_reads_its_own_folders() -> None:
    assert preset_dir("search_spaces") == ROOT / "search_spaces"
    assert preset_dir("fitness") == ROOT / "fitness"


def test_a_wheel_carries_every_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from packaging_presets import FOLDERS, BuildWithPresets  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "packaging_presets")
    command = BuildWithPresets(setuptools.Distribution({"packages": ["evomerge"], "script_name": "setup.py"}))
    command.build_lib = str(tmp_path)
    command.ensure_finalized()
    command.run()
    for folder in FOLDERS:
        wanted = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        built = tmp_path / "evomerge" / "_presets"
        assert {path.relative_to(built) for path in (built / folder).rglob("*") if path.is_file()} == wanted
    assert (tmp_path / "evomerge" / "_presets" / "search_spaces" / "linear_soup.yaml").is_file()
    assert {str(tmp_path / "evomerge" / "_presets" / "search_spaces" / "linear_soup.yaml")} <= set(
        command.get_outputs()
    )
