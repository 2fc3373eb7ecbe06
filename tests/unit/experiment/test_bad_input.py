"""What a user can get wrong in an experiment is refused before work starts, by file and key, without a traceback."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli.main import main

GOOD: dict[str, Any] = {
    "name": "bad_input",
    "models": {"base": "zoo:micro-base", "experts": {"add": "zoo:micro-add", "let": "zoo:micro-let"}},
    "search_space": "task_arithmetic_whole_model",
    "fitness": ["micro_add"],
    "optimizer": {"name": "cma_es"},
    "budget": {"evaluations": 20},
    "runtime": {"executor": "inline"},
}


def run_cli(*arguments: object) -> int:
    """The exit code of one command line in this process."""
    previous = sys.argv
    sys.argv = ["evomerge", *map(str, arguments)]
    try:
        main()
    except SystemExit as leave:
        return int(leave.code or 0)
    finally:
        sys.argv = previous
    raise AssertionError("main must leave by SystemExit")


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good experiment with one key changed."""
    experiment: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    place = experiment
    keys = path.split("/")
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    return experiment


CASES: list[tuple[str, Any, list[str]]] = [
    ("constraints", ["micro_ad >= 0.3"], ["constraints[0]", "Did you mean 'micro_add'?"]),
    ("constraints", "micro_add > 0.3", ["constraints[0]", ">= or <="]),
    ("objectives/normalise", "expert ad", ["objectives.normalise", "Did you mean 'add'?"]),
    ("objectives/ideal", {"micro_ad": 1}, ["objectives.ideal", "Did you mean 'micro_add'?"]),
    ("fitness", [{"preset": "micro_add", "normalise": "bse"}], ["fitness[0].normalise", "got 'bse'"]),
    ("scalarisation", "harmonic", ["scalarisation", "harmonic_mean"]),
    ("optimizer", {"name": "como_catcma"}, ["optimizer.name", "exactly 2 objectives, got 1", "cma_es"]),
    ("optimzer", {"name": "cma_es"}, ["optimzer", "Did you mean 'optimizer'?"]),
    ("models/experts", {}, ["models.experts"]),
    ("models/experts/add", "./not/there", ["models", "no such directory"]),
    ("models/experts/add", "zoo:micro-ad", ["micro-ad", "micro-add"]),
    ("search_space", "task_aritmetic_whole_model", ["search_space", "task_arithmetic_whole_model"]),
    ("search_space", {"kind": "parameter_space", "method": "tyes", "parameters": {"density": 1}}, ["method", "ties"]),
    ("fitness", ["micro_ad"], ["fitness", "micro_add"]),
    ("fitness", [], ["fitness"]),
    (
        "fitness",
        [{"task": "no_such_task_anywhere", "documents": {"search": {"split": "x"}}}],
        ["no_such_task_anywhere"],
    ),
    ("fitness", [{"preset": "micro_add", "metric": "f1"}], ["f1", "exact_match"]),
    (
        "fitness",
        [{"preset": "micro_add", "documents": {"held_out": {"split": "search"}}}],
        ["documents of `search` are also in `held_out`"],
    ),
    ("fitness", [{"preset": "micro_add", "documents": {"search": {"skip": 100000}}}], ["no documents"]),
    ("fitness", [{"preset": "micro_add", "documents": {"search": {"split": "serch"}}}], ["serch", "search"]),
    ("fitness", [{"cost": "num_hops"}], ["there are only costs (num_hops)", "Add a task"]),
    ("fitness", ["micro_add", {"cost": "num_hops"}], ["optimizer.name", "unit of its own", "ga", "weight"]),
    ("optimizer/name", "cma-es", ["optimizer", "cma_es"]),
    ("optimizer/sigma", -1, ["optimizer.sigma"]),
    ("optimizer/sgima", 0.1, ["optimizer.sgima", "sigma"]),
    ("budget", {"evaluations": 3}, ["budget.evaluations", "generation"]),
    ("budget", {}, ["budget", "evaluations"]),
    ("budget/wall_time", "2 fortnights", ["budget.wall_time", "2h"]),
    ("runtime/workers", 0, ["runtime.workers"]),
    ("runtime/executor", "rai", ["runtime.executor"]),
    ("seed", "seven", ["seed"]),
    ("name", "a/b", ["name"]),
]


@pytest.mark.parametrize(("path", "value", "said"), CASES, ids=[f"{case[0]}={str(case[1])[:40]}" for case in CASES])
def test_refused(
    micro_zoo: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    value: Any,
    said: list[str],
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    assert run_cli("run", file, "--out", tmp_path / "run") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in message
    for word in said:
        assert word in message, message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x00\xff\xfe\x80binary", "not a text file"),
        (b"- a\n- b\n", "list"),
        (b"a: [1, 2\n", "not valid YAML"),
        (b"name: x\nname: y\n", "twice"),
    ],
)
def test_files_that_are_no_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    for verb in (("run", file), ("validate", file), ("merge", file, tmp_path / "out")):
        assert run_cli(*verb) == 1
        message = capsys.readouterr().err
        assert said in message
        assert str(file) in " ".join(message.split()).replace(" ", "") or file.name in message
    assert not (tmp_path / "out").exists()


def test_all_problems_at_once(micro_zoo: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = changed("search_space", "nowhere")
    experiment["fitness"] = ["nothing"]
    experiment["models"]["experts"]["let"] = "./gone"
    experiment["optimizer"] = {"name": "cmaes"}
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(experiment))
    assert run_cli("validate", file) == 1
    message = capsys.readouterr().err
    for word in ("nowhere", "nothing", "./gone", "cmaes"):
        assert word in message
    assert message.count("error ") == 4


def test_missing_file_and_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs: list[Callable[[], int]] = [
        lambda: run_cli("run", tmp_path / "none.yaml"),
        lambda: run_cli("run", "quikstart"),
        lambda: run_cli("resume", tmp_path / "none"),
        lambda: run_cli("front", tmp_path / "none"),
        lambda: run_cli("export", tmp_path / "none", tmp_path / "out"),
        lambda: run_cli("project", tmp_path / "none"),
        lambda: run_cli("dashboard", tmp_path / "none"),
        lambda: run_cli("zoo", "build", "mikro"),
        lambda: run_cli("methods", "tyes"),
        lambda: run_cli("optimizers", "cmaes"),
        lambda: run_cli("spaces", "ties"),
        lambda: run_cli("no_such_verb"),
    ]
    for verb in verbs:
        assert verb() == 1
        message = capsys.readouterr().err
        assert message.strip()
        assert "Traceback" not in message


def test_set_changes_values_and_says_what_is_wrong(
    micro_zoo: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert run_cli("validate", file, "--set", "budget.evaluations=33") == 0
    assert "evaluations 33" in capsys.readouterr().out
    assert run_cli("validate", file, "--set", "budget") == 1
    assert "key=value" in capsys.readouterr().err
    assert run_cli("validate", file, "--set", "name.x=1") == 1
    assert "name is 'bad_input', not a mapping" in capsys.readouterr().err
