"""What scores are divided by on documents that nobody searched."""

from pathlib import Path
from typing import Any

import yaml

from evomerge.experiment.load import Experiment, load_experiment
from evomerge.experiment.split_scales import SplitScales, anchor_models, split_scales
from evomerge.store.events import Evaluated, Failed
from evomerge.terms import FailureKind
from tests.unit.experiment.test_bad_input import GOOD


def load(folder: Path, normalise: str) -> Experiment:
    path = folder / "experiment.yaml"
    experiment: dict[str, Any] = {
        **GOOD,
        "fitness": ["micro_add", {"preset": "micro_copy", "normalise": "raw"}],
        "objectives": {"normalise": normalise},
    }
    path.write_text(yaml.safe_dump(experiment))
    return load_experiment(path)


def scored(name: str, fitness: tuple[float, ...]) -> dict[str, Evaluated | Failed]:
    key = f"baseline:{name}:held_out"
    return {key: Evaluated(key, None, "held_out", fitness)}


def test_the_anchor_on_the_same_documents_counts(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(tmp_path, "expert")
    assert anchor_models(loaded, loaded.rules.normalise) == ("expert add", "expert let")
    both = scored("expert add", (0.8, 0.1)) | scored("expert let", (0.6, 0.9))
    assert split_scales(loaded, both, "held_out", (0.5, 1.0)) == SplitScales((0.8, 1.0), ("held_out", ""))
    assert split_scales(loaded, both, "search", (0.5, 1.0)) == SplitScales((0.5, 1.0), ("search", ""))


def test_without_its_score_there_the_one_of_the_search_is_taken_and_said(
    micro_zoo: dict[str, Path], tmp_path: Path
) -> None:
    one = scored("expert add", (0.8, 0.1))
    failed = {"baseline:expert let:held_out": Failed("b", None, "held_out", FailureKind.TIMEOUT, "")}
    zero = scored("base", (0.0, 0.1))
    for outcomes, normalise in ((one, "expert"), (one | failed, "expert"), (zero, "base"), ({}, "base")):
        found = split_scales(load(tmp_path, normalise), outcomes, "held_out", (0.5, 1.0))
        assert found == SplitScales((0.5, 1.0), ("search", ""))
    assert split_scales(load(tmp_path, "base"), scored("base", (0.4, 0.1)), "held_out", (0.5, 1.0)).values == (0.4, 1.0)


def test_a_lowered_metric_is_divided_by_its_size(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    """Its fitness is negative; of two experts the one nearer to zero is the better one."""
    both = scored("expert add", (-2.0, 0.0)) | scored("expert let", (-3.0, 0.0))
    assert split_scales(load(tmp_path, "expert"), both, "held_out", (1.0, 1.0)).values == (2.0, 1.0)
