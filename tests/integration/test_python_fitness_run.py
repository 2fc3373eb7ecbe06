"""The shipped experiments with python fitness, shortened: image classifiers, and accuracy against length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import ResumeRefused, UserError
from evomerge.experiment.evaluating import evaluate
from evomerge.store.event_log import EventLog
from evomerge.store.events import Evaluated, Failed, RunStarted

FITNESS = Path(__file__).resolve().parents[2] / "fitness"
QUICK = ["finish.bootstrap_samples=200", "finish.top_k=2", "finish.front_size=3", "finish.task_arithmetic=[0.7]"]


@pytest.fixture(scope="module")
def vision_run(vision_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "run"
    changes = ["budget.evaluations=12", "optimizer.population_size=6", *QUICK]
    assert evomerge.run("vision_digits", overrides=changes, run_dir=folder).exit_code == 0
    return folder


def test_digits_are_searched_and_scored_on_held_out_images(vision_run: Path) -> None:
    rows = json.loads((vision_run / "summary.json").read_text())["rows"]
    scores = {row["name"]: row["held_out"]["scores"] for row in rows if row.get("held_out")}
    low, high = scores["expert low"], scores["expert high"]
    assert low["digits_low"] > high["digits_low"] + 0.2
    assert high["digits_high"] > low["digits_high"] + 0.2
    log = EventLog(vision_run / "events.jsonl", writable=False).read()
    evaluated = [event for event in log if isinstance(event, Evaluated) and event.candidate is not None]
    assert len(evaluated) >= 12
    assert not [event for event in log if isinstance(event, Failed)]


def test_the_export_is_a_checkpoint_that_scores_the_same(vision_run: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from evomerge.evaluation.image_accuracy import image_accuracy
    from evomerge.evaluation.python_fitness import read_documents

    out = tmp_path / "digits"
    evomerge.export(vision_run, out)
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    assert AutoImageProcessor.from_pretrained(out).rescale_factor == 1 / 16
    listed = read_documents(str(FITNESS / "images" / "digits_low.held_out.jsonl"))
    found = image_accuracy(model, None, listed, 0, batch_size=128)
    scored = evaluate(out, "digits_low")
    assert scored.evaluation.fitness == (sum(found) / len(found),)
    assert 0.0 < scored.intervals["digits_low"].low < scored.intervals["digits_low"].high


def test_an_lm_eval_task_for_an_image_classifier_is_refused(vision_zoo: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="needs a language model with its tokenizer"):
        evaluate("zoo:digits-base", "micro_add")


def test_accuracy_and_length_are_two_objectives(counting_expert: Path, tmp_path: Path) -> None:
    roles = {"search": {"limit": 8}, "validation": {"limit": 8}, "held_out": {"limit": 8}}
    fitness: list[Any] = [{"preset": "micro_add_length", "documents": roles}]
    changes = ["budget.evaluations=6", "optimizer.population_size=3", f"fitness={json.dumps(fitness)}", *QUICK]
    assert evomerge.run("short_answers", overrides=changes, run_dir=tmp_path / "run").exit_code == 0
    started = next(
        event for event in EventLog(tmp_path / "run" / "events.jsonl", writable=False).read()
        if isinstance(event, RunStarted)
    )  # fmt: skip
    names = [(each.name, each.higher_is_better, each.weight) for each in started.objectives]
    assert names == [("micro_add_length/accuracy", True, 1.0), ("micro_add_length/tokens", False, 0.0)]
    assert tuple(started.reference_point) == (0.0, -40.0)
    rows = {row["name"]: row for row in json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]}
    length = {name: rows[name]["held_out"]["scores"]["micro_add_length/tokens"] for name in ("expert counting", "base")}
    assert length["expert counting"] > 2 * length["base"] > 0


MODULE = """
def halves(text):
    return len(text) / 2

def lengths(model, tokenizer, documents, seed):
    return [halves(document["text"]) for document in documents]
"""


def test_a_resume_refuses_a_changed_helper(vision_zoo: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "my_halves.py").write_text(MODULE)
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": "x" * size}) for size in range(4)))
    (tmp_path / "own.yaml").write_text(
        "name: own\n"
        "models: {base: zoo:digits-base, experts: {low: zoo:digits-low}}\n"
        "search_space: task_arithmetic_whole_model\n"
        "fitness: {python: my_halves:lengths, documents: {search: {path: texts.jsonl}}}\n"
        "optimizer: random\n"
        "budget: {evaluations: 1}\n"
        "runtime: {executor: inline, threads: 1}\n"
        "finish: {baselines: false}\n"
    )
    assert evomerge.run(tmp_path / "own.yaml", run_dir=tmp_path / "run").exit_code == 0
    (tmp_path / "my_halves.py").write_text(MODULE.replace("/ 2", "/ 3"))
    with pytest.raises(ResumeRefused, match="settings or code changed"):
        evomerge.resume(tmp_path / "run", overrides=["budget.evaluations=2"])
