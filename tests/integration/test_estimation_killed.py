"""A search with estimated fitness that is cut off anywhere goes on as if it had never stopped, and widens on drift."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.store.estimation_events import Completing, Estimated, EstimationFitted
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, Event, GenerationClosed, Told
from evomerge.store.run_state import RunState, read_state
from tests.integration.toy_estimation import EstimatedWorker, main

TOY = Path(__file__).with_name("toy_estimation.py")
ROOT = Path(__file__).parents[2]
EVALUATIONS = 64


def events_of(run_dir: Path) -> list[Event]:
    return EventLog(run_dir / "events.jsonl", writable=False).read()


def sequence(run_dir: Path) -> list[tuple[object, ...]]:
    """What was asked, how it ended, who was completed, every fit, and what was told; times apart."""
    found: list[tuple[object, ...]] = []
    for event in events_of(run_dir):
        if isinstance(event, Asked):
            found.append(("asked", event.candidate, event.genotype))
        elif isinstance(event, Evaluated):
            found.append(("evaluated", event.key, event.candidate, event.fitness, event.metrics))
        elif isinstance(event, Estimated):
            found.append(("estimated", event.key, event.estimate))
        elif isinstance(event, Completing):
            found.append(("completing", event.generation, event.leaders, event.sampled, event.num_asked))
        elif isinstance(event, EstimationFitted):
            found.append(("fitted", event.fit, event.generation, event.subsets, event.models, event.drift))
        elif isinstance(event, GenerationClosed):
            found.append(("closed", event.generation, event.best, event.hypervolume))
        elif isinstance(event, Told):
            found.append(("told", event.candidates))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    path = tmp_path_factory.mktemp("estimated") / "whole"
    main(str(path), EVALUATIONS)
    return path


def state_of(run_dir: Path) -> RunState:
    return read_state(events_of(run_dir))


def test_estimates_are_no_scores(whole: Path) -> None:
    state = state_of(whole)
    size = len([record for record in state.candidates if record.asked.generation == 0])
    assert len(state.estimated) == EVALUATIONS - size
    complete = {record.id for record in state.candidates if record.fitness is not None}
    completed = {number for one in state.completions for number in (*one.leaders, *one.sampled)}
    assert complete == set(range(size)) | completed
    assert state.best().id in complete
    for event in state.estimated.values():
        # One fit and one choice of documents in a generation; the estimate stays in the log when it is completed.
        generation = state.candidates[event.candidate].asked.generation
        assert event.estimate.fit == max(fit.fit for fit in state.fits if fit.generation <= generation)
        assert event.estimate.documents == state.fits[event.estimate.fit].num_documents < event.estimate.total == 60
        assert event.estimate.standard_errors[0] > 0
    assert [fit.generation for fit in state.fits] == list(range(1, 2 * len(state.fits), 2))
    assert all(set(fit.models) <= {f"c{number}" for number in complete} for fit in state.fits)


def test_a_run_cut_off_in_generations_and_completions_goes_on(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    cut = []
    for last_job in (5, 9, 14, 3, 8):
        with pytest.raises(KeyboardInterrupt):
            main(str(broken), EVALUATIONS, EstimatedWorker(last_job))
        last = [event for event in events_of(broken) if isinstance(event, Asked | Completing | EstimationFitted)][-1]
        cut.append(type(last))
    assert {Asked, Completing} <= set(cut)
    main(str(broken), EVALUATIONS)
    assert sequence(broken) == sequence(whole)
    assert (broken / "front.json").read_text() == (whole / "front.json").read_text()


def test_a_killed_run_goes_on(whole: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, str(TOY), str(killed), str(EVALUATIONS)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    log = killed / "events.jsonl"
    while process.poll() is None and (not log.exists() or b'"estimated"' not in log.read_bytes()):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(state_of(killed).candidates) < EVALUATIONS, "the search ended before it was killed"
    main(str(killed), EVALUATIONS)
    assert sequence(killed) == sequence(whole)


def test_documents_that_mislead_are_noticed(tmp_path: Path) -> None:
    """The chosen documents stop standing for the others; the search widens its choice until it scores everything."""
    main(str(tmp_path / "misled"), 96, EstimatedWorker(misled_from=8), drift={"min_rank": -1})
    state = state_of(tmp_path / "misled")
    assert state.fits[1].is_widened
    assert state.fits[1].drift[0].is_drifting
    assert state.fits[1].drift[0].bias > 0.1
    counts = [fit.num_documents for fit in state.fits]
    assert counts[:2] == [15, 30]
    assert counts == sorted(counts)

    main(str(tmp_path / "unguarded"), 96, EstimatedWorker(misled_from=8), drift=False)
    assert not any(fit.is_widened or fit.drift for fit in state_of(tmp_path / "unguarded").fits)
