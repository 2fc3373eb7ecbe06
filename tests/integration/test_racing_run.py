"""A racing search on tiny real models, from the file to the summary."""

import copy
import json
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

import evomerge
from evomerge.reports.summary_table import closing_lines
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, Stopped, Told
from evomerge.store.score_store import ScoreStore
from tests.integration.conftest import EXPERIMENT


@pytest.fixture(scope="module")
def raced(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished racing run of four generations."""
    mapping = copy.deepcopy(EXPERIMENT)
    for fitness in mapping["fitness"]:
        fitness["documents"]["search"]["limit"] = 24
    mapping |= {"budget": {"evaluations": 16}, "racing": {"min_documents": 8, "rungs": 4, "audit": 0.3, "level": 0.1}}
    mapping["finish"] |= {"baselines": False, "held_out": False, "top_k": 1}
    folder = tmp_path_factory.mktemp("raced")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(mapping))
    assert evomerge.run(folder / "tiny.yaml", run_dir=folder / "run").exit_code == 0
    return folder / "run"


def test_a_racing_run_stops_who_is_behind_and_reports_complete_ones_only(raced: Path) -> None:
    events = EventLog(raced / "events.jsonl", writable=False).read()
    asked = [event for event in events if isinstance(event, Asked)]
    stopped = {event.candidate: event for event in events if isinstance(event, Stopped)}
    complete = {event.candidate: event for event in events if isinstance(event, Evaluated)}
    assert len(stopped) >= 2
    assert len(stopped) + len(complete) == 16
    assert sorted(key for event in events if isinstance(event, Told) for key in event.candidates) == list(range(16))
    for event in asked:
        # The best of the generations before; the first one has nobody to race against.
        earlier = {key: one for key, one in complete.items() if key is not None and key < 4 * event.generation}
        assert set(event.race_against) <= set(earlier)
        assert bool(event.race_against) == bool(event.generation)
    scores = ScoreStore(raced)
    for event in stopped.values():
        assert event.stop.total == 48
        assert event.stop.upper < 0
        tables = scores.load(event.scores_ref)
        assert sum(len(table.values) for table in tables) == event.stop.scored
    front = json.loads((raced / "front.json").read_text())
    assert {entry["candidate"] for entry in front["front"]} <= set(complete)
    assert front["evaluations"] == 16

    summary = json.loads((raced / "summary.json").read_text())
    racing = summary["racing"]
    assert summary["failed"] == 0
    assert summary["winner"]["candidate"] in complete
    assert racing["stopped"] == len(stopped)
    assert racing["documents_without"] == 16 * 48
    assert racing["documents_scored"] == 48 * len(complete) + sum(event.stop.scored for event in stopped.values())
    assert any(f"{len(stopped)} candidates stopped" in line for line in closing_lines(summary))

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(raced / "study.journal")))
    trials = optuna.load_study(study_name="tiny", storage=storage).get_trials()
    assert sum(trial.state is TrialState.PRUNED for trial in trials) == len(stopped)
