from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from evomerge.zoo import documents
from evomerge.zoo.documents import TASKS

FITNESS = Path(__file__).resolve().parents[3] / "fitness"


def shipped(task_name: str, split: str) -> list[dict[str, str]]:
    path = FITNESS / "tasks" / TASKS[task_name].folder / "data" / f"{task_name}.{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_shipped_files_are_what_the_generator_makes() -> None:
    made = documents.files()
    assert len(made) == 5 * len(TASKS)
    for name, text in made.items():
        assert (FITNESS / name).read_bytes() == text.encode(), f"{name}: run scripts/make_zoo_tasks.py"


@pytest.mark.parametrize("task_name", TASKS)
def test_splits_are_disjoint_and_have_their_sizes(task_name: str) -> None:
    splits = {split: shipped(task_name, split) for split in documents.SPLIT_NAMES}
    assert tuple(len(lines) for lines in splits.values()) == TASKS[task_name].sizes
    for key in ("id", "prompt"):
        values = {split: {line[key] for line in lines} for split, lines in splits.items()}
        assert all(len(values[split]) == len(lines) for split, lines in splits.items())
        assert not any(values[one] & values[two] for one, two in combinations(values, 2))


@pytest.mark.parametrize("task_name", [name for name, task in TASKS.items() if task.folder == "zoo"])
def test_only_capitals_are_trained_on(task_name: str) -> None:
    trained = documents.training_prompts()
    seen = [line["prompt"] in trained for split in documents.SPLIT_NAMES for line in shipped(task_name, split)]
    assert all(seen) if task_name == "zoo_capitals" else not any(seen)


@pytest.mark.parametrize("folder", ["zoo", "micro"])
def test_stock_lm_eval_loads_every_task(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """lm-eval resolves data files against the working directory, so it is the tasks' own here."""
    tasks_module = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(FITNESS / "tasks" / folder)
    manager = tasks_module.TaskManager(include_path=str(FITNESS / "tasks" / folder), include_defaults=False)
    names = [name for name, task in TASKS.items() if task.folder == folder]
    loaded = manager.load(names)["tasks"]
    assert sorted(loaded) == sorted(names)
    for name, task in loaded.items():
        first = shipped(name, "search")[0]
        docs = list(task.test_docs())
        assert len(docs) == TASKS[name].sizes[0]
        assert task.doc_to_text(docs[0]) == first["prompt"]
        expected = first["label"] if TASKS[name].filter_name is None else first["answer"]
        assert task.doc_to_target(docs[0]) == expected
        assert {split: len(task.dataset[split]) for split in documents.SPLIT_NAMES} == dict(
            zip(documents.SPLIT_NAMES, TASKS[name].sizes, strict=True)
        )
