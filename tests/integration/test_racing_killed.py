"""A racing search that is killed between and within rungs goes on as if it had never stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, RunFinished, Stopped, Told
from evomerge.store.run_state import read_state

TOY = Path(__file__).with_name("toy_racing.py")
ROOT = Path(__file__).parents[2]
EVALUATIONS = 64


def start(run_dir: Path, rule: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(TOY), str(run_dir), str(EVALUATIONS), rule]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def finish(run_dir: Path, rule: str) -> None:
    process = start(run_dir, rule)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def sequence(run_dir: Path) -> list[tuple[object, ...]]:
    """What was asked, against whom, how it ended, and what was told; times apart."""
    found: list[tuple[object, ...]] = []
    for event in EventLog(run_dir / "events.jsonl", writable=False).read():
        if isinstance(event, Asked):
            found.append(("asked", event.candidate, event.genotype, event.race_against, event.race_thresholds))
        elif isinstance(event, Evaluated):
            found.append(("evaluated", event.key, event.fitness, event.rungs))
        elif isinstance(event, Stopped):
            found.append(("stopped", event.key, event.stop, event.rungs))
        elif isinstance(event, Told):
            found.append(("told", event.candidates))
    return found


@pytest.mark.parametrize(("rule", "wanted"), [("betting", 2), ("halving", 1)])
def test_killed_in_the_middle_of_races(tmp_path: Path, rule: str, wanted: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole, rule)
    moments = random.Random(5)
    kills = 0
    while kills < wanted:
        process = start(killed, rule)
        events = killed / "events.jsonl"
        size = events.stat().st_size if events.exists() else 0
        # Wait for new events, so that every kill falls into the search and not into the imports.
        while process.poll() is None and (not events.exists() or events.stat().st_size <= size):
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.08))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if any(isinstance(event, RunFinished) for event in EventLog(events, writable=False).read()):
            break
    assert kills == wanted, "the search ended before it was killed often enough"
    finish(killed, rule)
    assert sequence(killed) == sequence(whole)
    state = read_state(EventLog(killed / "events.jsonl", writable=False).read())
    assert len(state.candidates) == EVALUATIONS
    assert not state.pending
    assert len(state.stopped) > 5
    assert any(event.stop.audit for event in state.stopped)
    assert (killed / "front.json").read_text() == (whole / "front.json").read_text()
    complete = {record.id for record in state.candidates if record.fitness is not None}
    assert state.best().id in complete
    for record in state.candidates:
        assert set(record.asked.race_against) <= complete
