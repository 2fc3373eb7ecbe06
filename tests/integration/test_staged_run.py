"""A search of two stages on tiny real models: what is kept, what goes on after a kill, what later stages see."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.errors import InvalidInput, ResumeRefused, UserError
from evomerge.experiment.inspecting import open_run
from evomerge.experiment.stages import StagedExperiment, load_any
from evomerge.recipes.recipe import Merge, Route, Source
from evomerge.reports.progress import QuietView, Standing
from tests.integration.conftest import EXPERIMENT
from tests.integration.test_tiny_run import sequence


def staged(**changes: Any) -> dict[str, Any]:
    """Two small searches; the second one scores another task."""
    second = {
        "name": "second",
        "search_space": {
            "kind": "data_flow",
            "encoding": "slices",
            "num_slices": 2,
            "pool": ["first", "let"],
            "depths": {"first": 4, "let": 4},
        },
        "optimizer": {"name": "random"},
        "budget": {"evaluations": 3},
        "fitness": EXPERIMENT["fitness"][1],
        "scalarisation": "first",
    }
    space = {
        "kind": "sequence",
        "stages": [{"name": "first", "search_space": "task_arithmetic_whole_model"}, second],
    }
    return {**EXPERIMENT, "name": "staged", "search_space": space, "budget": {"evaluations": 5}, **changes}


@pytest.fixture(scope="module")
def experiment(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staged") / "staged.yaml"
    path.write_text(yaml.safe_dump(staged()))
    return path


class ListeningView(QuietView):
    def __init__(self) -> None:
        self.phases: list[str] = []

    def show(self, standing: Standing) -> None:
        self.phases.append(standing.phase)


@pytest.fixture(scope="module")
def finished(experiment: Path) -> Path:
    view = ListeningView()
    result = evomerge.run(experiment, run_dir=experiment.parent / "run", view=view)
    assert result.exit_code == 0
    assert [stage.run_dir.name for stage in result.earlier] == ["1-first"]
    assert view.phases[0] == "first (1/2): search"
    assert view.phases[-1] == "second (2/2): held-out"
    return result.run_dir


class Killed(BaseException):
    """Nothing in a run catches it: the files stay as they are at that moment."""


class KillingView(QuietView):
    """Kills the run as soon as a phase has so many evaluations."""

    def __init__(self, phase: str, done: int) -> None:
        self.phase, self.done = phase, done

    def show(self, standing: Standing) -> None:
        if standing.phase == self.phase and standing.done == self.done:
            raise Killed


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def compared(folder: Path) -> Any:
    """Everything a stage computed."""
    found = summary(folder)
    return sequence(folder), found["rows"], found["winner"], found["comparison"]


def test_each_stage_is_a_run_with_what_it_says_and_what_it_inherits(finished: Path) -> None:
    first, second = finished / "1-first", finished / "2-second"
    assert json.loads((finished / "stages.json").read_text())["stages"][1] == {"name": "second", "folder": "2-second"}
    assert [summary(folder)["evaluations"] for folder in (first, second)] == [5, 3]
    assert [summary(folder)["objectives"] for folder in (first, second)] == [
        ["micro_add", "micro_copy"],
        ["micro_copy"],
    ]
    assert summary(first)["name"] == "staged.first"
    seeds = [open_run(folder).experiment.config.seed for folder in (first, second)]
    assert len({*seeds, EXPERIMENT["seed"]}) == 3


def test_the_winner_of_a_stage_is_a_model_and_a_baseline_of_the_next(finished: Path) -> None:
    opened = open_run(finished / "1-first")
    winner = opened.recipe(opened.state.candidates[summary(finished / "1-first")["winner"]["candidate"]])
    assert open_run(finished / "2-second").experiment.stages == (("first", winner.model),)
    names = [row["name"] for row in summary(finished / "2-second")["rows"]]
    assert "stage first" in names
    assert not any(name.startswith("stage") for name in [row["name"] for row in summary(finished / "1-first")["rows"]])


def test_verbs_on_the_whole_run_mean_its_last_stage(finished: Path, tmp_path: Path) -> None:
    from evomerge.store.stage_list import stage_path

    assert [record.id for record in evomerge.front(finished)] == [
        record.id for record in evomerge.front(finished / "2-second")
    ]
    assert stage_path(finished, "first") == finished / "1-first"
    with pytest.raises(UserError, match=r"no stage .frist.\. Did you mean .first."):
        stage_path(finished, "frist")
    with pytest.raises(UserError, match="has no stages"):
        stage_path(finished / "1-first", "first")
    (out,) = evomerge.export(finished, tmp_path / "model")
    card = (out / "README.md").read_text()
    assert "staged.second" in card
    assert evomerge.project(finished) >= 3


def test_the_resolved_experiment_says_the_same(finished: Path, experiment: Path) -> None:
    from evomerge.experiment.stages import StagedExperiment, load_any

    written, again = load_any(experiment), load_any(finished / "experiment.yaml")
    assert isinstance(written, StagedExperiment)
    assert isinstance(again, StagedExperiment)
    assert again.resolved == written.resolved
    again.check_unchanged(written)


@pytest.mark.parametrize(("phase", "done"), [("first (1/2): search", 3), ("second (2/2): search", 1)])
def test_killed_within_a_stage_and_resumed_equals_uninterrupted(
    experiment: Path, finished: Path, tmp_path: Path, phase: str, done: int
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(Killed):
        evomerge.run(experiment, run_dir=run_dir, view=KillingView(phase, done))
    assert not (run_dir / "2-second" / "summary.json").exists()
    before = (run_dir / "1-first" / "events.jsonl").read_bytes()
    assert evomerge.resume(run_dir).exit_code == 0
    for folder in ("1-first", "2-second"):
        assert compared(run_dir / folder) == compared(finished / folder)
    if phase.startswith("second"):
        assert (run_dir / "1-first" / "events.jsonl").read_bytes() == before


def test_killed_between_stages_goes_on_with_the_next(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "2-second")
    (copy / "2-second").mkdir()  # made, but nothing in it yet
    assert [record.id for record in evomerge.front(copy)] == [record.id for record in evomerge.front(copy / "1-first")]
    before = (copy / "1-first" / "events.jsonl").read_bytes()
    assert evomerge.resume(copy).exit_code == 0
    assert (copy / "1-first" / "events.jsonl").read_bytes() == before
    assert compared(copy / "2-second") == compared(finished / "2-second")


def test_the_last_stage_goes_on_with_a_larger_budget_and_earlier_ones_stay(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    result = evomerge.resume(copy, ["search_space.stages.second.budget.evaluations=4", "budget.evaluations=7"])
    assert result.exit_code == 0
    assert [summary(copy / folder)["evaluations"] for folder in ("1-first", "2-second")] == [5, 4]
    assert sequence(copy / "2-second")[: len(sequence(finished / "2-second"))] == sequence(finished / "2-second")


def test_resume_refuses_another_experiment(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeRefused, match=r"second.optimizer.name: was \"random\", is \"sobol\""):
        evomerge.resume(finished, ["search_space.stages.second.optimizer.name=sobol"])
    with pytest.raises(UserError, match="evomerge resume"):
        evomerge.run(finished / "experiment.yaml", run_dir=finished)
    with pytest.raises(UserError, match="no evomerge run"):
        evomerge.run(finished / "experiment.yaml", run_dir=finished.parent)


def test_every_problem_of_every_stage_is_told_at_once(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    stages = [
        {"name": "add", "search_space": "task_arithmetic_whole_modell"},
        {"name": "first", "search_space": "task_arithmetic_whole_model", "optimizer": {"name": "cma_es", "sigma": -1}},
        {"name": "first", "search_space": {"kind": "sequence", "stages": []}, "fitness": "micro_ad"},
    ]
    space = {"kind": "sequence", "stages": stages}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(staged(search_space=space, budget={"evaluations": 0}, sed=3)))
    with pytest.raises(InvalidInput) as caught:
        evomerge.validate(path)
    told = [str(problem).removeprefix(f"{path}: ") for problem in caught.value.problems]
    for expected in (
        "search_space.stages[0].name: 'add' is the name of an expert",
        "search_space.stages[2].name: 'first' is the name of an earlier stage",
        "budget.evaluations",
        "sed: unknown key. Did you mean 'seed'?",
    ):
        assert sum(line.startswith(expected) for line in told) == 1, (expected, told)


def test_what_only_shows_with_valid_keys_is_told_with_its_stage(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    stages = [
        {
            "name": "one",
            "search_space": "task_arithmetic_whole_modell",
            "fitness": "micro_ad",
            "budget": {"evaluations": 2},
        },
        {
            "name": "two",
            "search_space": {"kind": "sequence", "stages": []},
            "optimizer": {"name": "cma_es", "sigma": -1},
            "budget": {"evaluations": 2},
        },
    ]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(staged(search_space={"kind": "sequence", "stages": stages})))
    with pytest.raises(InvalidInput) as caught:
        evomerge.validate(path)
    told = [str(problem).removeprefix(f"{path}: ") for problem in caught.value.problems]
    assert len(told) == 4, told
    for expected in (
        "budget: every stage has its own budget",
        "search_space.stages[0].search_space: no search space is called 'task_arithmetic_whole_modell'",
        "search_space.stages[0].fitness",
        "search_space.stages[1].search_space: kind: stages are written",
    ):
        assert sum(line.startswith(expected) for line in told) == 1, (expected, told)


def test_the_end_of_a_run_draws_routes_and_writes_a_report(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    first, second = copy / "1-first", copy / "2-second"
    assert not list((first / "figures").glob("route_*"))
    assert 'href="../2-second/report.html"' in (second.parent / "1-first" / "report.html").read_text()
    opened = open_run(second)
    winner = opened.recipe(opened.state.candidates[summary(second)["winner"]["candidate"]])
    assert isinstance(winner.model, Route)
    drawn = (second / "figures" / "route_best.svg").read_text()
    assert drawn.count('id="hop-') == len(winner.model.hops)
    page = (second / "report.html").read_text()
    assert "Paths through the blocks" in page
    assert "stage first" in page
    assert re.findall(r"(?:src|href)=\"(?!#)([^\"]*)", page) == ["../1-first/report.html"]  # nothing from elsewhere
    before = {path.name: path.read_bytes() for path in (second / "figures").iterdir()}
    assert "route_best.svg" in before
    (second / "figures" / "route_c99.svg").write_text("of an earlier front")
    (second / "report.html").unlink()
    written = evomerge.report(copy, ["svg"])
    assert written[0].read_text() == page.replace(str(finished), str(copy))
    assert {path.name: path.read_bytes() for path in (second / "figures").iterdir()} == before
    (second / "report.html").unlink()
    (second / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write the report"):
        evomerge.report(copy)
    assert not list(second.glob(".report*"))


def test_a_run_can_be_scored_on_other_documents(finished: Path) -> None:
    fitness = EXPERIMENT["fitness"][1]
    row = next(row for row in summary(finished / "2-second")["rows"] if row["kind"] == "winner")
    assert evomerge.evaluate(finished, fitness, "held_out").evaluation.fitness == (row["held_out"]["value"],)


def test_a_later_stage_may_merge_what_an_earlier_one_found(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    mapping = staged(finish={"baselines": False, "top_k": 1, "held_out": False}, budget={"evaluations": 4})
    second = mapping["search_space"]["stages"][1]
    second |= {"search_space": "task_arithmetic_whole_model", "experts": ["first", "let"]}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(mapping))
    assert evomerge.run(path, run_dir=tmp_path / "run").exit_code == 0
    opened = open_run(tmp_path / "run")
    merged = opened.recipe(opened.state.candidates[0]).model
    assert isinstance(merged, Merge)
    assert merged.experts == (opened.experiment.stages[0], ("let", Source("zoo:micro-let")))
    for experts, message in ((["frist"], "there is no model 'frist'. Did you mean 'first'"), (["let"] * 2, "twice")):
        second["experts"] = experts
        path.write_text(yaml.safe_dump(mapping))
        with pytest.raises(InvalidInput, match=rf"stages\[1\].experts: .*{message}"):
            evomerge.validate(path)
    mapping = staged()
    mapping["search_space"]["stages"][1]["experts"] = ["first"]
    path.write_text(yaml.safe_dump(mapping))
    with pytest.raises(InvalidInput, match=r"stages\[1\].experts: only counts for a parameter space"):
        evomerge.validate(path)


def test_a_value_changed_for_one_stage_leaves_it_the_rest_of_what_it_inherits(experiment: Path) -> None:
    overrides = ["search_space.stages.0.finish.top_k=2", "search_space.stages.second.finish.baselines=false"]
    loaded = load_any(experiment, overrides)
    assert isinstance(loaded, StagedExperiment)
    first, second = (stage.loaded.config.finish for stage in loaded.stages)
    inherited = load_any(experiment).stages[0].loaded.config.finish  # type: ignore[union-attr]
    assert first == inherited.model_copy(update={"top_k": 2})
    assert second == inherited.model_copy(update={"baselines": False})
