"""A search whose scores are measured against an expert and bounded by constraints, on tiny real models."""

import json
from pathlib import Path

import optuna
import pytest
import yaml

import evomerge
from evomerge.errors import UserError
from evomerge.store.events import Asked, Calibrated, Evaluated
from tests.integration.conftest import EXPERIMENT
from tests.integration.test_tiny_run import events, sequence

CONSTRAINTS = ["micro_copy >= 0.5 * expert add", "micro_add >= 0.1"]


def write(path: Path, **changes: object) -> Path:
    experiment = {
        **EXPERIMENT,
        "optimizer": {"name": "cycleqd", "population_size": 3, "num_initial_random": 3, "bins": 4},
        "objectives": {"normalise": "base"},
        "constraints": CONSTRAINTS,
        "budget": {"evaluations": 6},
        "finish": {"top_k": 2, "task_arithmetic": [0.7], "bootstrap_samples": 200, "held_out": False},
        **changes,
    }
    path.write_text(yaml.safe_dump(experiment))
    return path


def cut(run_dir: Path, count: int) -> None:
    """Leave the log as a kill after ``count`` lines leaves it."""
    log = run_dir / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:count]) + lines[count][:20])
    (run_dir / "summary.json").unlink()


@pytest.fixture(scope="module")
def finished(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    assert evomerge.run(write(folder / "tiny.yaml"), run_dir=folder / "run").exit_code == 0
    return folder / "run"


def test_anchors_are_scored_and_recorded_before_the_first_candidate(finished: Path) -> None:
    log = events(finished)
    first_asked = next(place for place, event in enumerate(log) if isinstance(event, Asked))
    scored = {event.key: event.fitness for event in log[:first_asked] if isinstance(event, Evaluated)}
    assert set(scored) == {"baseline:base:search", "baseline:expert add:search", "baseline:expert let:search"}
    fixed = next(event for event in log[:first_asked] if isinstance(event, Calibrated))
    base, add = scored["baseline:base:search"], scored["baseline:expert add:search"]
    assert fixed.scales == base
    assert fixed.thresholds == (0.5 * add[1], 0.1)
    assert fixed.expert_fitness[0] == tuple(value / scale for value, scale in zip(add, base))
    assert log[0].constraints == tuple(CONSTRAINTS)
    assert log[0].normalise == ("base", "base")


def test_constraints_are_in_log_front_and_study(finished: Path) -> None:
    log = events(finished)
    fixed = next(event for event in log if isinstance(event, Calibrated))
    candidates = [event for event in log if isinstance(event, Evaluated) and event.candidate is not None]
    for event in candidates:
        expected = [(fixed.thresholds[0] - event.fitness[1]) / fixed.thresholds[0], (0.1 - event.fitness[0]) / 0.1]
        assert event.constraints == pytest.approx(expected)
    front = json.loads((finished / "front.json").read_text())
    assert front["constraints"] == CONSTRAINTS
    kept = {event.candidate for event in candidates if event.violation == 0}
    assert {entry["candidate"] for entry in front["front"] if entry["feasible"]} <= kept
    assert not kept or all(entry["feasible"] for entry in front["front"])
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(finished / "study.journal"))
    )
    trials = optuna.load_study(study_name="tiny", storage=storage).get_trials()
    by_candidate = {trial.user_attrs["candidate"]: trial for trial in trials}
    for event in candidates:
        trial = by_candidate[event.candidate]
        assert trial.system_attrs["constraints"] == list(event.constraints)  # the key the dashboard reads
        assert trial.user_attrs["feasible"] == (event.violation == 0)
        assert list(trial.constraints.values()) == list(event.constraints)


@pytest.mark.parametrize("lines", [2, 9])
def test_killed_and_resumed_equals_uninterrupted(finished: Path, tmp_path: Path, lines: int) -> None:
    """While the anchors are scored, and in the middle of a generation."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    cut(copy, lines)
    assert evomerge.resume(copy).exit_code == 0
    assert sequence(copy) == sequence(finished)
    assert sum(isinstance(event, Calibrated) for event in events(copy)) == 1


def test_a_share_of_zero_is_refused(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", objectives={"normalise": "expert let"}, constraints=[])
    experiment = yaml.safe_load(path.read_text())
    experiment["fitness"][0]["documents"]["search"] = {"limit": 1}
    path.write_text(yaml.safe_dump(experiment))
    with pytest.raises(UserError, match="scores 0 on the search documents, so no share"):
        evomerge.run(path, run_dir=tmp_path / "run")
