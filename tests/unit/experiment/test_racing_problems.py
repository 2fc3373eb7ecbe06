"""What keeps an experiment from racing is said before anything is scored."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InvalidInput
from evomerge.experiment.load import load_experiment
from evomerge.experiment.validate import validate
from tests.integration.conftest import EXPERIMENT


def written(tmp_path: Path, **changes: Any) -> Path:
    mapping = {**copy.deepcopy(EXPERIMENT), "racing": {}, **changes}
    path = tmp_path / "racing.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


@pytest.fixture(autouse=True)
def zoo(micro_zoo: dict[str, Path]) -> None:
    """The models the experiment names."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "gp"}, "gp needs the real fitness of every candidate"),
        ({"optimizer": "map_elites"}, "with several objectives: random, sobol, nsga2, nsga3, ga, cma_pareto"),
        ({"optimizer": "tpe"}, "tpe needs the real fitness"),
        ({"constraints": ["micro_add >= 0.1"]}, "could not be ranked"),
        ({"scalarisation": "harmonic_mean"}, "no sum over documents"),
        ({"optimizer": "nsga2", "racing": {"rule": "halving"}}, "halving compares one number"),
        ({"racing": {"level": 0.7}}, "expected a probability between 0 and 0.5"),
        ({"racing": {"first": 0}}, "expected a number of documents"),
        ({"racing": {"rule": "quick"}}, "betting"),
    ],
)
def test_what_cannot_race_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_experiment(written(tmp_path, **changes))
    assert message in str(caught.value)
    assert "racing" in str(caught.value)


def test_too_few_documents_and_corpus_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"14 documents can be scored by parts.*32 are needed"):
        validate(written(tmp_path))
    several = [{**entry, "documents": {"search": {"limit": 20}}} for entry in EXPERIMENT["fitness"]]
    found = validate(written(tmp_path, fitness=several)).lines
    assert any(line.startswith("racing (betting): candidates may stop after 16, ") for line in found)
    with pytest.raises(InvalidInput, match="fewer than all 40 documents"):
        validate(written(tmp_path, fitness=several, racing={"first": 40}))


@pytest.mark.parametrize("value", [False, "off", None])
def test_it_can_be_switched_off(tmp_path: Path, value: Any) -> None:
    path = written(tmp_path, racing=value)
    assert load_experiment(path).config.racing is None
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(EXPERIMENT))
    assert load_experiment(path).fingerprint == load_experiment(plain).fingerprint
    assert (
        load_experiment(written(tmp_path, racing="on")).config.racing
        == load_experiment(written(tmp_path)).config.racing
    )
