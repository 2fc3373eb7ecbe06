"""Searches whose texts a vLLM process generates (a stand-in: tests/standins)."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import evomerge
from evomerge.errors import InvalidInput, ResumeRefused
from tests.integration.conftest import EXPERIMENT
from tests.integration.test_tiny_run import sequence
from tests.standins.environment import STANDINS, make_python

SPLITS = {"search": {"limit": 8}, "validation": {"limit": 6}, "held_out": {"limit": 6}}
CHANGES: dict[str, Any] = {
    "fitness": [{"preset": name, "documents": SPLITS} for name in ("micro_add", "micro_let")],
    "budget": {"evaluations": 5},
    "finish": {"top_k": 1, "task_arithmetic": [0.7], "bootstrap_samples": 200},
}


def experiment(folder: Path, name: str, runtime: dict[str, Any], **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    mapping = EXPERIMENT | CHANGES | {"runtime": {**EXPERIMENT["runtime"], "dtype": "float32", **runtime}} | changes
    path.write_text(yaml.safe_dump(mapping))
    return path


def wait_for(log: Path, process: "subprocess.Popen[bytes]", count: int) -> None:
    deadline = time.monotonic() + 1200
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b'"evaluated"') >= count:
            return
        time.sleep(0.01)
    raise AssertionError("the run ended or hung before it was to be killed")


def engine_processes(folder: Path) -> list[str]:
    """What lives of the stand-ins whose fault file is in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or ())
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if f"child of {folder}" in command:
            found.append("child")
        elif "evomerge.runtime.vllm_server" in command:
            with contextlib.suppress(psutil.Error):
                if process.environ().get("VLLM_STANDIN_FAULT") == str(folder / "fault"):
                    found.append("server")
    return found


def assert_gone(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while engine_processes(folder):
        assert time.monotonic() < deadline, "a process of the engine outlived its worker"
        time.sleep(0.05)


def test_a_run_equals_one_on_transformers_through_death_kill_and_resume(
    micro_zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine dies in the middle of the first candidate's answers; later the whole run is killed, and resumed."""
    assert evomerge.run(experiment(tmp_path, "hf", {}), run_dir=tmp_path / "hf").exit_code == 0
    monkeypatch.setenv("VLLM_STANDIN_FAULT", str(tmp_path / "fault"))
    (tmp_path / "fault").write_text("dies")
    runtime = {"backend": "vllm", "vllm": {"python": make_python(tmp_path, STANDINS)}}
    path, run_dir = experiment(tmp_path, "vllm", runtime), tmp_path / "run"
    command = [sys.executable, "-m", "evomerge", "run", str(path), "--out", str(run_dir), "--quiet"]
    process = subprocess.Popen(command, env={**os.environ})
    try:
        wait_for(run_dir / "events.jsonl", process, 2)
        family = engine_processes(tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert sorted(family) == ["child", "server"]  # those of the first server ended with it
    assert_gone(tmp_path)
    assert "worker lost during" in (run_dir / "log.txt").read_text()
    with pytest.raises(ResumeRefused, match=r"runtime\.backend: was vllm, is hf"):
        evomerge.resume(run_dir, ["runtime.backend=hf", "runtime.vllm=null"])
    assert evomerge.resume(run_dir).exit_code == 0
    assert sequence(run_dir) == sequence(tmp_path / "hf")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run_dir, tmp_path / "hf"))
    assert ours["rows"] == theirs["rows"]
    assert (ours["scored_by"], theirs["scored_by"]) == ("vllm 0.25.1", "hf")
    assert json.loads((run_dir / "manifest.json").read_text())["versions"]["vllm"] == "0.25.1"
    assert_gone(tmp_path)


def test_keys_that_do_not_go_with_vllm_are_told_at_once(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    wrong = {
        "backend": "vllm", "scorer": "exact", "batch_size": 4, "gpus_per_worker": 2,
        "vllm": {"python": "/none", "tensor_parallel": 1},
    }  # fmt: skip
    route = {"kind": "data_flow", "encoding": "slices", "pool": ["add", "let"]}
    path = experiment(tmp_path, "wrong", wrong, search_space=route, report=["latency"], optimizer="ga")
    with pytest.raises(InvalidInput) as caught:
        evomerge.run(path, run_dir=tmp_path / "run")
    said = str(caught.value)
    for words in (
        "runtime.scorer",
        "runtime.batch_size",
        "runtime.gpus_per_worker",
        "no routes",
        "latency is measured",
    ):
        assert words in said
    with pytest.raises(InvalidInput, match=r"runtime\.vllm\.python: is needed"):
        evomerge.run(experiment(tmp_path, "none", {"backend": "vllm"}), run_dir=tmp_path / "run")
    with pytest.raises(InvalidInput, match=r"runtime\.vllm: only counts with runtime\.backend: vllm"):
        evomerge.run(experiment(tmp_path, "hf", {"vllm": {"python": "x"}}), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_environment_models_and_tasks_are_checked_before_anything_starts(
    micro_zoo: dict[str, Path], tmp_path: Path
) -> None:
    expert = tmp_path / "routed"
    shutil.copytree(micro_zoo["micro-let"], expert)
    config = json.loads((expert / "config.json").read_text())
    (expert / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    path = experiment(
        tmp_path, "wrong", {"backend": "vllm", "vllm": {"python": make_python(tmp_path)}},
        models={"base": "zoo:micro-base", "experts": {"add": "zoo:micro-add", "let": str(expert)}},
        fitness=[{"preset": "micro_copy", "documents": SPLITS},
                 {"preset": "micro_add", "documents": SPLITS, "gen_kwargs": {"do_sample": True}}],
    )  # fmt: skip
    for check in (evomerge.validate, lambda file: evomerge.run(file, run_dir=tmp_path / "run")):
        with pytest.raises(InvalidInput) as caught:
            check(path)
        said = str(caught.value)
        for words in ("vllm is not installed", "routed experts", "multiple_choice", "asks for sampling"):
            assert words in said
    assert not (tmp_path / "run").exists()
