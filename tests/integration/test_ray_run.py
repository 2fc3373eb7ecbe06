"""The same search on Ray gives the same numbers, and survives a fitness that dies."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

import evomerge
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated


def scores(run_dir: Path) -> dict[str, tuple[float, ...]]:
    log = EventLog(run_dir / "events.jsonl", writable=False).read()
    return {event.key: event.fitness for event in log if isinstance(event, Evaluated)}


def asked(run_dir: Path) -> list[tuple[float, ...]]:
    log = EventLog(run_dir / "events.jsonl", writable=False).read()
    return [event.genotype for event in log if isinstance(event, Asked)]


def _kill_one_worker(killed: list[int]) -> None:
    """SIGKILL the first Ray actor that works."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not killed:
        for process in psutil.Process().children(recursive=True):
            try:
                if "_Actor.run" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)


@pytest.mark.timeout(280)
def test_ray_equals_inline_even_when_a_worker_is_killed(tiny: Path, tmp_path: Path) -> None:
    # A Ray that an earlier test left connected may pretend to have GPUs.
    settings = ["finish.baselines=false", "budget.evaluations=8", "runtime.device=cpu"]
    inline = evomerge.run(tiny, settings, tmp_path / "inline")
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one_worker, args=(killed,))
    killer.start()
    ray = evomerge.run(tiny, [*settings, "runtime.executor=ray", "runtime.workers=1"], tmp_path / "ray")
    killer.join()
    assert killed
    assert ray.exit_code == inline.exit_code == 0
    assert asked(tmp_path / "ray") == asked(tmp_path / "inline")
    assert scores(tmp_path / "ray") == scores(tmp_path / "inline")
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("ray", "inline"))
    assert first["rows"] == second["rows"]
