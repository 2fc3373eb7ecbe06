"""Finding tasks: what is broken is named, never skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.errors import InvalidInput
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.evaluation.lm_eval_index import TaskLibrary, TaskTree, load_tree
from evomerge.presets import preset_dir

TASK = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{train: data.jsonl}}}}\n"


def write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "data.jsonl").write_text('{"question": "1", "answer": "2"}\n')
    return str(folder)


def problems(folder: str, task: str = "any") -> str:
    with pytest.raises(InvalidInput) as caught:
        load_tree(TaskLibrary([folder]).resolve(task, "f.yaml: task"))
    return str(caught.value)


def test_every_shipped_task_is_found() -> None:
    paths = sorted((preset_dir("fitness") / "tasks").rglob("*.yaml"))
    assert len(paths) > 5
    library = TaskLibrary()
    for path in paths:
        [leaf] = load_tree(library.resolve(path.stem, "x")).leaves
        assert leaf.path == str(path)


@pytest.mark.parametrize(
    "text", ["task: [unclosed", "", "- a\n- b\n", "\x00", "nothing: here\n", "include: gone.yaml\n"]
)
def test_a_broken_yaml_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, good=TASK.format(name="good"), broken=text)
    assert str(tmp_path / "broken.yaml") in problems(folder, "good")


def test_all_broken_files_are_told(tmp_path: Path) -> None:
    said = problems(write(tmp_path, one="task: [", two="{"))
    assert "one.yaml" in said
    assert "two.yaml" in said


def test_a_name_defined_twice_is_refused(tmp_path: Path) -> None:
    said = problems(write(tmp_path, one=TASK.format(name="same"), two=TASK.format(name="same")))
    assert "two.yaml" in said
    assert "already defined in" in said


def test_an_unknown_task_gets_a_hint(tmp_path: Path) -> None:
    said = problems(write(tmp_path, one=TASK.format(name="number_words")), "number_word")
    assert "no lm-eval task is called 'number_word'" in said
    assert "Did you mean 'number_words'?" in said


def test_an_unknown_key_of_a_task_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, one=TASK.format(name="one") + "doc_to_txt: x\n")
    [config] = load_fitness({"task": "one", "include_path": folder, "documents": {"search": {"split": "train"}}})
    with pytest.raises(InvalidInput, match=r"one\.yaml: unknown key 'doc_to_txt'. Did you mean 'doc_to_text'"):
        plan_documents([config])


def test_python_beside_a_task_that_does_not_import_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise OSError('no luck')\n")
    said = problems(write(tmp_path, one=TASK.format(name="one") + "process_docs: !function bad.go\n"), "one")
    assert "one.yaml" in said
    assert "no luck" in said


def test_missing_data_files_and_folders_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, one=TASK.format(name="one").replace("data.jsonl", "gone.jsonl"))
    assert "no such file 'gone.jsonl'" in problems(folder, "one")
    assert "no such folder of task YAMLs" in problems(str(tmp_path / "gone"))


def test_data_files_are_relative_to_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, one=TASK.format(name="one"))
    monkeypatch.chdir("/")
    [leaf] = load_tree(TaskLibrary([folder]).resolve("one", "x")).leaves
    assert leaf.config["dataset_kwargs"]["data_files"] == {"train": str(tmp_path / "data.jsonl")}


def test_a_task_may_be_named_by_its_file(tmp_path: Path) -> None:
    write(tmp_path, one=TASK.format(name="one"))
    tree = TaskLibrary().resolve(str(tmp_path / "one.yaml"), "x")
    assert [leaf.name for leaf in load_tree(tree).leaves] == ["one"]


def test_groups_nest_and_change_their_members(tmp_path: Path) -> None:
    outer = (
        "group: outer\nnum_fewshot: 1\ntask:\n  - one\n  - {task: two, num_fewshot: 3}\n"
        "  - {group: inner, task: [three]}\naggregate_metric_list: {metric: acc, weight_by_size: false}\n"
    )
    folder = write(tmp_path, outer=outer, **{name: TASK.format(name=name) for name in ("one", "two", "three")})
    tree = TaskLibrary([folder]).resolve("outer", "x")
    loaded = load_tree(TaskTree.from_json(json.loads(json.dumps(tree.to_json()))))
    assert loaded.kind == "group"
    assert {leaf.name: leaf.config["num_fewshot"] for leaf in loaded.leaves} == {"one": 1, "two": 3, "three": 1}
    assert loaded.weight_by_size == {"acc": False}


def test_a_group_with_an_unknown_member_is_refused(tmp_path: Path) -> None:
    assert "'gone_task_name', which is no known task" in problems(
        write(tmp_path, outer="group: outer\ntask: [gone_task_name]\n"), "outer"
    )


def test_a_group_that_holds_itself_is_refused(tmp_path: Path) -> None:
    assert "contains itself" in problems(write(tmp_path, outer="group: outer\ntask: [outer]\n"), "outer")


def test_built_in_tasks_are_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.evaluation import lm_eval_index

    calls = []
    build = lm_eval_index.TaskIndex.build

    def counted(paths: list[Path]) -> object:
        calls.append(paths)
        return build([paths[0] / "arc"])

    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(lm_eval_index.TaskIndex, "build", staticmethod(counted))
    lm_eval_index._built_in.cache_clear()
    try:
        first = TaskLibrary().resolve("ai2_arc", "x")
        lm_eval_index._built_in.cache_clear()
        assert TaskLibrary().resolve("ai2_arc", "x") == first
    finally:
        lm_eval_index._built_in.cache_clear()
    assert len(calls) == 1
    assert [leaf.name for leaf in load_tree(first).leaves] == ["arc_challenge", "arc_easy"]
