"""What the fast scorer gives equals what the ``lm_eval`` command writes for the same checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.evaluator import build_evaluator
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.evaluation.lm_eval_tasks import lm_eval_conditions
from evomerge.terms import Evaluation
from tests.unit.evaluation.conftest import BASE, TASKS

METRICS = {
    "tiny_generate": "exact_match,none",
    "tiny_code": "early_letters,none",
    "tiny_choose": "acc_norm,none",
    "tiny_letters": "acc,none",
    "tiny_likelihood": "acc,none",
    "tiny_rolling": "bits_per_byte,none",
    "tiny_group": "acc,none",
}
SHOTS = 2


def plain_tasks(task_dir: Path, folder: Path) -> Path:
    """The tasks with metrics that are means: the command bootstraps the others for minutes."""
    folder.mkdir()
    means = {"exact_match", "length", "early_letters", "acc", "acc_norm", "bits_per_byte"}
    files = {split: str(task_dir / "data" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for task in METRICS:
        if task == "tiny_group":
            continue
        metrics = [metric for metric in TASKS[task]["metric_list"] if metric["metric"] in means]
        config = {"task": task, **BASE, "dataset_kwargs": {"data_files": files}, **TASKS[task], "metric_list": metrics}
        config |= {"fewshot_split": "train"}
        text = yaml.safe_dump({key: value for key, value in config.items() if key != "tag"})
        (folder / f"{task}.yaml").write_text(
            text.replace("'!function scoring.process_results'", "!function scoring.process_results")
        )
    for name in ("scoring.py", "tiny_group.yaml"):
        (folder / name).write_text((task_dir / name).read_text())
    return folder


def ours(model: Any, tokenizer: Any, task_dir: Path) -> Evaluation:
    documents = {"search": {"split": "test"}}
    fitness = [
        {"task": task, "metric": metric, "documents": documents, "include_path": str(task_dir), "fewshot": SHOTS,
         "allow_test_split": True}
        for task, metric in METRICS.items()
    ]  # fmt: skip
    configs = load_fitness(fitness)
    evaluator = build_evaluator(configs, plan_documents(configs))
    evaluator.bind(model, tokenizer)
    assert evaluator.notes == (
        "generate_until scored by engine packed",
        "loglikelihood scored by engine packed",
        "loglikelihood_rolling scored by engine head_skip",
    )
    evaluation = evaluator.evaluate("search")
    assert evaluation.ok, evaluation.failure
    return evaluation


def commands(checkpoint: Path, task_dir: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The command in this process: a second interpreter would only import everything again."""
    from lm_eval.__main__ import cli_evaluate

    arguments = [
        "run", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--device", "cpu",
        "--tasks", "tiny_generate,tiny_code,tiny_likelihood,tiny_rolling,tiny_group",
        "--include_path", str(task_dir), "--num_fewshot", str(SHOTS), "--batch_size", "4",
        "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    cli_evaluate()
    [written] = out.rglob("results_*.json")
    results: dict[str, Any] = json.loads(written.read_text())
    results["samples"] = {
        path.name.removeprefix("samples_").rpartition("_")[0]: [json.loads(line) for line in path.open()]
        for path in out.rglob("samples_*.jsonl")
    }
    return results


def test_scores_equal_the_lm_eval_commands(
    model: Any, tokenizer: Any, task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task_dir)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tasks = plain_tasks(task_dir, tmp_path / "tasks")
    mine = ours(model, tokenizer, tasks)
    with lm_eval_conditions():  # the command leaves the global random states where it ends
        theirs = commands(tmp_path / "model", tasks, tmp_path / "out", monkeypatch)
    for place, (task, key) in enumerate(METRICS.items()):
        metric = key.partition(",")[0]
        sign = 1 if theirs["higher_is_better"][task][metric] else -1
        assert sign * mine.fitness[place] == pytest.approx(theirs["results"][task][key], rel=1e-5), task
    tables = {table.objective: table for table in mine.document_scores}
    for task, key in METRICS.items():
        metric = key.partition(",")[0]
        if task not in tables or task not in theirs["samples"]:
            continue
        rows = theirs["samples"][task]
        assert tables[task].document_ids == tuple(row["doc"]["id"] for row in rows)
        np.testing.assert_allclose(tables[task].values, [float(row[metric]) for row in rows], rtol=1e-5)
        expected = theirs["results"][task][f"{metric}_stderr,none"]
        values = tables[task].values
        assert np.std(values, ddof=1) / np.sqrt(len(values)) == pytest.approx(expected, rel=1e-5), task
    assert set(tables) & set(theirs["samples"]) == set(METRICS) - {"tiny_group", "tiny_rolling"}
    group = tables["tiny_group"]
    parts = [group.values[group.extra["member"] == number] for number in (0, 1)]
    # Pooled, as lm-eval does: every member's variance counts with its documents.
    pooled = sum((len(part) - 1) * np.var(part, ddof=1) for part in parts) / (len(group.values) - len(parts))
    expected = theirs["results"]["tiny_group"]["acc_stderr,none"]
    assert np.sqrt(pooled / len(group.values)) == pytest.approx(expected, rel=1e-5)
