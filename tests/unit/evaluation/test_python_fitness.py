"""Fitness from a user's function."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InvalidInput, UserError
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.evaluator import Evaluator, EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.terms import FailureKind

MODULE = """
import torch

def lengths(model, tokenizer, documents, seed):
    return [len(document["text"]) + seed for document in documents]

def norm(model, tokenizer, documents, seed):
    return float(sum(parameter.float().norm() for parameter in model.parameters()))

def forwards(model, tokenizer, documents, seed):
    for document in documents:
        model(input_ids=torch.tensor([tokenizer.encode(document["text"])]))
    return {"a": [1.0] * len(documents), "b": 2}

def too_few(model, tokenizer, documents, seed):
    return [1.0]

def words(model, tokenizer, documents, seed):
    return "good"

def nan(model, tokenizer, documents, seed):
    return float("nan")

def breaks(model, tokenizer, documents, seed):
    raise KeyError("lost")

def measured(model, tokenizer, documents, seed, *, offset, batch_size, folder=None, factor=1):
    good = [len(document["text"]) for document in documents]
    return {"good": good, "bad": batch_size * factor + offset + len(folder)}

def out_of_memory(model, tokenizer, documents, seed):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "my_scores.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import gone_module\n")
    lines = [json.dumps({"id": f"d{index}", "text": "x" * (index + 1)}) for index in range(6)]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    yield tmp_path
    for name in ("my_scores", "my_broken"):
        sys.modules.pop(name, None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def build(
    folder: Path, model: Any, tokenizer: Any, function: str, with_documents: bool = True, **more: Any
) -> Evaluator:
    spec: dict[str, Any] = {"python": f"my_scores:{function}", "name": function, **more}
    if with_documents:
        roles = {"search": {"limit": 3}, "held_out": {"skip": 3}}
        spec["documents"] = {role: {"path": "documents.jsonl", **choice} for role, choice in roles.items()}
    configs = load_fitness(spec, base_dir=folder)
    paths = (str(folder),)
    evaluator = build_evaluator(configs, plan_documents(configs, paths), EvaluatorSettings(import_paths=paths))
    evaluator.bind(model, tokenizer)
    return evaluator


def test_one_number_a_document(folder: Path, model: Any, tokenizer: Any) -> None:
    evaluation = build(folder, model, tokenizer, "lengths").evaluate("search", seed=10)
    assert evaluation.fitness == (12.0,)
    [table] = evaluation.document_scores
    assert table.document_ids == ("d0", "d1", "d2")
    assert list(table.values) == [11.0, 12.0, 13.0]


def test_lower_may_be_better(folder: Path, model: Any, tokenizer: Any) -> None:
    evaluator = build(folder, model, tokenizer, "lengths", higher_is_better=False)
    assert evaluator.evaluate("held_out").fitness == (-5.0,)
    assert evaluator.objectives[0].natural(-5.0) == 5.0


def test_one_number_without_documents(folder: Path, model: Any, tokenizer: Any) -> None:
    evaluator = build(folder, model, tokenizer, "norm", with_documents=False)
    evaluation = evaluator.evaluate("validation")
    assert evaluation.fitness[0] > 0.0
    assert evaluation.document_scores == ()


def test_several_objectives_and_the_time_in_the_model(folder: Path, model: Any, tokenizer: Any) -> None:
    evaluator = build(folder, model, tokenizer, "forwards", objectives=["b", "a"])
    assert [objective.name for objective in evaluator.objectives] == ["forwards/b", "forwards/a"]
    evaluation = evaluator.evaluate("search")
    assert evaluation.fitness == (2.0, 1.0)
    assert evaluation.seconds.forward > 0.0


@pytest.mark.parametrize(
    ("function", "kind", "told"),
    [
        ("too_few", FailureKind.EXCEPTION, "expected 3 values, one a document, got shape (1,)"),
        ("words", FailureKind.EXCEPTION, "expected a number"),
        ("nan", FailureKind.NON_FINITE, "is nan"),
        ("breaks", FailureKind.EXCEPTION, "KeyError: 'lost'"),
        ("out_of_memory", FailureKind.OUT_OF_MEMORY, "out of memory"),
    ],
)
def test_a_function_that_fails_is_a_status(
    folder: Path, model: Any, tokenizer: Any, function: str, kind: FailureKind, told: str
) -> None:
    evaluation = build(folder, model, tokenizer, function).evaluate("search")
    assert evaluation.failure is not None
    assert evaluation.failure.kind is kind
    assert told in evaluation.failure.message
    assert f"fitness {function}, search" in evaluation.failure.message
    assert evaluation.fitness == ()


def test_a_missing_objective_is_a_status(folder: Path, model: Any, tokenizer: Any) -> None:
    evaluation = build(folder, model, tokenizer, "forwards", objectives=["a", "c"]).evaluate("search")
    assert evaluation.failure is not None
    assert "'c' is missing" in evaluation.failure.message


def test_a_split_without_documents_is_a_user_error(folder: Path, model: Any, tokenizer: Any) -> None:
    evaluator = build(folder, model, tokenizer, "lengths")
    assert evaluator.splits == ("search", "held_out")
    with pytest.raises(UserError, match="'lengths' has no validation documents"):
        evaluator.evaluate("validation")


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ("my_scores:length", "has no function 'length'. Did you mean 'lengths'?"),
        ("my_broken:go", "cannot import 'my_broken': ModuleNotFoundError: No module named 'gone_module'"),
        ("gone_scores:go", "cannot import 'gone_scores'"),
    ],
)
def test_functions_that_cannot_be_imported_are_user_errors(folder: Path, python: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan_documents(load_fitness({"python": python}), (str(folder),))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "the file is empty"), ("{}\nnot json\n", "line 2: not JSON"), ("[1]\n", "expected a JSON object")],
)
def test_bad_documents_are_named(folder: Path, text: str, told: str) -> None:
    (folder / "bad.jsonl").write_text(text)
    spec = {"python": "my_scores:lengths", "documents": {"search": {"path": "bad.jsonl"}}}
    with pytest.raises(InvalidInput) as caught:
        plan_documents(load_fitness(spec, base_dir=folder), (str(folder),))
    assert told in str(caught.value)
    assert "bad.jsonl" in str(caught.value)


def test_a_changed_function_is_noticed(folder: Path) -> None:
    spec = {"python": "my_scores:norm"}
    before = plan_documents(load_fitness(spec), (str(folder),))
    sys.modules.pop("my_scores")
    (folder / "my_scores.py").write_text(MODULE.replace("norm()", "abs().max()"))
    after = plan_documents(load_fitness(spec), (str(folder),))
    assert before.differences(after) == ["fitness 'my_scores.norm': the task's settings or code changed"]


def test_each_objective_has_its_direction(folder: Path, model: Any, tokenizer: Any) -> None:
    objectives = {"b": {"direction": "minimize", "weight": 0, "reference": 9}, "a": "maximize"}
    evaluator = build(folder, model, tokenizer, "forwards", objectives=objectives, weight=3)
    assert [(each.name, each.higher_is_better, each.weight) for each in evaluator.objectives] == [
        ("forwards/b", False, 0.0), ("forwards/a", True, 3.0),
    ]  # fmt: skip
    assert evaluator.evaluate("search").fitness == (-2.0, 1.0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"objectives": {"a": "up"}}, "maximize"),
        ({"objectives": {"a": {"direction": "minimize", "wieght": 1}}}, "wieght"),
        ({"objectives": {"a": "minimize"}, "higher_is_better": False}, "drop `higher_is_better`"),
        ({"objectives": ["a"], "reference": 3}, "reference: 64"),
    ],
)
def test_bad_objectives_are_refused(folder: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_fitness({"python": "my_scores:forwards", **more})
    assert told in str(caught.value)


def test_a_direction_s_reference_reaches_the_hypervolume(folder: Path, model: Any, tokenizer: Any) -> None:
    from evomerge.experiment.cost_objectives import reference_point_of

    spec = {
        "python": "my_scores:forwards",
        "objectives": {"b": {"direction": "minimize", "reference": 9}, "a": "maximize"},
    }
    configs = load_fitness(spec)
    paths = (str(folder),)
    objectives = build_evaluator(
        configs, plan_documents(configs, paths), EvaluatorSettings(import_paths=paths)
    ).objectives
    assert reference_point_of(objectives, configs, ()) == (-9.0, 0.0)
    assert load_fitness(configs[0].model_dump(mode="json", exclude_defaults=True)) == configs


def test_arguments_folder_and_batch_size_are_given(folder: Path, model: Any, tokenizer: Any) -> None:
    more = {"objectives": ["good", "bad"], "arguments": {"offset": 1000}}
    evaluator = build(folder, model, tokenizer, "measured", batch_size=8, **more)
    length = len(str(folder))
    assert evaluator.evaluate("search").fitness == (2.0, 8 + 1000 + length)
    evaluator.set_batch_size(4)
    assert evaluator.evaluate("search").fitness == (2.0, 4 + 1000 + length)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"offset": 1, "fcator": 2}, "takes no argument 'fcator'. Did you mean 'factor'?"),
        ({}, "needs 'offset'; give it in `arguments: {offset: ...}`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(folder: Path, arguments: dict[str, Any], told: str) -> None:
    spec = {"python": "my_scores:measured", "objectives": ["good", "bad"], "arguments": arguments}
    spec["documents"] = {"search": {"path": "documents.jsonl"}}
    with pytest.raises(InvalidInput) as caught:
        plan_documents(load_fitness(spec, base_dir=folder), (str(folder),))
    assert told in str(caught.value)


def test_a_changed_helper_beside_the_function_is_noticed(folder: Path) -> None:
    spec = {"python": "my_scores:norm"}
    before = plan_documents(load_fitness(spec), (str(folder),))
    (folder / "my_scores.py").write_text(MODULE.replace("len(document", "2 * len(document"))
    after = plan_documents(load_fitness(spec), (str(folder),))
    assert before.differences(after) == ["fitness 'my_scores.norm': the task's settings or code changed"]


def test_swapped_objectives_are_noticed(folder: Path) -> None:
    plans = [
        plan_documents(load_fitness({"python": "my_scores:forwards", "objectives": given}), (str(folder),))
        for given in ({"a": "maximize", "b": "minimize"}, {"b": "minimize", "a": "maximize"})
    ]
    assert plans[0].differences(plans[1])
