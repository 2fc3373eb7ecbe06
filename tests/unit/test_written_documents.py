"""What the documents say exists, does."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    named = re.findall(
        r"`((?:evomerge|search_spaces|fitness|experiments|tests|scripts|docs)/[\w./-]*)`", document.read_text()
    )
    missing = [path for path in named if not (ROOT / path).exists() and "<" not in path]
    assert not missing


def test_the_page_of_methods_is_what_the_methods_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_methods_doc.py"))
    assert script["TARGET"].read_text() == script["document"](), "run scripts/make_methods_doc.py"


def test_every_key_of_an_experiment_is_documented() -> None:
    from evomerge.experiment.config import BudgetConfig, ExperimentConfig, FinishConfig, RuntimeConfig

    text = (ROOT / "docs" / "experiments.md").read_text()
    keys = [
        name
        for name in ExperimentConfig.model_fields
        if name not in ("models", "optimizer", "budget", "runtime", "finish")
    ]
    for prefix, model in (("budget", BudgetConfig), ("runtime", RuntimeConfig), ("finish", FinishConfig)):
        keys += [f"{prefix}.{name}" for name in model.model_fields]
    assert not [key for key in keys if f"`{key}`" not in text]


def test_every_key_of_racing_is_documented() -> None:
    from evomerge.experiment.config import RacingConfig

    experiments, racing = ((ROOT / "docs" / name).read_text() for name in ("experiments.md", "racing.md"))
    keys = list(RacingConfig.model_fields)
    assert not [key for key in keys if f"`racing.{key}`" not in racing or f"`{key}`" not in experiments]


def test_every_key_of_a_fitness_is_documented() -> None:
    from evomerge.evaluation.fitness_yaml import FitnessConfig

    text = (ROOT / "docs" / "experiments.md").read_text()
    hidden = ("description", "documents")
    assert not [name for name in FitnessConfig.model_fields if f"`{name}`" not in text and name not in hidden]


def test_yaml_in_documents_parses() -> None:
    blocks = [block for path in DOCUMENTS for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)]
    assert blocks
    for block in blocks:
        assert isinstance(yaml.safe_load(block), dict)
