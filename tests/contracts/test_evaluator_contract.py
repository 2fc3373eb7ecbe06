"""What every evaluator must hold: fixed objectives and documents, scores of the weights alone, failures as a status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.evaluation.documents import DocumentPlan, plan_documents
from evomerge.evaluation.evaluator import Evaluator, EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import FitnessConfig, load_fitness
from evomerge.terms import Evaluation, FailureKind

SPREAD = """
import torch

def spread(model, tokenizer, documents, seed):
    ids = [tokenizer(document["text"], return_tensors="pt").input_ids for document in documents]
    return [float(model(input_ids=one).logits[0, -1].float().std()) for one in ids]
"""


def few(name: str, **more: Any) -> dict[str, Any]:
    return {"preset": name, "documents": {"search": {"split": "search", "limit": 20}}, **more}


FITNESSES: dict[str, list[Any]] = {
    "generation": [few("micro_add")],
    "multiple_choice": [few("micro_copy")],
    "several_tasks": [few("micro_let"), few("micro_copy"), few("micro_add")],
    "exact": [few("micro_add", exact=True), few("micro_copy", exact=True)],
    "python": [{"python": "contract_spread:spread", "documents": {"search": {"path": "texts.jsonl"}}}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("python_fitness")
    (made / "contract_spread.py").write_text(SPREAD)
    (made / "texts.jsonl").write_text("".join(json.dumps({"text": f"{number}+1="}) + "\n" for number in range(5)))
    yield made
    sys.modules.pop("contract_spread", None)
    sys.path[:] = [path for path in sys.path if path != str(made)]


@pytest.fixture(scope="module")
def models(micro_zoo: dict[str, Path]) -> dict[str, Any]:
    """The micro base and two experts, in float32, and their tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = [name for name in micro_zoo if name.startswith("micro")]
    loaded = {name: AutoModelForCausalLM.from_pretrained(micro_zoo[name], dtype=torch.float32).eval() for name in names}
    return {**loaded, "tokenizer": AutoTokenizer.from_pretrained(micro_zoo[names[0]])}


@pytest.fixture(scope="module", params=list(FITNESSES))
def case(request: pytest.FixtureRequest, folder: Path) -> tuple[list[FitnessConfig], DocumentPlan, EvaluatorSettings]:
    configs = load_fitness(FITNESSES[request.param], base_dir=folder)
    paths = (str(folder),)
    return configs, plan_documents(configs, paths), EvaluatorSettings(import_paths=paths)


def experts(models: dict[str, Any]) -> tuple[Any, Any]:
    first, second = [model for name, model in models.items() if name not in ("tokenizer", "micro-base")][:2]
    return first, second


def bound(case: Any, models: dict[str, Any]) -> tuple[Evaluator, Any]:
    configs, plan, settings = case
    first, _ = experts(models)
    model = type(first)(first.config).eval()
    model.load_state_dict(first.state_dict())
    model.generation_config = first.generation_config
    evaluator = build_evaluator(configs, plan, settings)
    evaluator.bind(model, models["tokenizer"])
    return evaluator, model


@pytest.fixture(scope="module")
def ready(case: Any, models: dict[str, Any]) -> tuple[Evaluator, Any]:
    """One bound evaluator for the tests that leave it and its model as they were."""
    return bound(case, models)


def numbers(evaluation: Evaluation) -> list[list[float]]:
    tables = evaluation.document_scores
    columns = [column for table in tables for column in (table.values, *table.extra.values())]
    return [list(evaluation.fitness), *(column.tolist() for column in columns)]


def test_one_finite_value_for_each_objective(case: Any, ready: Any, models: dict[str, Any]) -> None:
    evaluator, _ = ready
    evaluation = evaluator.evaluate("search")
    assert evaluation.ok, evaluation.failure
    assert len(evaluation.fitness) == len(evaluator.objectives) == len(case[0])
    assert np.isfinite(evaluation.fitness).all()
    assert [objective.name for objective in evaluator.objectives] == [config.name for config in case[0]]
    assert evaluation.seconds.forward > 0.0
    assert evaluation.seconds.metric >= 0.0


def test_documents_are_those_of_the_plan_in_its_order(case: Any, ready: Any, models: dict[str, Any]) -> None:
    evaluator, _ = ready
    for table, fitness in zip(evaluator.evaluate("search").document_scores, case[1].fitness, strict=True):
        assert table.objective == fitness.name
        assert table.document_ids == fitness.document_ids("search")
        assert table.values.shape == (len(table.document_ids),)


def test_scores_follow_the_weights_and_nothing_else(case: Any, ready: Any, models: dict[str, Any]) -> None:
    evaluator, model = ready
    own = evaluator.evaluate("search")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(experts(models)[1].state_dict())
    other = evaluator.evaluate("search")
    model.load_state_dict(kept)
    again = evaluator.evaluate("search")
    assert numbers(other) != numbers(own)
    assert again.fitness == own.fitness
    for first, second in zip(own.document_scores, again.document_scores, strict=True):
        assert np.array_equal(first.values, second.values)
        assert all(np.array_equal(first.extra[name], second.extra[name]) for name in first.extra)


def test_the_model_is_left_as_it_was(case: Any, ready: Any, models: dict[str, Any]) -> None:
    evaluator, model = ready
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluator.evaluate("search")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert not model._forward_hooks


def test_broken_weights_are_a_status(case: Any, ready: Any, models: dict[str, Any]) -> None:
    evaluator, model = ready
    whole = evaluator.evaluate("search")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    broken = evaluator.evaluate("search")
    assert broken.failure is not None
    assert broken.failure.kind is FailureKind.NON_FINITE
    assert broken.fitness == ()
    model.load_state_dict(kept)
    assert evaluator.evaluate("search").fitness == whole.fitness


def test_running_out_of_memory_is_a_status(case: Any, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, model = bound(case, models)
    whole = evaluator.evaluate("search")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(model.model, "forward", full)
        starved = evaluator.evaluate("search")
    assert starved.failure is not None
    assert starved.failure.kind is FailureKind.OUT_OF_MEMORY
    evaluator.set_batch_size(3)
    assert evaluator.evaluate("search").fitness == pytest.approx(whole.fitness, rel=1e-5)


def test_what_crosses_to_a_worker_builds_the_same_evaluator(case: Any, ready: Any, models: dict[str, Any]) -> None:
    evaluator, model = ready
    configs = [json.loads(json.dumps(config.model_dump(mode="json"))) for config in case[0]]
    rebuilt = build_evaluator(configs, json.loads(json.dumps(case[1].to_json())), case[2])
    rebuilt.bind(model, models["tokenizer"])
    assert rebuilt.objectives == evaluator.objectives
    assert rebuilt.evaluate("search").fitness == evaluator.evaluate("search").fitness


def test_every_split_has_its_own_documents(models: dict[str, Any]) -> None:
    configs = load_fitness(["micro_add", "micro_copy"])
    plan = plan_documents(configs)
    evaluator, _ = bound((configs, plan, EvaluatorSettings()), models)
    assert evaluator.splits == ("search", "validation", "held_out")
    seen: list[str] = []
    for split in evaluator.splits:
        for table in evaluator.evaluate(split).document_scores:
            seen += table.document_ids
    assert len(seen) == len(set(seen)) == sum(plan.num_documents(split) for split in evaluator.splits)


def test_scores_of_a_trained_model_equal_lm_evals(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from evomerge.presets import preset_dir

    configs = load_fitness(["micro_add", "micro_let", "micro_copy"])
    evaluator, model = bound((configs, plan_documents(configs), EvaluatorSettings()), models)
    ours = evaluator.evaluate("search")
    folder = preset_dir("fitness") / "tasks" / "micro"
    monkeypatch.chdir(folder)
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=models["tokenizer"], batch_size=16),
        tasks=[config.task for config in configs],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    expected = tuple(theirs["results"][config.task][config.metric] for config in configs)
    assert ours.fitness == pytest.approx(expected)
    assert max(expected) > 0.2, "a model that answers nothing shows nothing"
    for table, config in zip(ours.document_scores, configs, strict=True):
        assert config.metric_name is not None
        assert list(table.values) == [float(sample[config.metric_name]) for sample in theirs["samples"][config.task]]


def test_an_error_of_a_task_on_a_document_is_a_status(tmp_path: Path, models: dict[str, Any]) -> None:
    (tmp_path / "scoring.py").write_text(
        "def process_results(doc, results):\n    return {'ok': 1 / (len(doc['question']) - 2)}\n"
    )
    lines = [{"id": "fine", "question": "1"}, {"id": "poison", "question": "12"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "odd.yaml").write_text(
        "task: odd\ndataset_path: json\ndataset_kwargs: {data_files: {train: data.jsonl}}\n"
        "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{question}}'\n"
        "process_results: !function scoring.process_results\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 2}\n"
        "metric_list: [{metric: ok, aggregation: mean, higher_is_better: true}]\n"
    )
    configs = load_fitness({"task": "odd", "documents": {"search": {"split": "train"}}, "include_path": str(tmp_path)})
    evaluator, _ = bound((configs, plan_documents(configs), EvaluatorSettings()), models)
    evaluation = evaluator.evaluate("search")
    assert evaluation.failure is not None
    assert evaluation.failure.kind is FailureKind.EXCEPTION
    assert "task 'odd', document 'poison': ZeroDivisionError" in evaluation.failure.message
