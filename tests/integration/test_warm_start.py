"""A run that starts from the evaluations of another one: what it takes over and keeps, and what it refuses."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.errors import InvalidInput, UserError
from evomerge.store.events import Asked, WarmStarted
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import RunState, read_state
from tests.integration.conftest import EXPERIMENT


def write(folder: Path, name: str, **changes: Any) -> Path:
    experiment = copy.deepcopy(EXPERIMENT) | {"name": name, "finish": {"baselines": False, "held_out": False}} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def state_of(run_dir: Path) -> RunState:
    return read_state(RunDir.open(run_dir).event_log().read())


@pytest.fixture(scope="module")
def source(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished Sobol search of eight candidates."""
    folder = tmp_path_factory.mktemp("source")
    path = write(folder, "source", optimizer={"name": "sobol", "propose_initial": False}, budget={"evaluations": 8})
    assert evomerge.run(path, run_dir=folder / "run").exit_code == 0
    return folder / "run"


def test_a_warm_start_is_copied_and_replayed_without_the_other_run(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    optimizer = {"name": "map", "warm_start": str(other), "population_size": 2, "num_design": 6}
    path = write(tmp_path, "warm", optimizer=optimizer, budget={"evaluations": 5}, seed=11)
    assert evomerge.validate(path).kind == "experiment"
    assert evomerge.run(path, run_dir=tmp_path / "run").exit_code == 0
    known, state = state_of(source), state_of(tmp_path / "run")
    assert state.warm_start is not None
    assert state.warm_start.genotypes == tuple(record.asked.genotype for record in known.candidates)
    assert list(state.warm_start.fitness) == [record.fitness for record in known.candidates]
    # Eight points are more than the six unknowns: every candidate is on a predicted front, none is asked again.
    for record in state.candidates:
        assert "predicted_1" in record.asked.note
        assert record.asked.genotype not in state.warm_start.genotypes

    shutil.rmtree(other)
    before = RunDir.open(tmp_path / "run").event_log().read()
    assert evomerge.resume(tmp_path / "run", ["budget.evaluations=7"]).exit_code == 0
    after = RunDir.open(tmp_path / "run").event_log().read()
    assert after[: len(before)] == before
    assert sum(isinstance(event, WarmStarted) for event in after) == 1
    asked = [event for event in after if isinstance(event, Asked)]
    assert len(asked) == 7
    assert "predicted_0" in asked[-1].note


def test_a_warm_start_lost_in_a_crash_is_taken_again(source: Path, tmp_path: Path) -> None:
    """The one line that holds it is torn: nothing was asked yet, so the other run is read once more."""
    path = write(
        tmp_path, "torn", optimizer={"name": "map", "warm_start": str(source), "population_size": 2},
        budget={"evaluations": 2},
    )  # fmt: skip
    evomerge.run(path, run_dir=tmp_path / "run")
    whole = state_of(tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    lines = log.read_bytes().split(b"\n")
    assert b'"warm_started"' in lines[1]
    log.write_bytes(lines[0] + b"\n" + lines[1][:-20])
    evomerge.resume(tmp_path / "run")
    again = state_of(tmp_path / "run")
    assert again.warm_start == whole.warm_start
    assert [one.asked.genotype for one in again.candidates] == [one.asked.genotype for one in whole.candidates]


def test_what_scored_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    warm: dict[str, Any] = {"optimizer": {"name": "tpe", "warm_start": str(source)}}
    fitness = copy.deepcopy(EXPERIMENT["fitness"])
    fitness[0]["documents"]["search"]["limit"] = 7
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "documents": ({"fitness": fitness}, "(?s)scored something else.*micro_add.*search"),
        "objectives": ({"fitness": EXPERIMENT["fitness"][:1]}, "micro_add, micro_copy there, micro_add here"),
        "models": (
            {"models": EXPERIMENT["models"] | {"experts": {"add": "zoo:micro-add", "let": "zoo:micro-rev"}}},
            "model 'let' is another one",
        ),
        "genes": ({"search_space": "ties_whole_model"}, "genes: it has 2, this experiment"),
        "merge": (
            {"search_space": {"kind": "parameter_space", "method": "task_arithmetic", "parameters":
                {"coefficient": {"per": "expert", "low": 0.0, "high": 1.5}}, "fixed": {"lambda": 0.5}}},
            "candidate 0 is another merge here",
        ),
    }  # fmt: skip
    for name, (changes, message) in cases.items():
        with pytest.raises(UserError, match=message):
            evomerge.run(write(tmp_path, name, **warm, **changes), run_dir=tmp_path / name)
        assert not (tmp_path / name).exists()
    with pytest.raises(UserError, match="no evomerge run here"):
        evomerge.validate(write(tmp_path, "none", optimizer={"name": "map", "warm_start": str(tmp_path / "x")}))
    with pytest.raises(
        InvalidInput, match=r"nsga2 learns only from its own candidates. Use tpe, gp, map, bayesian_map."
    ):
        evomerge.validate(write(tmp_path, "unable", optimizer={"name": "nsga2", "warm_start": str(source)}))
