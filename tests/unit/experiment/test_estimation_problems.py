"""What keeps an experiment from estimating is said before anything is scored."""

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
    mapping = {**copy.deepcopy(EXPERIMENT), "estimation": {}, **changes}
    path = tmp_path / "estimation.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


@pytest.fixture(autouse=True)
def zoo(micro_zoo: dict[str, Path]) -> None:
    """The models the experiment names."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"racing": {}}, "Drop `racing` or `estimation`"),
        ({"optimizer": {"name": "cma_es", "mode": "steady_state"}}, "steady_state` has none"),
        ({"optimizer": "gp"}, "gp learns from all values it was ever told"),
        ({"optimizer": "map_elites"}, "use random, sobol, nsga2, nsga3, ga, cma_pareto."),
        (
            {"finish": {"baselines": False}, "estimation": {"full_generations": 0}},
            "0 models would be scored on all documents before the first estimate",
        ),
        ({"finish": {"baselines": False}, "estimation": {"estimator": "mp_irt"}}, "`finish.baselines: true`"),
        ({"estimation": {"estimator": "guess"}}, "p_irt"),
        ({"estimation": {"documents": 1.5}}, "expected a number of documents, or a share"),
        ({"estimation": {"documents": 0}}, "expected a number of documents, or a share"),
        ({"fitness": [{"cost": "num_hops"}]}, "no fitness is one"),
    ],
)
def test_what_cannot_be_estimated_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_experiment(written(tmp_path, **changes))
    assert message in str(caught.value)
    assert "estimation" in str(caught.value)


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"14 documents can be chosen from, at least 16 are needed"):
        validate(written(tmp_path))
    several = [{**entry, "documents": {"search": {"limit": 20}}} for entry in EXPERIMENT["fitness"]]
    found = validate(written(tmp_path, fitness=several)).lines
    assert "estimation (p_irt): candidates are scored on 12 of 40 documents" in found
    with pytest.raises(InvalidInput, match="40 of 40 documents would be scored"):
        validate(written(tmp_path, fitness=several, estimation={"documents": 40}))


def test_it_can_be_switched_off_and_is_read_back_alike(tmp_path: Path) -> None:
    assert load_experiment(written(tmp_path, estimation="off")).config.estimation is None
    loaded = load_experiment(written(tmp_path, estimation={"drift": False}))
    assert loaded.config.estimation is not None
    assert loaded.config.estimation.drift == "off"
    assert loaded.resolved["estimation"]["drift"] == "off"
