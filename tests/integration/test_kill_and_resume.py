"""Killed at any moment, a run goes on as if it had never stopped: nothing lost, nothing done twice."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, Failed, RunFinished, Told
from evomerge.store.run_state import read_state

TOY = Path(__file__).with_name("toy_search.py")
EVALUATIONS = 240


def start(run_dir: Path, mode: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, str(TOY), str(run_dir), str(EVALUATIONS), mode], stderr=subprocess.PIPE)


def finish(run_dir: Path, mode: str) -> None:
    process = start(run_dir, mode)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def sequence(run_dir: Path) -> list[tuple[object, ...]]:
    """What was asked, how it ended, and what was told; times apart."""
    found: list[tuple[object, ...]] = []
    for event in EventLog(run_dir / "events.jsonl", writable=False).read():
        if isinstance(event, Asked):
            found.append(("asked", event.candidate, event.generation, event.genotype, event.recipe_id))
        elif isinstance(event, Evaluated):
            found.append(("evaluated", event.key, event.fitness))
        elif isinstance(event, Failed):
            found.append(("failed", event.key, event.kind))
        elif isinstance(event, Told):
            found.append(("told", event.candidates))
    return found


@pytest.mark.parametrize("mode", ["generational", "steady_state"])
def test_killed_twenty_times(tmp_path: Path, mode: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole, mode)
    moments = random.Random(5)
    kills = 0
    while kills < (20 if mode == "generational" else 4):
        process = start(killed, mode)
        events = killed / "events.jsonl"
        size = events.stat().st_size if events.exists() else 0
        # Wait for new events, so that every kill falls into the search and not into the imports.
        while process.poll() is None and (not events.exists() or events.stat().st_size <= size):
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.02))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        log = EventLog(events, writable=False).read()
        if any(isinstance(event, RunFinished) for event in log):
            break
    assert kills == (20 if mode == "generational" else 4), "the search ended before it was killed often enough"
    finish(killed, mode)
    state = read_state(EventLog(killed / "events.jsonl", writable=False).read())
    assert len(state.candidates) == EVALUATIONS
    assert not state.pending
    keys = [entry[1] for entry in sequence(killed) if entry[0] in ("evaluated", "failed")]
    assert sorted(map(str, keys)) == sorted(f"c{index}" for index in range(EVALUATIONS))
    if mode == "generational":
        assert sequence(killed) == sequence(whole)
    front = (killed / "front.json").read_text()
    assert front == (whole / "front.json").read_text() or mode == "steady_state"
