import dataclasses
from datetime import datetime

import optuna
import pytest
from optuna.trial import TrialState
from recorded_search import evaluated, make_events, make_started

from evomerge.errors import UserError
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Stopped, format_event, parse_event
from evomerge.store.live_projection import LiveProjection
from evomerge.store.optuna_study import StudyProjection, baseline_name
from evomerge.store.run_state import read_state
from evomerge.terms import Gene, Rung, Stop


def load(storage, name="synthetic") -> list[optuna.trial.FrozenTrial]:
    if "://" not in str(storage):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage)))
    return optuna.load_study(study_name=name, storage=storage).get_trials()


@pytest.fixture
def state(events):
    return read_state(events)


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "study.journal"


@pytest.mark.parametrize("where", ["study.journal", "sqlite"])
def test_every_outcome_is_one_trial(where, tmp_path, state):
    storage = f"sqlite:///{tmp_path}/study.db" if where == "sqlite" else tmp_path / where
    projection = StudyProjection(storage, state.started)
    assert projection.sync(state) == 9
    projection.close()
    trials = load(storage)
    assert [trial.user_attrs["key"] for trial in trials] == list(state.outcomes)[1:]
    (baseline,) = load(storage, "synthetic baselines")
    best, failed = trials[0], trials[4]
    assert baseline.user_attrs["baseline"] == "uniform_soup"
    assert baseline.params == {}
    assert baseline.values == [0.4, 12.0]
    assert best.user_attrs["candidate"] == 7
    assert best.user_attrs["generation"] == 0
    assert best.user_attrs["recipe_id"] == f"{7:016x}"
    assert best.user_attrs["zoo_math/exact_match,last"] == 0.7
    assert best.user_attrs["seconds forward"] == 0.5
    assert best.values == [0.7, 17.0]
    asked = state.candidates[7].asked
    assert best.params["attention.math"] == float(f"{asked.genotype[0]:.6g}")
    assert best.params["rank"] == asked.genotype[2]
    assert best.params["method"] in ("linear", "ties")
    outcome = state.outcomes["c7"]
    assert best.datetime_start == datetime.fromtimestamp(outcome.started)
    assert best.duration.total_seconds() == pytest.approx(0.75)
    assert failed.state is TrialState.FAIL
    assert failed.user_attrs["failure"] == "timeout: no answer in 30 s"
    assert failed.user_attrs["attempts"] == 2
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAIL}


def test_the_study_has_natural_directions_and_names(storage, state):
    projection = StudyProjection(storage, state.started)
    study = projection._study
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "perplexity"]
    assert study.user_attrs["seed run"] == 7


def test_adding_again_does_nothing_and_a_new_process_goes_on(storage, state):
    first = StudyProjection(storage, state.started)
    early = [state.outcomes[key] for key in ("c7", "c6")]
    assert [first.add(outcome, state.candidates[outcome.candidate].asked) for outcome in early] == [True, True]
    assert not first.add(early[0], state.candidates[7].asked)
    first.close()
    second = StudyProjection(storage, state.started)
    assert second.num_trials == 2
    assert second.sync(state) == 7
    assert second.sync(state) == 0
    trials = load(storage) + load(storage, "synthetic baselines")
    keys = [trial.user_attrs["key"] for trial in trials]
    assert sorted(keys) == sorted(state.outcomes)


def test_rebuild_equals_the_live_study(storage, state):
    projection = StudyProjection(storage, state.started)
    projection.sync(state)
    before = [(t.values, t.params, t.user_attrs, t.state, t.datetime_start) for t in load(storage)]
    assert projection.rebuild(state) == 9
    assert [(t.values, t.params, t.user_attrs, t.state, t.datetime_start) for t in load(storage)] == before


def test_scores_on_other_documents_are_no_trials(storage, started):
    projection = StudyProjection(storage, started)
    assert not projection.add(evaluated("held_out:c1", None, (0.1, -2.0), split="held_out"))
    assert load(storage) == []


def test_a_study_of_another_run_is_left_alone(storage, state):
    StudyProjection(storage, state.started).sync(state)
    other = make_started()
    object.__setattr__(other, "time", 1.0)
    with pytest.raises(UserError, match="study 'synthetic' of another run"):
        StudyProjection(storage, other)
    assert StudyProjection(storage, other, study_name="synthetic 2").num_trials == 0
    assert len(load(storage)) == 8


@pytest.mark.parametrize("bad", ["sqlite:////no/such/folder/x.db", "nonsense://x", "/no/such/folder/study.journal"])
def test_a_storage_that_cannot_be_opened_is_a_user_error(bad, started):
    with pytest.raises(UserError, match="cannot open this Optuna storage"):
        StudyProjection(bad, started)


def test_a_torn_journal_is_mended_before_it_is_glued(tmp_path, state):
    path = tmp_path / "study.journal"
    StudyProjection(path, state.started).sync(state)
    path.write_bytes(path.read_bytes()[:-25])
    projection = StudyProjection(path, state.started)
    assert projection.num_trials == 8
    assert projection.sync(state) == 1
    assert len(load(path)) == 8


def test_an_unreadable_journal_is_put_aside_and_written_anew(tmp_path, state):
    path = tmp_path / "study.journal"
    StudyProjection(path, state.started).sync(state)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:6], b'{"op_code": 4, "wor' + lines[6], *lines[7:]]))
    assert StudyProjection(path, state.started).sync(state) == 9
    assert len(load(path)) == 8
    assert (tmp_path / "study.journal.damaged").exists()


def test_a_file_that_is_no_journal_is_never_changed(tmp_path, state):
    path = tmp_path / "notes.txt"
    path.write_text("milk\nbread")
    with pytest.raises(UserError, match="cannot open this Optuna storage"):
        StudyProjection(path, state.started)
    assert path.read_text() == "milk\nbread"


def test_the_lock_of_a_killed_writer_does_not_stall(tmp_path, state):
    path = tmp_path / "study.journal"
    StudyProjection(path, state.started).close()
    (tmp_path / "study.journal.lock").symlink_to(path)
    before = datetime.now()
    assert StudyProjection(path, state.started).sync(state) == 9
    assert (datetime.now() - before).total_seconds() < 10


def test_a_long_genotype_is_capped(tmp_path):
    genes = tuple(Gene(f"g{index}") for index in range(500))
    groups = {f"block {block}": tuple(range(10 * block, 10 * block + 10)) for block in range(50)}
    started = make_started(genes, groups)
    projection = StudyProjection(tmp_path / "study.journal", started)
    projection.add(evaluated("c0", 0, (0.5, -1.0)), Asked(0, 0, tuple(i / 500 for i in range(500)), "ab"))
    (trial,) = load(tmp_path / "study.journal")
    assert len(trial.params) == 50
    assert trial.params["mean of block 1"] == pytest.approx(14.5 / 500)


def test_live_projection_shows_everything(tmp_path, events, state):
    live = LiveProjection(tmp_path / "study.journal", state.started, read_state(events[:-20]))
    for outcome in state.outcomes.values():
        live.add(outcome, None if outcome.candidate is None else state.candidates[outcome.candidate].asked)
    live.set_about("x" * 5000)
    live.set_about("finished")
    assert live.close(60)
    assert len(load(tmp_path / "study.journal")) == 8


def test_a_broken_projection_never_stops_a_run(tmp_path, state, caplog):
    live = LiveProjection("sqlite:////no/such/folder/x.db", state.started, state)
    for _ in range(3):
        live.add(state.outcomes["c7"], state.candidates[7].asked)
    assert not live.close(60)
    assert live.failed
    live.add(state.outcomes["c7"], state.candidates[7].asked)
    assert [record.message.count("projection stopped") for record in caplog.records] == [1]


def test_optuna_stays_quiet(tmp_path, events, capfd, recwarn):
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(*make_events())
        state = read_state(log.read())
    StudyProjection(tmp_path / "study.journal", state.started).sync(state)
    out, err = capfd.readouterr()
    assert out + err == ""
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("key", "name"),
    [("baseline:uniform_soup:search", "uniform_soup"), ("baseline:expert:math:search", "expert:math"), ("x", "x")],
)
def test_baseline_name(key, name):
    assert baseline_name(key) == name


def test_stopped_candidates_are_pruned_trials_without_values(tmp_path, storage):
    rungs = (Rung(16, (0.2, -9.0)), Rung(30, (0.25, -8.0)))
    stop = Stop(30, 100, 0, -0.2, -0.05, (0.3, -9.0))
    events = [
        make_started(), Asked(0, 0, (0.1, 0.2, 1.0, 0.0), "a"), Asked(1, 0, (0.3, 0.2, 1.0, 0.0), "b"),
        dataclasses.replace(evaluated("c0", 0, (0.5, -7.0)), rungs=rungs[:1]), Stopped("c1", 1, stop, rungs),
    ]  # fmt: skip
    state = read_state([parse_event(format_event(event)) for event in events])
    projection = StudyProjection(storage, state.started)
    assert projection.sync(state) == 2
    projection.close()
    complete, pruned = load(storage)
    assert complete.state is TrialState.COMPLETE
    assert pruned.state is TrialState.PRUNED
    assert pruned.values is None
    assert list(pruned.intermediate_values) == [16, 30]
    assert pruned.intermediate_values[16] == pytest.approx((0.2 - 0.1 * 9.0) / 1.1)
    assert list(complete.intermediate_values) == [16]
    assert pruned.user_attrs["stopped"] == "after 30 of 100 documents, 0.2 behind candidate 0"
    assert StudyProjection(storage, state.started).sync(state) == 0
