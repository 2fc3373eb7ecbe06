"""Runs that share an evaluation cache: the same numbers, without the work."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import evomerge
from evomerge.cli.main import app
from evomerge.reports.summary_table import closing_lines
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Calibrated, Evaluated, Stopped, Told
from evomerge.store.score_store import ScoreStore
from tests.integration.conftest import EXPERIMENT


def log(run_dir: Path) -> list[Any]:
    """Everything but times, and what came from where."""
    found: list[Any] = []
    scores = ScoreStore(run_dir)
    for event in EventLog(run_dir / "events.jsonl", writable=False).read():
        if isinstance(event, Asked | Told | Calibrated):
            found.append(event)
        elif isinstance(event, Evaluated | Stopped):
            tables = scores.load(event.scores_ref) if event.scores_ref else ()
            found.append((
                event.key, getattr(event, "fitness", None), getattr(event, "metrics", None), event.rungs,
                getattr(event, "stop", None), [(table.document_ids, table.values.tolist()) for table in tables],
            ))  # fmt: skip
    return found


def ended(run_dir: Path) -> list[Evaluated | Stopped]:
    events = EventLog(run_dir / "events.jsonl", writable=False).read()
    return [event for event in events if isinstance(event, Evaluated | Stopped)]


def candidates(events: list[Any]) -> dict[str, Any]:
    """What the search evaluations gave, by key: workers end them in any order."""
    return {entry[0]: entry for entry in events if isinstance(entry, tuple) and entry[0][0] == "c"}


def recalled(run_dir: Path) -> list[bool]:
    return [event.is_recalled for event in ended(run_dir)]


@pytest.fixture(scope="module")
def cached(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A racing experiment with two objectives and a cost, run without a cache, and once with an empty one."""
    mapping = copy.deepcopy(EXPERIMENT)
    for fitness in mapping["fitness"]:
        fitness["documents"]["search"]["limit"] = 24
    mapping["fitness"].append({"cost": "num_parameters", "weight": 1e-9})
    mapping |= {"budget": {"evaluations": 16}, "racing": {"min_documents": 8, "rungs": 4, "audit": 0.3, "level": 0.1}}
    mapping["finish"] |= {"task_arithmetic": [], "top_k": 2}
    folder = tmp_path_factory.mktemp("cached")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(mapping))
    assert evomerge.run(folder / "tiny.yaml", run_dir=folder / "plain").exit_code == 0
    assert evomerge.run(folder / "tiny.yaml", ["runtime.score_cache=cache"], folder / "first").exit_code == 0
    return folder


def test_a_second_run_merges_nothing_and_has_the_same_log(cached: Path) -> None:
    assert evomerge.run(cached / "tiny.yaml", ["runtime.score_cache=cache"], cached / "second").exit_code == 0
    assert log(cached / "plain") == log(cached / "first") == log(cached / "second")
    assert any(isinstance(event, Stopped) for event in ended(cached / "plain"))
    assert all(recalled(cached / "second"))
    assert all(event.seconds.merge == event.seconds.forward == 0 for event in ended(cached / "second"))
    summary = json.loads((cached / "second" / "summary.json").read_text())
    assert summary["score_cache"]["recalled"] == len(ended(cached / "second"))
    assert any("evaluations came out of it" in line for line in closing_lines(summary))
    plain = json.loads((cached / "plain" / "summary.json").read_text())
    assert plain["score_cache"] is None
    assert summary["rows"] == plain["rows"]
    # Only what it had scored itself before: a finalist that is a baseline too.
    first = json.loads((cached / "first" / "summary.json").read_text())["score_cache"]
    assert first["recalled"] < first["evaluations"]


def test_a_resumed_run_is_the_same_with_the_cache_emptied(cached: Path) -> None:
    settings = ["budget.evaluations=10", "finish.held_out=false", "finish.baselines=false"]
    evomerge.run(cached / "tiny.yaml", [*settings, "runtime.score_cache=other"], cached / "resumed")
    assert evomerge.clear_cache(cached / "other").entries > 0
    settings = ["budget.evaluations=16", "finish.held_out=true", f"runtime.score_cache={cached / 'other'}"]
    assert evomerge.resume(cached / "resumed", settings).exit_code == 0
    whole, resumed = log(cached / "plain"), log(cached / "resumed")
    for kind in (Asked, Told):
        found = [[event for event in events if isinstance(event, kind)] for events in (whole, resumed)]
        assert found[0] == found[1]
    assert candidates(resumed) == candidates(whole)
    assert len(candidates(whole)) == 16


@pytest.mark.timeout(280)
def test_a_ray_worker_uses_the_cache(cached: Path) -> None:
    settings = [
        "runtime.score_cache=cache", "runtime.executor=ray", "runtime.workers=1", "runtime.device=cpu",
        "budget.evaluations=5", "finish.baselines=false",
    ]  # fmt: skip
    assert evomerge.run(cached / "tiny.yaml", settings, cached / "ray").exit_code == 0
    assert all(event.is_recalled for event in ended(cached / "ray") if event.candidate is not None)
    whole = candidates(log(cached / "plain"))
    assert candidates(log(cached / "ray")) == {key: whole[key] for key in ("c0", "c1", "c2", "c3", "c4")}


def test_the_command_line_counts_and_clears(cached: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(cached / "cache", folder)
    entries = len(list(folder.glob("??/*.scores")))
    command = CliRunner()
    shown = json.loads(command.invoke(app, ["cache", "info", "--folder", str(folder), "--json"]).stdout)
    assert shown["entries"] == entries > 0
    kept = command.invoke(app, ["cache", "clear", "--folder", str(folder), "--older-than", "30d"])
    assert "0 entries" in kept.stdout
    assert command.invoke(app, ["cache", "clear", "--folder", str(folder), "--older-than", "soon"]).exit_code == 1
    cleared = command.invoke(app, ["cache", "clear", "--folder", str(folder), "--json"])
    assert json.loads(cleared.stdout)["removed"] == entries
    assert not list(folder.glob("??/*.scores"))
