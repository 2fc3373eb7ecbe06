from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.errors import UserError
from evomerge.zoo import catalogue


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    return tmp_path


def put(name: str, **changes: object) -> Path:
    directory = catalogue.zoo_dir() / name
    directory.mkdir(parents=True)
    manifest = {"name": name, "version": catalogue.CATALOGUE[name].version, **changes}
    (directory / catalogue.MANIFEST).write_text(json.dumps(manifest))
    return directory


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert catalogue.zoo_dir() == tmp_path / "zoo"
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert catalogue.zoo_dir() == tmp_path / "xdg" / "evomerge" / "zoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert catalogue.zoo_dir() == tmp_path / "home" / ".cache" / "evomerge" / "zoo"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'spanish'"):
        catalogue.locate("spannish")
    with pytest.raises(UserError, match="Did you mean 'micro'"):
        catalogue.expand("mirco")


def test_missing_model_names_the_command_that_builds_it() -> None:
    with pytest.raises(UserError, match="evomerge zoo build math-en"):
        catalogue.locate("math-en")


def test_a_folder_without_a_manifest_is_not_a_model() -> None:
    (catalogue.zoo_dir() / "spanish").mkdir(parents=True)
    assert not catalogue.is_built("spanish")
    (catalogue.zoo_dir() / "spanish" / catalogue.MANIFEST).write_text('{"name": "spa')
    assert not catalogue.is_built("spanish")


def test_complete_model_is_found_and_an_old_recipe_is_not() -> None:
    directory = put("spanish")
    assert catalogue.locate("spanish") == directory
    put("capitals", version=0)
    assert not catalogue.is_built("capitals")


def test_expand_puts_parents_first() -> None:
    assert [model.name for model in catalogue.expand("spanish")] == ["smollm2-135m", "spanish"]
    assert [model.name for model in catalogue.expand("micro-count")] == ["micro-base", "micro-count"]
    assert "micro-count" not in [model.name for model in catalogue.expand("micro")]
    everything = [model.name for model in catalogue.expand("all")]
    assert sorted(everything) == sorted(catalogue.CATALOGUE)
    for model in catalogue.CATALOGUE.values():
        if model.parent:
            assert everything.index(model.parent) < everything.index(model.name)
            assert catalogue.CATALOGUE[model.parent].group == model.group.removesuffix("-lora")
