"""A search for a front on tiny real models: scored again at the end, shown with how sure it is, exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import evomerge
from evomerge.cli.main import app
from evomerge.errors import UserError
from evomerge.experiment.front_view import FrontPoint
from evomerge.experiment.inspecting import open_run
from evomerge.store.events import Evaluated
from evomerge.zoo.micro_lessons import PROMPTS, training_questions
from tests.integration.conftest import EXPERIMENT
from tests.integration.test_tiny_run import events

SKILLS = {"adding": "add", "letters": "let"}
FRONT_SIZE = 4


def write_documents(folder: Path) -> None:
    for name, skill in SKILLS.items():
        questions = training_questions(skill)[:36]
        rows = [
            {"id": place, "prompt": PROMPTS[skill](item.question), "answer": item.answer + "\n"}
            for place, item in enumerate(questions)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_experiment(folder: Path, **changes: object) -> Path:
    def fitness(name: str) -> dict[str, object]:
        path = str(folder / f"{name}.jsonl")
        roles = {
            "search": {"path": path, "limit": 12},
            "validation": {"path": path, "skip": 12, "limit": 12},
            "held_out": {"path": path, "skip": 24},
        }
        return {"name": name, "python": "two_losses:minus_losses", "documents": roles, "reference": -20.0}

    experiment = {
        **EXPERIMENT,
        "name": "two_losses",
        "fitness": [fitness(name) for name in SKILLS],
        "optimizer": {"name": "nsga2", "population_size": 8},
        "objectives": {"normalise": "expert"},
        "budget": {"evaluations": 16},
        "import_paths": [str(Path(__file__).parent)],
        "finish": {**EXPERIMENT["finish"], "front_size": FRONT_SIZE, "bootstrap_samples": 500},
        **changes,
    }
    path = folder / "front.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture(scope="module")
def finished(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    write_documents(folder)
    result = evomerge.run(write_experiment(folder), run_dir=folder / "run")
    assert result.exit_code == 0
    return folder / "run"


def summary_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def test_the_front_is_scored_again_on_both_other_splits(finished: Path) -> None:
    view = evomerge.front_view(finished)
    assert len(view.members) > FRONT_SIZE
    scored = [point for point in view.members if "held_out" in point.splits]
    assert len(scored) == FRONT_SIZE
    assert {point.name for point in scored} == {point.name for point in view.members if "validation" in point.splits}
    assert view.best in {point.candidate for point in scored}
    outcomes = {event.key: event for event in events(finished) if isinstance(event, Evaluated)}
    for point in scored:
        recorded = outcomes[f"held_out:{point.name}"].fitness
        assert tuple(score.value for score in point.splits["held_out"].scores) == recorded
        for score in point.splits["held_out"].scores:
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high
            assert score.low < score.high
    for baseline in view.baselines:
        ahead = [
            point.name
            for point in scored
            if all(a >= b for a, b in zip(_values(point), _values(baseline))) and _values(point) != _values(baseline)
        ]
        assert list(baseline.splits["held_out"].dominated_by) == ahead
    assert view.splits == ("search", "validation", "held_out")


def _values(point: FrontPoint) -> list[float]:
    return [score.value for score in point.splits["held_out"].scores]


def test_while_the_search_goes_on_there_is_a_front_of_what_was_scored(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    for count in (1, 3, len(lines) // 2):
        (copy / "events.jsonl").write_bytes(b"".join(lines[:count]))
        view = evomerge.front_view(copy)
        assert [point.name for point in view.members] == [f"c{record.id}" for record in evomerge.front(copy)]
        assert view.splits == (("search",) if view.members else ())
        assert CliRunner().invoke(app, ["front", str(copy)]).exit_code == 0
    assert view.members
    assert view.knee in {point.candidate for point in view.members}
    assert all(not point.splits["search"].is_behind for point in view.members)
    assert all(0.0 <= (point.splits["search"].probability or -1.0) <= 1.0 for point in view.members)


def shares(run_dir: Path, split: str) -> dict[str, float]:
    """Mean share of the best expert's score on the same documents, by key."""
    outcomes = {event.key: event.fitness for event in events(run_dir) if isinstance(event, Evaluated)}
    experts = [outcomes[f"baseline:expert {name}:{split}"] for name in ("add", "let")]
    scales = [abs(max(scores)) for scores in zip(*experts)]
    found = {key: fitness for key, fitness in outcomes.items() if key.startswith(f"{split}:c")}
    return {key: sum(value / scale for value, scale in zip(fitness, scales)) / 2 for key, fitness in found.items()}


def test_summary_holds_the_front_and_the_winner_is_the_best_on_validation(finished: Path) -> None:
    summary = summary_of(finished)
    front = summary["front"]
    counts = front["counts"]
    assert counts["held_out"]["scored"] == counts["validation"]["scored"] == FRONT_SIZE
    assert 1 <= counts["held_out"]["not_behind"] <= FRONT_SIZE
    validated, held_out = shares(finished, "validation"), shares(finished, "held_out")
    assert max(validated, key=lambda key: validated[key]) == f"validation:c{front['best']}"
    assert front["knee_split"] == "validation"
    assert f"validation:c{front['knee']}" in validated
    assert len([point for point in front["points"] if point["kind"] == "baseline"]) == 6
    assert summary["normalised_on"] == {split: [split] * 2 for split in ("search", "validation", "held_out")}
    winner = next(row for row in summary["rows"] if row["kind"] == "winner")
    assert winner["held_out"]["value"] == pytest.approx(held_out[f"held_out:c{front['best']}"], rel=1e-9)
    assert winner["held_out"]["low"] < winner["held_out"]["value"] < winner["held_out"]["high"]


@pytest.mark.parametrize("last", ["validation:c", "held_out:c"])
def test_killed_while_finishing_and_resumed_gives_the_same_front(finished: Path, tmp_path: Path, last: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    log = copy / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    cut = [place for place, line in enumerate(lines) if f'"key":"{last}'.encode() in line.replace(b": ", b":")][1]
    log.write_bytes(b"".join(lines[:cut]) + lines[cut][:30])
    (copy / "summary.json").unlink()
    assert evomerge.resume(copy).exit_code == 0
    first, second = summary_of(finished), summary_of(copy)
    assert first["front"] == second["front"]
    assert first["rows"] == second["rows"]
    assert (finished / "front.json").read_text() == (copy / "front.json").read_text()


def test_knee_and_members_can_be_exported(finished: Path, tmp_path: Path) -> None:
    view = evomerge.front_view(finished, num_resamples=0)
    (knee,) = evomerge.export(finished, tmp_path / "knee", candidate="knee")
    assert f"Candidate {view.knee} " in (knee / "README.md").read_text()
    written = evomerge.export(finished, tmp_path / "all", candidate="front")
    assert [path.name for path in written] == [f"candidate{point.candidate}" for point in view.members]
    with pytest.raises(UserError, match="best, knee, front, or a number"):
        evomerge.export(finished, tmp_path / "none", candidate="nee")


def test_the_experiment_is_read_once_for_many_recipes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_run(finished)
    first = opened.recipe(opened.state.candidates[0])
    (finished / "experiment.yaml").rename(finished / "away.yaml")
    try:
        assert next(opened.recipe(record) for record in opened.state.candidates) == first
    finally:
        (finished / "away.yaml").rename(finished / "experiment.yaml")


def test_the_front_can_be_seen_where_the_models_are_gone(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    text = (copy / "experiment.yaml").read_text()
    (copy / "experiment.yaml").write_text(text.replace("zoo:micro-add", "./not/there"))
    assert evomerge.front_view(copy) == evomerge.front_view(finished)


def test_the_command_line_shows_the_front(finished: Path) -> None:
    def shown(*options: str) -> str:
        result = CliRunner().invoke(app, ["front", str(finished), *options], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        return result.output

    view = evomerge.front_view(finished, num_resamples=0)
    text = shown("--knee", "--baselines")
    assert "held-out documents" in text
    assert f"chosen: candidate {view.knee}" in text
    assert "uniform soup" in text
    assert "\nuniform soup" in text
    assert "\nuniform soup" not in shown()
    data = json.loads(shown("--json", "--prefer", "1,0"))
    adding = {point["candidate"]: point["splits"]["search"]["scores"]["adding"]["value"] for point in data["points"]}
    assert data["chosen"] == max(adding, key=lambda key: adding[key])
    rows = shown("--csv").splitlines()
    assert len(rows) == 1 + len(view.members)
    assert "held_out:adding:low" in rows[0]
    refused = CliRunner().invoke(app, ["front", str(finished), "--knee", "--prefer", "1,1"])
    assert isinstance(refused.exception, UserError)
