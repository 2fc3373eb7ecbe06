"""Scores and per-document values equal lm-eval's own, for the same model, documents and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.terms import Evaluation

METRICS = {
    "tiny_generate": "exact_match,none",
    "tiny_filters": "exact_match,letters",
    "tiny_code": "early_letters,none",
    "tiny_choose": "acc_norm,none",
    "tiny_letters": "mcc,none",
    "tiny_likelihood": "perplexity,none",
    "tiny_rolling": "bits_per_byte,none",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fewshot": {"fewshot": 2, "system_prompt": "Be brief.", "gen_kwargs": {"max_gen_toks": 5}},
    "chat": {"fewshot": 3, "apply_chat_template": True, "system_prompt": "Answer with a number."},
    "chat_one_turn": {"fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": False},
}


def score(
    model: Any, tokenizer: Any, task_dir: Path, metrics: dict[str, str], settings: dict[str, Any], **how: Any
) -> Evaluation:
    documents = {"search": {"split": "validation"}, "held_out": {"split": "test"}}
    generating = ("tiny_generate", "tiny_filters", "tiny_code")
    configs = load_fitness(
        [
            {
                "task": name, "metric": metric, "documents": documents, "include_path": str(task_dir), **settings,
                "gen_kwargs": settings.get("gen_kwargs", {}) if name in generating else {},
            }
            for name, metric in metrics.items()
        ]
    )  # fmt: skip
    evaluator = build_evaluator(configs, plan_documents(configs), EvaluatorSettings(**how))
    evaluator.bind(model, tokenizer)
    evaluation = evaluator.evaluate("held_out")
    assert evaluation.ok, evaluation.failure
    return evaluation


def stock(model: Any, tokenizer: Any, task_dir: Path, tasks: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(task_dir), include_defaults=False),
        num_fewshot=settings.get("fewshot"),
        apply_chat_template=settings.get("apply_chat_template", False),
        fewshot_as_multiturn=settings.get("fewshot_as_multiturn", True),
        system_instruction=settings.get("system_prompt"),
        gen_kwargs=settings.get("gen_kwargs"),
        bootstrap_iters=0,
    )
    return results


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_equal_lm_evals(
    name: str, model: Any, tokenizer: Any, task_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task_dir)
    settings = SETTINGS[name]
    ours = score(model, tokenizer, task_dir, METRICS, settings)
    theirs = stock(model, tokenizer, task_dir, list(METRICS), settings)
    for place, (task, key) in enumerate(METRICS.items()):
        expected = theirs["results"][task][key]
        higher = theirs["higher_is_better"][task][key.partition(",")[0]]
        assert ours.fitness[place] == pytest.approx(expected if higher else -expected, rel=1e-5), task
        shown = {key for key in ours.metrics if key.startswith(f"{task}/")}
        assert shown >= {f"{task}/{key}"}
        for metric in shown:
            assert ours.metrics[metric] == pytest.approx(theirs["results"][task][metric.partition("/")[2]], rel=1e-5)
    for table in ours.document_scores:
        metric, _, filter_name = METRICS[table.objective].partition(",")
        samples = [sample for sample in theirs["samples"][table.objective] if sample["filter"] == filter_name]
        assert table.document_ids == tuple(sample["doc"]["id"] for sample in samples)
        np.testing.assert_allclose(table.values, [float(sample[metric]) for sample in samples], rtol=1e-5)
    assert {table.objective for table in ours.document_scores} >= {"tiny_code", "tiny_choose", "tiny_likelihood"}
    code = next(table for table in ours.document_scores if table.objective == "tiny_code")
    assert len(np.unique(code.values)) > len(code.values) // 2, "the texts do not differ, so the test shows nothing"


@pytest.mark.parametrize("weighted", [True, False])
def test_groups_weigh_their_members_as_lm_eval_does(
    weighted: bool, model: Any, tokenizer: Any, task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task_dir)
    for path in [*task_dir.glob("*.yaml"), task_dir / "scoring.py"]:
        text = path.read_text().replace("weight_by_size: true", f"weight_by_size: {str(weighted).lower()}")
        (tmp_path / path.name).write_text(text)
    ours = score(model, tokenizer, tmp_path, {"tiny_group": "acc"}, {})
    theirs = stock(model, tokenizer, tmp_path, ["tiny_group"], {})
    assert ours.fitness[0] == pytest.approx(theirs["results"]["tiny_group"]["acc,none"])
    table = ours.document_scores[0]
    assert len(table.document_ids) == 24
    assert table.document_ids[0] == "tiny_choose/q200"
    assert float(table.values @ table.extra["weight"]) == pytest.approx(ours.fitness[0])


def test_a_tag_is_the_mean_of_its_tasks(model: Any, tokenizer: Any, task_dir: Path) -> None:
    whole = score(model, tokenizer, task_dir, {"tiny_tag": "acc"}, {})
    parts = score(model, tokenizer, task_dir, {"tiny_letters": "acc", "tiny_likelihood": "acc"}, {})
    assert whole.fitness[0] == pytest.approx(sum(parts.fitness) / 2)


def test_exact_mode_gives_the_same_bits_as_lm_eval(
    model: Any, tokenizer: Any, task_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(task_dir)
    metrics = {"tiny_choose": "acc", "tiny_code": "early_letters"}
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    ours = score(half, tokenizer, task_dir, metrics, {}, exact=True, batch_size=5)
    theirs = stock(half, tokenizer, task_dir, list(metrics), {})
    lead = [
        max(answer[0][0] for place, answer in enumerate(sample["resps"]) if place == sample["target"])
        for sample in theirs["samples"]["tiny_choose"]
    ]
    assert list(ours.document_scores[0].extra["gold_logprob"]) == lead
    values = [sample["early_letters"] for sample in theirs["samples"]["tiny_code"]]
    assert list(ours.document_scores[1].values) == values


def test_a_tokenizer_without_chat_template_is_a_user_error(model: Any, task_dir: Path) -> None:
    from tests.unit.evaluation.conftest import tiny_tokenizer

    plain = tiny_tokenizer()
    plain.chat_template = None
    with pytest.raises(UserError, match=r"fitness tiny_choose: .* the model's tokenizer has no chat template"):
        score(model, plain, task_dir, {"tiny_choose": "acc"}, {"apply_chat_template": True})
