"""A whole search on tiny real models, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.errors import ResumeRefused, UserError
from evomerge.methods.own_method import load_own_spec
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, GenerationClosed, Told
from evomerge.store.run_dir import RunDir


def events(run_dir: Path) -> list[Any]:
    return EventLog(run_dir / "events.jsonl", writable=False).read()


def sequence(run_dir: Path) -> list[tuple[object, ...]]:
    """What was asked, scored and told on the search documents, times apart."""
    found: list[tuple[object, ...]] = []
    for event in events(run_dir):
        if isinstance(event, Asked):
            found.append(("asked", event.candidate, event.genotype, event.recipe_id))
        elif isinstance(event, Evaluated) and event.candidate is not None:
            found.append(("evaluated", event.candidate, event.fitness))
        elif isinstance(event, Told):
            found.append(("told", event.candidates))
    return found


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "evomerge", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


@pytest.fixture(scope="module")
def finished(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    from tests.integration.conftest import EXPERIMENT

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    result = evomerge.run(folder / "tiny.yaml", run_dir=folder / "run")
    assert result.exit_code == 0
    return folder / "run"


def test_the_study_is_written_anew_but_not_under_a_run_that_goes_on(finished: Path, tmp_path: Path) -> None:
    evaluated = [event for event in events(finished) if isinstance(event, Evaluated) and event.candidate is not None]
    assert evomerge.project(finished) >= len(evaluated)
    with closing(RunDir.open(finished, exclusive=True)):
        with pytest.raises(UserError, match="another run is using"):
            evomerge.project(finished)
        assert evomerge.project(finished, f"sqlite:///{tmp_path / 'study.db'}") >= len(evaluated)


def test_summary_has_winner_baselines_and_intervals(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    names = {row["name"] for row in summary["rows"] if row["kind"] == "baseline"}
    assert names == {
        "base", "expert add", "expert let", "uniform soup", "task arithmetic 0.7", "ties density 0.3",
    }  # fmt: skip
    winner = next(row for row in summary["rows"] if row["kind"] == "winner")
    held_out = winner["held_out"]
    assert held_out["low"] <= held_out["value"] <= held_out["high"]
    assert set(held_out["scores"]) == {"micro_add", "micro_copy"}
    assert len(summary["comparison"]) == len(names)
    assert summary["winner"]["chosen_on"] == "validation"
    assert summary["evaluations"] == 9


def test_winner_has_the_best_validation_score_of_the_finalists(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    rows = [row for row in summary["rows"] if row["kind"] in ("winner", "finalist")]
    assert len(rows) == 2
    best = max(rows, key=lambda row: row["validation"]["value"])
    assert best["validation"]["value"] == next(r for r in rows if r["kind"] == "winner")["validation"]["value"]


def test_front_best_and_study_are_there(finished: Path) -> None:
    front = json.loads((finished / "front.json").read_text())
    assert front["evaluations"] == 9
    assert front["hypervolume"] >= 0
    assert (finished / "best" / "recipe.yaml").exists()
    assert (finished / "study.journal").stat().st_size > 0
    assert [event.generation for event in events(finished) if isinstance(event, GenerationClosed)] == [0, 1, 2]


def test_the_export_scores_what_the_candidate_scored(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (out,) = evomerge.export(finished, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(out)
    winner = json.loads((finished / "summary.json").read_text())["winner"]["candidate"]
    fitness = yaml.safe_load((finished / "experiment.yaml").read_text())["fitness"]
    scored = evomerge.evaluate(str(out), fitness, "held_out")
    recorded = next(e for e in events(finished) if isinstance(e, Evaluated) and e.key == f"held_out:c{winner}")
    assert scored.evaluation.fitness == recorded.fitness
    card = (out / "README.md").read_text()
    assert "held-out" in card
    assert "recipe_id" in card


def test_any_candidate_and_the_front_can_be_exported(finished: Path, tmp_path: Path) -> None:
    (one,) = evomerge.export(finished, tmp_path / "one", candidate=3)
    assert (one / "model.safetensors").exists()
    members = evomerge.export(finished, tmp_path / "front", candidate="front")
    assert len(members) == len(evomerge.front(finished))
    with pytest.raises(UserError, match="no candidate 'c99'"):
        evomerge.export(finished, tmp_path / "none", candidate="c99")


def test_a_finished_run_goes_on_with_a_larger_budget(finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    before = sequence(copy)
    result = evomerge.resume(copy, ["budget.evaluations=12"])
    assert result.exit_code == 0
    after = sequence(copy)
    assert after[: len(before)] == before
    assert sum(entry[0] == "asked" for entry in after) == 12


def test_resume_refuses_another_experiment(finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    with pytest.raises(ResumeRefused, match=r"seed: was 11, is 12"):
        evomerge.resume(copy, ["seed=12"])
    text = (copy / "experiment.yaml").read_text()
    (copy / "experiment.yaml").write_text(text.replace("limit: 8", "limit: 7"))
    with pytest.raises(ResumeRefused, match="documents"):
        evomerge.resume(copy)


def test_killed_and_resumed_equals_uninterrupted(tiny: Path, finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start("run", tiny, "--out", run_dir, "--quiet")
    log = run_dir / "events.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b'"evaluated"') >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 2 <= log.read_bytes().count(b'"evaluated"') < 12
    assert evomerge.resume(run_dir).exit_code == 0
    assert sequence(run_dir) == sequence(finished)
    first, second = (json.loads((path / "summary.json").read_text()) for path in (run_dir, finished))
    assert first["rows"] == second["rows"]
    assert first["comparison"] == second["comparison"]


def test_sigterm_stops_within_ten_seconds_and_says_how_to_resume(tiny: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start("run", tiny, "--out", run_dir, "--set", "budget.evaluations=4000")
    log = run_dir / "events.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and b'"evaluated"' in log.read_bytes():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert f"evomerge resume {run_dir}" in " ".join(said.split())
    assert "Traceback" not in said


def test_two_runs_in_one_directory_are_refused(finished: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match="evomerge resume"):
        evomerge.run(tiny, run_dir=finished)


def test_a_method_in_the_users_file_is_searched_and_guarded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_methods", None)
    load_own_spec.cache_clear()
    page = (Path(evomerge.__file__).parents[1] / "docs" / "own_method.md").read_text()
    code, space = re.search(r"```python\n(.*?)```", page, re.DOTALL), re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert code is not None
    assert space is not None
    (tmp_path / "my_methods.py").write_text(code.group(1))
    experiment = yaml.safe_load(tiny.read_text()) | yaml.safe_load(space.group(1))
    experiment["search_space"]["groups"] = {"blocks": 2}
    experiment |= {"budget": {"evaluations": 4}, "finish": {"baselines": False, "top_k": 1}}
    tiny.write_text(yaml.safe_dump(experiment))
    assert evomerge.run(tiny, run_dir=tmp_path / "run").exit_code == 0
    scored = [event for event in events(tmp_path / "run") if isinstance(event, Evaluated)]
    assert len({event.fitness for event in scored if event.candidate is not None}) > 1
    (tmp_path / "my_methods.py").write_text(code.group(1) + "\n# changed\n")
    with pytest.raises(ResumeRefused, match="merge method my_methods:MEDIAN: its file differs"):
        evomerge.resume(tmp_path / "run", ["budget.evaluations=8"])
