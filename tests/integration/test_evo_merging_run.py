"""Evo-Merging's two stages on adapters of the micro model: what is penalised, and what the second stage starts from."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.experiment.inspecting import open_run
from evomerge.experiment.stages import load_any
from evomerge.recipes.recipe import Merge, Recipe
from evomerge.recipes.resolve import resolve_values
from evomerge.zoo import micro_lora
from evomerge.zoo.micro import MicroRun
from tests.integration.conftest import EXPERIMENT


def penalty(parameter: str) -> dict[str, Any]:
    return {"cost": "mean_magnitude", "parameter": parameter, "weight": 0.15}


def stage(name: str, penalised: str, **space: Any) -> dict[str, Any]:
    settings = {"population_size": 4, "sigma": 0.05, "lr_adapt": False, "propose_initial": True}
    return {
        "name": name,
        "search_space": {"kind": "parameter_space", "method": "evo_merging", **space},
        "fitness": [EXPERIMENT["fitness"][0], penalty(penalised)],
        "optimizer": {"name": "cma_es", **settings},
    }


@pytest.fixture(scope="module")
def experiment(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evo")
    runs = {"micro-lora-add": MicroRun({"add": 1.0}, 2, 4e-3, 12), "micro-lora-noise": MicroRun({}, 0, 0.0, 15)}
    with pytest.MonkeyPatch.context() as patch:
        for name, run in runs.items():
            patch.setitem(micro_lora.RUNS, name, run)
            (root / name).mkdir()
            micro_lora.build(name, root / name, lambda *_: None)
    stages = [
        stage("denoise", "keep", parameters={"keep": {}}, fixed={"scale": 0.5}),
        stage("scale", "scale", parameters={"scale": {}}, values_from="denoise"),
    ]
    experts = {name.rpartition("-")[2]: {"model": "zoo:micro-base", "adapter": str(root / name)} for name in runs}
    mapping = {key: value for key, value in EXPERIMENT.items() if key not in ("fitness", "optimizer", "search_space")}
    mapping |= {
        "models": {"base": "zoo:micro-base", "experts": experts},
        "search_space": {"kind": "sequence", "stages": stages},
        "budget": {"evaluations": 5},
        "finish": {"baselines": False, "held_out": False, "top_k": 1},
    }
    path = root / "evo.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def numbers(recipe: Any, name: str) -> tuple[float, ...]:
    assert isinstance(recipe.model, Merge)
    found: tuple[float, ...] = resolve_values(recipe.model, "t", 0, "mlp", 4)[name]
    return found


def test_two_stages(experiment: Path) -> None:
    result = evomerge.run(experiment, run_dir=experiment.parent / "run")
    assert result.exit_code == 0
    first, second = (open_run(result.run_dir / folder) for folder in ("1-denoise", "2-scale"))
    for opened, penalised in ((first, "keep"), (second, "scale")):
        for candidate in opened.state.candidates:
            values = numbers(opened.recipe(candidate), penalised)
            assert candidate.fitness is not None
            assert candidate.fitness[1] == pytest.approx(-sum(map(abs, values)) / len(values))
    start = first.recipe(first.state.candidates[0])
    assert (numbers(start, "keep"), numbers(start, "scale")) == ((1.0, 1.0), (0.5, 0.5))
    ((name, found),) = second.experiment.stages
    assert name == "denoise"
    recipes = [second.recipe(candidate) for candidate in second.state.candidates]
    for parameter in ("keep", "scale"):  # a second stage that finds nothing better ends where the first one did
        assert numbers(recipes[0], parameter) == numbers(Recipe(found), parameter)
    assert {numbers(recipe, "keep") for recipe in recipes} == {numbers(recipes[0], "keep")}
    assert len({numbers(recipe, "scale") for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (1, {"values_from": "denoize"}, "no earlier stage is called 'denoize'. Did you mean 'denoise'"),
        (0, {"values_from": "scale"}, "There is no earlier stage"),
        (1, {"method": "ties", "parameters": {"density": {}}}, "what stage denoise finds does not fit"),
        (1, {"after": [{"method": "lines"}]}, "does not go with values_from"),
    ],
)
def test_values_from_something_else_are_refused(
    stage: int, change: dict[str, Any], message: str, experiment: Path, tmp_path: Path
) -> None:
    mapping = yaml.safe_load(experiment.read_text())
    mapping["search_space"]["stages"][stage]["search_space"] |= change
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(mapping))
    with pytest.raises(evomerge.errors.InvalidInput) as caught:
        load_any(tmp_path / "bad.yaml")
    assert message in str(caught.value)


def test_a_penalty_needs_a_hyperparameter(experiment: Path, tmp_path: Path) -> None:
    mapping = yaml.safe_load(experiment.read_text())
    fitness = mapping["search_space"]["stages"][0]["fitness"]
    for wrong, message in (
        ({"parameter": "kep"}, "Did you mean 'keep'"),
        ({"parameter": None}, "`parameter` is missing"),
    ):
        fitness[1] = penalty("keep") | wrong
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(mapping))
        with pytest.raises(evomerge.errors.InvalidInput) as caught:
            load_any(tmp_path / "bad.yaml")
        assert message in str(caught.value)
