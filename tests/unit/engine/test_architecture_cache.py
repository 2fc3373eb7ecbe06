"""What is found of an architecture is found once, and means the same when it is read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.engine import architecture
from evomerge.engine.architecture import Architecture, config_facts
from evomerge.engine.checkpoint import Checkpoint
from evomerge.engine.model_tensors import OpenModels

from .conftest import Family


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "architectures"


@pytest.fixture
def no_building(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        monkeypatch.setattr(architecture, "load_config", lambda _: pytest.fail("looked at the model again"))

    return forbid


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("tie", [None, False])
def test_read_back_it_is_the_same(
    kind: str, tie: bool | None, family_of: Callable[[str], Family], no_building: Callable[[], None]
) -> None:
    directory = family_of(kind).directory
    found, facts = Architecture.of_directory(directory, tie), config_facts(directory)
    assert found.model is not None
    no_building()
    again = Architecture.of_directory(directory, tie)
    assert again == found
    assert config_facts(directory) == facts
    if tie is None:  # an untied head that is not stored is a question to the model
        assert again.layout(Checkpoint(directory)).plain == found.layout(Checkpoint(directory)).plain


def test_another_configuration_or_version_is_another_entry(
    family: Family, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Architecture.of_directory(family.directory)
    assert len(list(empty_cache.iterdir())) == 1
    config = json.loads((family.directory / "config.json").read_text())
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert Architecture.of_directory(tmp_path / "deeper").num_blocks == found.num_blocks + 1
    monkeypatch.setattr("evomerge.engine.architecture_cache.version", lambda _: "0.0.1")
    Architecture.of_directory(family.directory)
    assert len(list(empty_cache.iterdir())) == 3


def test_names_that_are_not_the_models_own_are_looked_up(family_of: Callable[[str], Family]) -> None:
    directory = family_of("gpt_neox").directory  # whose head has another name on disk
    for _ in range(2):
        found = Architecture.of_directory(directory)
        assert found.layout(Checkpoint(directory)).plain["lm_head.weight"] == "embed_out.weight"


def test_a_damaged_entry_or_a_closed_folder_costs_only_time(family: Family, empty_cache: Path) -> None:
    found = Architecture.of_directory(family.directory)
    (entry,) = empty_cache.iterdir()
    for text in ("", "[1]", '{"slots": 3}', "{"):
        entry.write_text(text)
        assert Architecture.of_directory(family.directory) == found
    empty_cache.rename(empty_cache.with_name("elsewhere"))
    empty_cache.write_text("a file where the folder should be")
    assert Architecture.of_directory(family.directory) == found


def test_a_known_model_is_opened_without_transformers(family: Family) -> None:
    OpenModels(family.base, [source for _, source in family.experts])
    code = (
        "import sys; from evomerge.engine.model_tensors import OpenModels; from evomerge.recipes.recipe import Source; "
        f"OpenModels(Source({family.base.model!r}), [Source({family.experts[0][1].model!r})]); "
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
