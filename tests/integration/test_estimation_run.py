"""A search with estimated fitness on tiny real models, from the file to the summary."""

import copy
import json
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

import evomerge
from evomerge.reports.summary_table import closing_lines
from evomerge.store.estimation_events import Estimated
from evomerge.store.event_log import EventLog
from evomerge.store.run_state import read_state
from evomerge.store.score_store import ScoreStore
from tests.integration.conftest import EXPERIMENT


@pytest.fixture(scope="module")
def folder(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two objectives, four generations, cut off in the final completions and resumed."""
    mapping = copy.deepcopy(EXPERIMENT)
    for fitness in mapping["fitness"]:
        fitness["documents"]["search"]["limit"] = 12
        del fitness["documents"]["validation"]
    mapping |= {
        "optimizer": {"name": "nsga2", "population_size": 4},
        "budget": {"evaluations": 16},
        "estimation": {"documents": 8, "full_every": 2, "leaders": 1, "sampled": 1},
    }
    mapping["finish"] |= {"held_out": False, "top_k": 1, "front_size": 2}
    folder = tmp_path_factory.mktemp("estimated")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(mapping))
    assert evomerge.run(folder / "tiny.yaml", run_dir=folder / "run").exit_code == 0
    return folder / "run"


def test_a_run_with_estimates_reports_complete_candidates_only(folder: Path) -> None:
    state = read_state(EventLog(folder / "events.jsonl", writable=False).read())
    complete = {record.id: record.outcome for record in state.candidates if record.fitness is not None}
    completed = sorted(set(complete) & set(state.estimated))
    assert len(state.estimated) == 12
    assert {4, 5, 6, 7} & set(state.estimated) == {4, 5, 6, 7}
    assert 3 <= len(completed) <= 6
    scores = ScoreStore(folder)
    for number in completed:
        event = complete[number]
        assert event.key == f"full:c{number}"
        tables = scores.load(event.scores_ref)
        assert [len(table.values) for table in tables] == [12, 12]
        assert event.fitness == tuple(sum(table.values.tolist()) / 12 for table in tables)
        # What was scored first is what the estimate was made of.
        first = scores.load(state.estimated[number].scores_ref)
        for part, table in zip(first, tables, strict=True):
            assert (
                dict(zip(part.document_ids, part.values)).items() <= dict(zip(table.document_ids, table.values)).items()
            )
    front = json.loads((folder / "front.json").read_text())
    assert {entry["candidate"] for entry in front["front"]} <= set(complete)

    summary = json.loads((folder / "summary.json").read_text())
    found = summary["estimation"]
    assert summary["winner"]["candidate"] in complete
    assert found["estimated"] == 12
    assert found["completed"] == len(completed)
    assert found["documents_without"] == 16 * 24
    assert found["documents_scored"] == 24 * len(complete) + sum(
        event.estimate.documents for number, event in state.estimated.items() if number not in complete
    )
    assert found["documents_per_candidate"] == found["documents_scored"] / 16
    assert found["errors"]["leaders"]["candidates"] + found["errors"]["sampled"]["candidates"] == len(completed)
    line = next(line for line in closing_lines(summary) if line.startswith("estimation (p_irt): 12 candidates"))
    assert f"{found['errors']['leaders']['rmse']:.3f}" in line
    report = (folder / "report.html").read_text()
    assert "An estimate is no fitness" in report
    assert "could not be made" not in report

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    trials = optuna.load_study(study_name="tiny", storage=storage).get_trials()
    assert sum(trial.state is TrialState.PRUNED for trial in trials) == 12
    assert sum(trial.state is TrialState.COMPLETE for trial in trials) == len(complete)


def test_a_run_cut_off_while_it_completes_ends_alike(folder: Path) -> None:
    """Everything from the middle of the final completions on is done again, and comes out the same."""
    log = folder / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    fulls = [at for at, line in enumerate(lines) if b'"full:c' in line]
    before = [json.loads((folder / name).read_text()) for name in ("front.json", "summary.json")]
    log.write_bytes(b"".join(lines[: fulls[-1]]))
    assert evomerge.resume(folder).exit_code == 0
    after = [json.loads((folder / name).read_text()) for name in ("front.json", "summary.json")]
    assert after[0] == before[0]
    assert after[1]["estimation"] == before[1]["estimation"]
    assert after[1]["winner"] == before[1]["winner"]
    ids = [event for event in EventLog(log, writable=False).read() if isinstance(event, Estimated)]
    assert len(ids) == 12
