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
from evomerge.store.events import Asked, Evaluated, Stopped, Told
from evomerge.store.run_state import read_state
from tests.integration.toy_racing import main

TOY = Path(__file__).with_name("toy_racing.py")
ROOT = Path(__file__).parents[2]
EVALUATIONS = 64


def start(run_dir: Path, rule: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(TOY), str(run_dir), str(EVALUATIONS), rule]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


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


def check(killed: Path, whole: Path) -> None:
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


def test_killed_in_the_middle_of_races(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(str(whole), EVALUATIONS, "betting")
    moments = random.Random(5)
    for _ in range(2):
        process = start(killed, "betting")
        events = killed / "events.jsonl"
        size = events.stat().st_size if events.exists() else 0
        # Wait for new events, so that every kill falls into the search and not into the imports.
        while process.poll() is None and (not events.exists() or events.stat().st_size <= size):
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.08))
        assert process.poll() is None, "the search ended before it was killed often enough"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    main(str(killed), EVALUATIONS, "betting")
    check(killed, whole)


def test_halving_goes_on_after_an_interrupted_rung(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main(str(whole), EVALUATIONS, "halving")
    for last_rung in (7, 33, 58):
        with pytest.raises(KeyboardInterrupt):
            main(str(broken), EVALUATIONS, "halving", last_rung)
    main(str(broken), EVALUATIONS, "halving")
    check(broken, whole)
