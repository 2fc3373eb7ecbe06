"""What users write about a fitness, and what they are told when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InvalidInput
from evomerge.evaluation.fitness_yaml import FitnessConfig, fitness_presets, load_fitness, objective_names

GOOD: dict[str, Any] = {"task": "some_task", "documents": {"search": {"split": "train", "limit": 5}}}


def message(spec: Any, **how: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        load_fitness(spec, "experiment.yaml: fitness", **how)
    return str(caught.value)


def test_every_shipped_fitness_loads() -> None:
    presets = fitness_presets()
    assert len(presets) > 5
    for name in presets:
        [config] = load_fitness(name)
        assert config.name == name
        assert "search" in config.roles


def test_names_come_from_the_file_else_the_task(tmp_path: Path) -> None:
    (tmp_path / "my_fitness.yaml").write_text("task: some_task\ndocuments: {search: {split: train}}\n")
    by_path, inline = load_fitness(["my_fitness.yaml", GOOD], base_dir=tmp_path)
    assert (by_path.name, inline.name) == ("my_fitness", "some_task")
    [named] = load_fitness({**GOOD, "name": "mine"})
    assert objective_names(named) == ("mine",)


def test_a_preset_can_be_changed_inline() -> None:
    [config] = load_fitness(
        {"preset": "zoo_math_en", "weight": 2, "documents": {"search": {"split": "search", "limit": 7}}}
    )
    assert (config.name, config.task, config.weight) == ("zoo_math_en", "zoo_math_en", 2.0)
    assert config.documents is not None
    assert config.documents.search.limit == 7
    assert config.roles == ("search", "validation", "held_out")


def test_configs_survive_the_way_to_a_worker() -> None:
    [config] = load_fitness({**GOOD, "gen_kwargs": {"until": ["a"]}, "include_path": "somewhere"})
    assert FitnessConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.include_path == (str(Path("somewhere").resolve()),)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    text = "task: tasks/one.yaml\ninclude_path: [tasks]\ndocuments: {search: {split: train}}\n"
    (tmp_path / "inner" / "f.yaml").write_text(text)
    [config] = load_fitness("inner/f.yaml", base_dir=tmp_path)
    assert config.include_path == (str(tmp_path / "inner" / "tasks"),)
    assert config.task == str(tmp_path / "inner" / "tasks" / "one.yaml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fewshots": 3}, "fewshots: unknown key. Did you mean 'fewshot'?"),
        ({"fewshot": -1}, "fewshot"),
        ({"weight": float("nan")}, "weight"),
        ({"documents": {"search": {"split": "train", "limit": 0}}}, "documents.search.limit"),
        ({"documents": {"search": {"split": "train", "limits": 3}}}, "Did you mean 'limit'?"),
        ({"documents": {"validation": {"split": "train"}}}, "documents.search: missing"),
        ({"documents": {"search": {"split": "train", "ids": [1], "limit": 1}}}, "drop `limit`"),
        ({"documents": {"search": {"path": "x.jsonl"}}}, "come from a `split`"),
        ({"documents": None}, "`documents` is missing"),
        ({"python": "a:b"}, "exactly one of `task`"),
        ({"task": None}, "exactly one of `task`"),
        ({"task": None, "python": "no_function"}, "module:function"),
        ({"task": None, "python": "a:b"}, "reads its documents from `path`"),
        ({"objectives": ["a"]}, "belongs to a `python` fitness"),
        ({"name": "two words"}, "without spaces"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], told: str) -> None:
    said = message({**GOOD, **change})
    assert told in said
    assert "experiment.yaml: fitness" in said


def test_all_problems_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: [unclosed")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "binary.yaml").write_bytes(b"\x00\xff\x00")
    said = message(
        ["broken.yaml", "empty.yaml", "binary.yaml", "missing.yaml", "zoo_maths_en", {"task": "x"}, 3],
        base_dir=tmp_path,
    )
    for part in (
        "broken.yaml",
        "the file is empty",
        "binary.yaml",
        "no such file",
        "Did you mean 'zoo_math_en'",
        "[6]",
    ):
        assert part in said
    assert "`documents` is missing" in said


def test_two_objectives_of_one_name_are_refused() -> None:
    assert "two objectives are called 'some_task'" in message([GOOD, GOOD])


def test_no_fitness_is_refused() -> None:
    assert "at least one fitness" in message([])


def test_a_cost_has_no_documents_and_no_share_in_sums() -> None:
    by_name, inline = load_fitness(["num_hops", {"cost": "flops_per_token", "context": 64, "reference": 1e9}])
    assert (by_name.name, by_name.weight, inline.weight) == ("num_hops", 0.0, 0.0)
    assert by_name.roles == ("search", "validation", "held_out")
    again = FitnessConfig.model_validate(inline.model_dump(mode="json"))
    assert again == inline
    [weighed] = load_fitness({"cost": "latency", "weight": 0.1, "tokens": 16})
    assert weighed.weight == 0.1
    assert "`context` belongs to `cost: flops_per_token`" in message({"cost": "num_hops", "context": 64})
    assert "`documents` does not go with `cost`" in message({**GOOD, "task": None, "cost": "latency"})
    assert "exactly one of" in message({**GOOD, "cost": "latency"})
    assert "num_hops" in message({"cost": "num_hop"})
