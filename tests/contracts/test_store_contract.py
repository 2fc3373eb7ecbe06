"""What the store promises: whatever kills the writer, nothing acknowledged is lost; the study pictures the log."""

import dataclasses
import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.store.dashboard import dashboard_app, serve_dashboard
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, Event, Failed, GenerationClosed, RunStarted, Told
from evomerge.store.optuna_study import StudyProjection
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import RunState, read_state
from evomerge.terms import FailureKind, Gene, Objective, Seconds

POPULATION = 4


def simulate(log: EventLog, generations: int) -> None:
    """A deterministic search that goes on from what its log holds, as a resumed run does."""
    done = log.read()
    for event in planned(generations):
        if done:
            assert done.pop(0) == event
        else:
            log.append(event)


def planned(generations: int) -> list[Event]:
    rng = np.random.default_rng(5)
    events: list[Event] = [
        RunStarted(
            "contract",
            "0.1.0",
            "f",
            1.7e9,
            {"run": 1},
            (Objective("maths"), Objective("loss", higher_is_better=False)),
            genes=tuple(Gene(f"g{index}") for index in range(5)),
        )
    ]
    for generation in range(generations):
        ids = [generation * POPULATION + index for index in range(POPULATION)]
        events += [Asked(i, generation, tuple(float(x) for x in rng.random(5)), f"{i:016x}") for i in ids]
        if generation == 0:
            events.append(Evaluated("baseline:uniform_soup:search", None, "search", (2.0, -0.5)))
        for i in reversed(ids):
            started = 1.7e9 + i
            if i % 7 == 3:
                events.append(Failed(f"c{i}", i, "search", FailureKind.WORKER_DIED, "killed", 0, started, started + 1))
            else:
                fitness = (float(rng.random()), -float(rng.random()))
                metrics = {"maths/acc,none": fitness[0], "loss/nll,none": -fitness[1]}
                times = (0, started, started + 1.5)
                events.append(Evaluated(f"c{i}", i, "search", fitness, metrics, Seconds(0.1, 1.0), None, *times))
        events += [Told(tuple(ids)), GenerationClosed(generation, 1.7e9 + 10 * generation, len(ids))]
    return events


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    return RunDir.create(tmp_path / "run")


def script(code: str, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    path = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {path!r})\n" + code
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options)


def test_a_run_cut_at_any_byte_goes_on_to_the_same_end(run_dir):
    with run_dir.event_log() as log:
        simulate(log, 3)
    whole = run_dir.events_path.read_bytes()
    expected = read_state(planned(3))
    for cut in random.Random(0).sample(range(len(whole)), 25):
        run_dir.events_path.write_bytes(whole[:cut])
        with run_dir.event_log() as log:
            simulate(log, 3)
            assert read_state(log.read()) == expected
        assert run_dir.events_path.read_bytes() == whole


WRITER = """
from test_store_contract import planned
from evomerge.store.run_dir import RunDir
log = RunDir.create(sys.argv[1]).event_log()
for number, event in enumerate(planned(500)):
    log.append(event)
    print(number, flush=True)
"""


def test_sigkill_loses_no_acknowledged_event_and_frees_the_lock(tmp_path):
    writer = script(WRITER, tmp_path / "run", stdout=subprocess.PIPE)
    for _ in range(200):
        assert writer.stdout.readline()
    with pytest.raises(UserError, match=f"another run is using this directory \\(process {writer.pid} on"):
        RunDir.create(tmp_path / "run", overwrite=True)
    with pytest.raises(UserError, match=f"process {writer.pid} on"):
        RunDir.open(tmp_path / "run", exclusive=True)
    writer.kill()
    acknowledged = 200 + len(writer.stdout.read().splitlines())
    writer.wait()
    writer.stdout.close()
    run_dir = RunDir.open(tmp_path / "run", exclusive=True)
    events = run_dir.event_log().read()
    assert len(events) in (acknowledged, acknowledged + 1)
    assert events == planned(500)[: len(events)]


FULL_DISK = """
import resource
from test_store_contract import planned
from evomerge.errors import UserError
from evomerge.store.run_dir import RunDir
run_dir = RunDir.create(sys.argv[1])
log = run_dir.event_log()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
written = 0
try:
    for event in planned(500):
        log.append(event)
        written += 1
except UserError as error:
    print(written, error)
"""


def test_a_full_disk_is_a_user_error_and_leaves_a_whole_log(tmp_path):
    writer = script(FULL_DISK, tmp_path / "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = writer.communicate(timeout=60)
    assert err == b""
    written, message = out.decode().split(" ", 1)
    assert "events.jsonl: cannot write to the event log: File too large" in message
    assert "resume" in message
    run_dir = RunDir.open(tmp_path / "run", exclusive=True)
    assert run_dir.events_path.read_bytes().endswith(b"\n")
    with run_dir.event_log() as log:
        assert len(log.read()) == int(written) > 50
        simulate(log, 20)
        assert read_state(log.read()) == read_state(planned(20))


def project(run_dir: RunDir, generations: int = 3) -> RunState:
    with run_dir.event_log() as log:
        simulate(log, generations)
        state = read_state(log.read())
    assert state.started is not None
    projection = StudyProjection(run_dir.study_path, state.started)
    projection.sync(state)
    projection.close()
    return state


def request(app, path: str, method: str = "GET", host: str = "127.0.0.1:8080") -> tuple[str, bytes]:
    statuses = []
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "HTTP_HOST": host,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }
    body = b"".join(app(environ, lambda status, headers, error=None: statuses.append(status)))
    return statuses[0], body


def test_the_dashboard_shows_the_run(run_dir):
    state = project(run_dir)
    app = dashboard_app(run_dir)
    status, body = request(app, "/api/studies")
    assert status.startswith("200")
    summary, baselines = json.loads(body)["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("contract", ["maximize", "minimize"])
    assert baselines["study_name"] == "contract baselines"
    study = json.loads(request(app, f"/api/studies/{summary['study_id']}")[1])
    assert study["objective_names"] == ["maths", "loss"]
    assert len(study["trials"]) == len(state.outcomes) - 1 == 12
    assert {parameter["name"] for parameter in study["intersection_search_space"]} == {f"g{i}" for i in range(5)}
    assert [trial["state"] for trial in study["trials"]].count("Fail") == 2
    assert study["note"]["body"].startswith("## contract\n")
    assert "| uniform_soup | 2 | 0.5 |" in study["note"]["body"]
    sortable = {attribute["key"] for attribute in study["union_user_attrs"] if attribute["sortable"]}
    assert {"candidate", "generation", "maths/acc,none", "loss/nll,none", "seconds forward"} <= sortable
    best = {int(attribute["value"]) for trial in study["best_trials"] for attribute in trial["user_attrs"]
            if attribute["key"] == "candidate"}  # fmt: skip
    records, fitness = state.scored()
    front = {
        record.id
        for record, own in zip(records, fitness, strict=True)
        if not any((other >= own).all() and (other > own).any() for other in fitness)
    }
    assert best == front
    assert request(app, f"/api/studies/{summary['study_id']}/param_importances")[0].startswith("200")
    assert request(app, "/dashboard")[0].startswith("200")


def test_quick_answers_equal_the_dashboards_own(run_dir):
    from optuna_dashboard import wsgi

    project(run_dir)
    quick, own = dashboard_app(run_dir), wsgi(str(run_dir.study_path))
    for number in (0, 1):
        found, expected = (json.loads(request(app, f"/api/studies/{number}")[1]) for app in (quick, own))
        columns = [sorted(map(str, study.pop("union_user_attrs"))) for study in (found, expected)]
        assert columns[0] == columns[1]
        assert found == expected
    assert request(quick, "/api/studies/7")[0].startswith("404")


def test_best_trials_keep_the_constraints(run_dir):
    events = planned(3)
    started = dataclasses.replace(events[0], constraints=("maths <= 0.7",))
    with run_dir.event_log() as log:
        log.append(started, *(missing(event) if isinstance(event, Evaluated) else event for event in events[1:]))
        state = read_state(log.read())
    projection = StudyProjection(run_dir.study_path, state.started)
    projection.sync(state)
    study = json.loads(request(dashboard_app(run_dir), "/api/studies/0")[1])
    assert {len(trial["constraints"]) for trial in study["trials"] if trial["state"] == "Complete"} == {1}
    assert study["best_trials"]
    assert all(trial["constraints"][0] <= 0 for trial in study["best_trials"])
    assert any(trial["constraints"][0] > 0 for trial in study["trials"] if trial["state"] == "Complete")


def missing(event: Evaluated) -> Evaluated:
    """The event in a run with one constraint."""
    return dataclasses.replace(event, constraints=(event.fitness[0] - 0.7,)) if event.candidate is not None else event


def test_a_study_that_was_replaced_is_shown_anew(run_dir):
    state = project(run_dir, 1)
    app = dashboard_app(run_dir)
    assert len(json.loads(request(app, "/api/studies/0")[1])["trials"]) == 4
    fresh = run_dir.study_path.with_name("study.journal.new")
    projection = StudyProjection(fresh, state.started, about="- written again")
    projection.add(state.outcomes["c0"], state.candidates[0].asked)
    projection.close()
    fresh.replace(run_dir.study_path)
    study = json.loads(request(app, "/api/studies/0")[1])
    assert len(study["trials"]) == 1
    assert "- written again" in study["note"]["body"]


def test_the_dashboard_is_read_only_and_local(run_dir):
    project(run_dir)
    app = dashboard_app(run_dir)
    for method in ("DELETE", "PUT", "POST"):
        assert request(app, "/api/studies/0", method)[0].startswith("405")
    assert request(app, "/api/studies", host="evil.example:8080")[0].startswith("403")
    assert request(app, "/api/studies", host="localhost:1")[0].startswith("200")
    assert request(app, "/api/studies/0")[0].startswith("200")


def test_the_dashboard_follows_a_run_that_goes_on(run_dir):
    project(run_dir, 1)
    app = dashboard_app(run_dir)
    assert len(json.loads(request(app, "/api/studies/0")[1])["trials"]) == 4
    project(run_dir, 3)
    deadline = time.monotonic() + 10
    while len(json.loads(request(app, "/api/studies/0")[1])["trials"]) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_dashboard_serves_on_loopback_only(run_dir):
    project(run_dir)
    addresses: list[str] = []

    class Stop(Exception):
        pass

    def ready(address: str) -> None:
        addresses.append(address)
        raise Stop

    with pytest.raises(Stop):
        serve_dashboard(run_dir, 0, ready=ready)
    assert addresses[0].startswith("http://127.0.0.1:")
    assert addresses[0].endswith("/dashboard/studies/0")


def test_a_run_without_a_study_says_how_to_make_one(run_dir):
    with pytest.raises(UserError, match="evomerge project"):
        dashboard_app(run_dir)


def test_a_study_in_sqlite_shows_in_the_dashboard_too(run_dir, tmp_path):
    state = project(run_dir)
    url = f"sqlite:///{tmp_path}/study.db"
    assert state.started is not None
    projection = StudyProjection(url, state.started)
    projection.sync(state)
    projection.rebuild(state)
    projection.close()
    app = dashboard_app(run_dir, url)
    summary, _ = json.loads(request(app, "/api/studies")[1])["study_summaries"]
    in_sqlite = json.loads(request(app, f"/api/studies/{summary['study_id']}")[1])
    in_journal = json.loads(request(dashboard_app(run_dir), "/api/studies/0")[1])

    def essence(study):
        return [
            (trial["state"], trial.get("values"), sorted(map(str, trial["user_attrs"]))) for trial in study["trials"]
        ]

    assert essence(in_sqlite) == essence(in_journal)
