"""Every shipped experiment is valid; sources, durations and sizes are read as documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from evomerge.errors import InvalidInput
from evomerge.experiment.baselines import baseline_recipes
from evomerge.experiment.config import FinishConfig, ModelsConfig, parse_bytes, parse_duration
from evomerge.experiment.stages import StagedExperiment, resolve_any
from evomerge.experiment.writing import format_experiment
from evomerge.presets import preset_dir
from evomerge.recipes.recipe import Merge, Source
from evomerge.recipes.validate import recipe_problems
from evomerge.yaml_files import parse_yaml_mapping, read_yaml_mapping

EXPERIMENTS = sorted(preset_dir("experiments").rglob("*.yaml"))


def test_there_are_experiments() -> None:
    names = {path.stem for path in EXPERIMENTS}
    assert {"quickstart", "cross_lingual_math", "nsga2_zoo", "evollm_jp_ps"} <= names


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path: Path, micro_zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    try:
        loaded = resolve_any(read_yaml_mapping(path), str(path), path.parent)
    except InvalidInput as error:
        if any("evomerge zoo build" not in str(problem) for problem in error.problems):
            raise
        return  # the large zoo need not be built where tests run
    written = parse_yaml_mapping(format_experiment(loaded.resolved), "again")
    again = resolve_any(written, "again", path.parent)
    assert again.resolved == loaded.resolved
    if isinstance(loaded, StagedExperiment):
        assert isinstance(again, StagedExperiment)
        again.check_unchanged(loaded)
    else:
        assert not isinstance(again, StagedExperiment)
        assert again.fingerprint == loaded.fingerprint


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400), (7, 7)])
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_bad_durations_and_sizes() -> None:
    assert parse_bytes("1.5GB") == 1_500_000_000
    for bad in ("2 fortnights", "h", "1h and a bit"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(bad)
    with pytest.raises(ValueError, match="size"):
        parse_bytes("many")


def test_models_from_text_list_and_mapping() -> None:
    models = ModelsConfig.model_validate({"experts": ["org/a@v1", "./b"]})
    assert list(models.experts) == ["a", "b"]
    assert models.experts["a"].source() == Source("org/a", "v1")
    with pytest.raises(ValidationError, match="same last path part"):
        ModelsConfig.model_validate({"experts": ["x/a", "y/a"]})


def test_baselines_are_valid_recipes() -> None:
    experts = (("a", Source("ma")), ("b", Source("mb")), ("c", Source("mc")))
    found = baseline_recipes(Source("base"), experts, FinishConfig(), None)
    assert list(found) == [
        "base", "expert a", "expert b", "expert c", "uniform soup",
        "task arithmetic 0.5", "task arithmetic 0.7", "task arithmetic 1", "ties density 0.3",
    ]  # fmt: skip
    assert len({recipe.recipe_id for recipe in found.values()}) == len(found)
    for recipe in found.values():
        assert not recipe_problems(recipe, "baseline")
        assert recipe.reference == Source("base")
    assert isinstance(found["uniform soup"].model, Merge)
    assert set(baseline_recipes(None, experts, FinishConfig(), None)) == {
        "expert a", "expert b", "expert c", "uniform soup",
    }  # fmt: skip
