"""Which documents are scored: choice, guards, records."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evomerge.errors import DataNotHere, InvalidInput
from evomerge.evaluation.documents import DocumentPlan, plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness


def plan(task_dir: Path, documents: dict[str, Any], task: str = "tiny_generate", **more: Any) -> DocumentPlan:
    return plan_documents(load_fitness({"task": task, "documents": documents, "include_path": str(task_dir), **more}))


def refusal(*args: Any, **more: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        plan(*args, **more)
    return str(caught.value)


def ids(planned: DocumentPlan, role: Any = "search") -> tuple[str, ...]:
    return planned.fitness[0].document_ids(role)


@pytest.fixture
def own_tasks(task_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tasks that a test may spoil."""
    shutil.copytree(task_dir, tmp_path / "tasks")
    return tmp_path / "tasks"


def test_skip_and_limit_cut_in_order(task_dir: Path) -> None:
    planned = plan(
        task_dir, {"search": {"split": "train", "limit": 3}, "validation": {"split": "train", "skip": 3, "limit": 2}}
    )
    assert ids(planned) == ("q0", "q1", "q2")
    assert ids(planned, "validation") == ("q3", "q4")
    assert planned.num_documents("search") == 3


def test_one_seed_shuffles_a_split_once_for_all_roles(task_dir: Path) -> None:
    cut = {"search": {"split": "train", "limit": 10, "seed": 1}, "validation": {"split": "train", "skip": 10}}
    planned = plan(task_dir, cut)
    chosen, rest = ids(planned), ids(planned, "validation")
    assert chosen != tuple(f"q{index}" for index in range(10))
    assert sorted([*chosen, *rest]) == sorted(f"q{index}" for index in range(24))
    assert plan(task_dir, cut) == planned
    other = plan(task_dir, {"search": {"split": "train", "limit": 10, "seed": 2}})
    assert ids(other) != chosen


def test_two_seeds_for_one_split_are_refused(task_dir: Path) -> None:
    both = {"search": {"split": "train", "limit": 2, "seed": 1}, "validation": {"split": "train", "skip": 2, "seed": 2}}
    assert "one split, one seed" in refusal(task_dir, both)


def test_documents_by_id(task_dir: Path) -> None:
    planned = plan(task_dir, {"search": {"split": "train", "ids": ["q7", "q2"]}})
    assert ids(planned) == ("q7", "q2")
    assert planned.fitness[0].members[0].splits["search"].indices == (7, 2)
    assert "no document has the id 'nope'" in refusal(task_dir, {"search": {"split": "train", "ids": ["nope"]}})


def test_overlapping_roles_are_refused(task_dir: Path) -> None:
    said = refusal(task_dir, {"search": {"split": "train", "limit": 6}, "held_out": {"split": "train", "skip": 4}})
    assert "2 documents of `search` are also in `held_out` (train[q4] = train[q4], train[q5] = train[q5])" in said
    assert "documents.search" in said


def test_the_same_question_under_another_id_is_an_overlap(own_tasks: Path) -> None:
    train = (own_tasks / "data" / "train.jsonl").read_text().splitlines()
    twin = {**json.loads(train[3]), "id": "twin"}
    with (own_tasks / "data" / "test.jsonl").open("a") as file:
        file.write(json.dumps(twin) + "\n")
    roles = {"search": {"split": "train"}, "held_out": {"split": "test"}}
    said = refusal(own_tasks, roles)
    assert "1 documents of `search` are also in `held_out` (train[q3] = test[twin])" in said
    planned = plan(own_tasks, roles, drop_duplicates=True)
    assert "q3" not in ids(planned)
    assert len(ids(planned)) == 23
    assert len(ids(planned, "held_out")) == 13
    assert "1 documents left out of search" in planned.notes[0]


def test_held_out_documents_of_one_fitness_are_no_search_documents_of_another(task_dir: Path) -> None:
    one = {"task": "tiny_generate", "documents": {"search": {"split": "train"}, "held_out": {"split": "test"}}}
    two = {"task": "tiny_code", "documents": {"search": {"split": "validation"}, "validation": {"split": "test"}}}
    configs = load_fitness([{**entry, "include_path": str(task_dir)} for entry in (one, {**two, "metric": "length"})])
    with pytest.raises(InvalidInput, match="12 documents are held out by fitness 'tiny_generate'"):
        plan_documents(configs)


def test_no_documents_are_refused(task_dir: Path, own_tasks: Path) -> None:
    assert "no documents" in refusal(task_dir, {"search": {"split": "train", "skip": 24}})
    (own_tasks / "data" / "validation.jsonl").write_text("")
    said = refusal(own_tasks, {"search": {"split": "validation"}})
    assert "tiny_generate" in said


def test_an_unknown_split_lists_nothing_else_than_a_hint(task_dir: Path) -> None:
    assert "no split 'trian'. Did you mean 'train'?" in refusal(task_dir, {"search": {"split": "trian"}})


def test_the_reported_split_of_a_benchmark_is_refused_as_search_split() -> None:
    told = "search on another split, or set `allow_test_split: true`"
    for task, split in (("arc_easy", "test"), ("hellaswag", "validation"), ("gsm8k", "test")):
        [config] = load_fitness({"task": task, "documents": {"search": {"split": split}}})
        with pytest.raises(InvalidInput, match=r"documents\.search\.split") as caught:
            plan_documents([config])
        assert told in str(caught.value)


def test_a_data_set_that_is_not_here_is_told_from_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    [config] = load_fitness({"task": "gsm8k", "documents": {"search": {"split": "train"}}})
    with pytest.raises(DataNotHere, match="openai/gsm8k"):
        plan_documents([config])


def test_local_data_may_be_searched_whatever_its_split_is_called(task_dir: Path) -> None:
    assert len(ids(plan(task_dir, {"search": {"split": "test"}}))) == 12


def test_a_plan_survives_json(task_dir: Path) -> None:
    planned = plan(
        task_dir, {"search": {"split": "validation"}, "held_out": {"split": "test"}}, task="tiny_group", metric="acc"
    )
    assert DocumentPlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned
    with pytest.raises(InvalidInput, match="another version"):
        DocumentPlan.from_json({**planned.to_json(), "version": 99})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"doc_to_text": "Question: {{question}}\nA:"}, ["documents", "changed"]),
        ({"description": "Answer well. "}, ["the search prompts of 'tiny_generate' changed"]),
        ({"generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}}, ["the task's settings or code changed"]),
        ({"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}]}, ["higher_is"]),
    ],
)
def test_a_changed_task_is_noticed(own_tasks: Path, task_dir: Path, change: dict[str, Any], told: list[str]) -> None:
    roles = {"search": {"split": "train", "limit": 4}}
    before = plan(task_dir, roles)
    path = own_tasks / "tiny_generate.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    after = plan(own_tasks, roles)
    lines = before.differences(after)
    assert bool(lines) == bool(change)
    assert (before.fingerprint == after.fingerprint) == (not change)
    for part in told:
        assert part in "; ".join(lines)


def test_a_changed_document_is_noticed(own_tasks: Path, task_dir: Path) -> None:
    path = own_tasks / "data" / "train.jsonl"
    path.write_text(path.read_text().replace("1 plus 2 for A0", "1 plus 2 for Z0"))
    roles = {"search": {"split": "train", "limit": 4}}
    lines = plan(task_dir, roles).differences(plan(own_tasks, roles))
    assert lines == ["fitness 'tiny_generate': the search documents of 'tiny_generate' changed"]


def test_planning_leaves_the_random_states_alone(task_dir: Path) -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    plan(task_dir, {"search": {"split": "train", "limit": 4}}, fewshot=2)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


def test_examples_never_give_away_a_document_of_the_role(own_tasks: Path) -> None:
    """Search and few-shot examples share a split: no prompt may show a question that is scored."""
    from evomerge.evaluation.lm_eval_index import TaskTree, load_tree
    from evomerge.evaluation.lm_eval_tasks import build_instances, open_task, restrict_examples
    from evomerge.evaluation.task_planning import forbidden_examples

    [config] = load_fitness(
        {
            "task": "tiny_generate", "include_path": str(own_tasks), "fewshot": 3, "fewshot_split": "train",
            "documents": {"search": {"split": "train", "limit": 12}, "held_out": {"split": "train", "skip": 16}},
        }
    )  # fmt: skip
    [fitness] = plan_documents([config]).fitness
    [member] = fitness.members
    [leaf] = load_tree(TaskTree.from_json(fitness.tree)).leaves
    opened = open_task(leaf, "train", config)
    restrict_examples(opened, forbidden_examples(member, "search"))
    shown = "".join(group[0].args[0].rpartition("Q:")[0] for group in build_instances(opened, range(12), config, None))
    hidden = [document["question"] for index, document in enumerate(opened.documents) if index < 12 or index >= 16]
    assert len(hidden) == 20
    assert not [question for question in hidden if f"{question}\n" in shown]
    assert all(f"{opened.documents[index]['question']}\n" in shown for index in range(12, 16))


def test_too_few_examples_are_refused(task_dir: Path) -> None:
    said = refusal(task_dir, {"search": {"split": "train", "limit": 22}}, fewshot=3, fewshot_split="train")
    assert "3 few-shot examples are asked for, 2 documents are free to show" in said


def test_a_task_that_fixes_its_examples_keeps_them_out_of_the_documents(own_tasks: Path) -> None:
    path = own_tasks / "tiny_generate.yaml"
    shown = json.loads((own_tasks / "data" / "train.jsonl").read_text().splitlines()[0])
    config = {**yaml.safe_load(path.read_text()), "num_fewshot": 1, "fewshot_config": {"samples": [shown]}}
    path.write_text(yaml.safe_dump(config))
    planned = plan(own_tasks, {"search": {"split": "train", "limit": 5}})
    assert ids(planned) == ("q1", "q2", "q3", "q4")
    assert "1 documents left out" in planned.notes[0]


@pytest.mark.parametrize(
    ("task", "metric", "told"),
    [
        ("tiny_generate", "acc", "does not report 'acc'; it reports: exact_match,none"),
        ("tiny_filters", "exact_match", "several fit 'exact_match'; name one of: exact_match,first, chrf,first"),
        ("tiny_filters", "exact_match,lettres", "does not report 'exact_match,lettres'"),
        ("tiny_choose", None, "missing, and the task reports several; name one of: acc,none"),
        ("tiny_tag", "perplexity", "does not report 'perplexity'; it reports: acc,none"),
    ],
)
def test_a_metric_the_task_does_not_have_lists_those_it_has(
    task_dir: Path, task: str, metric: str | None, told: str
) -> None:
    said = refusal(task_dir, {"search": {"split": "train", "limit": 2}}, task=task, metric=metric)
    assert told in said
    assert "metric" in said


def test_all_problems_of_all_fitnesses_at_once(task_dir: Path) -> None:
    common = {"include_path": str(task_dir)}
    configs = load_fitness(
        [
            {"task": "tiny_generate", "documents": {"search": {"split": "nope"}}, **common},
            {"task": "tiny_coed", "documents": {"search": {"split": "train"}}, **common},
            {"task": "tiny_choose", "documents": {"search": {"split": "train", "skip": 99}}, **common},
        ]
    )
    with pytest.raises(InvalidInput) as caught:
        plan_documents(configs)
    assert len(caught.value.problems) == 3
    assert "Did you mean 'tiny_code'?" in str(caught.value)
