"""The projection in databases: SQLite, and a real PostgreSQL server where there is one."""

import json
from pathlib import Path

import pytest

import evomerge
from evomerge.errors import UserError
from evomerge.store.dashboard import dashboard_app
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state
from evomerge.store.study_names import shown
from tests.contracts.test_store_contract import planned, request
from tests.integration.postgresql_server import postgresql_url


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """A run that has ended, with failures."""
    run_dir = RunDir.create(tmp_path / "run")
    with run_dir.event_log() as log:
        log.append(*planned(1))
        read_state(log.read())
    run_dir.experiment_path.write_text(
        "name: contract\nmodels: {base: {model: b}, experts: {one: {model: e}}}\n"
        "search_space: {kind: parameter_space}\noptimizer: {name: random_search}\nbudget: {evaluations: 4}\n"
    )
    run_dir.close()
    return run_dir.path


def times(trial: dict[str, object]) -> list[object]:
    return [trial["datetime_start"], trial["datetime_complete"]]


def essence(study: dict[str, object]) -> list[object]:
    trials = study["trials"]
    assert isinstance(trials, list)
    return [
        (trial["state"], trial.get("values"), trial["params"], sorted(map(str, trial["user_attrs"])), times(trial))
        for trial in trials
    ]


def ask(app: object, name: str) -> dict[str, object]:
    studies = json.loads(request(app, "/api/studies")[1])["study_summaries"]
    (number,) = [study["study_id"] for study in studies if study["study_name"] == name]
    return dict(json.loads(request(app, f"/api/studies/{number}")[1]))


def check_storage(run_path: Path, url: str) -> None:
    """What a database holds equals the run's journal, once, however often it is written."""
    assert evomerge.project(run_path) == 5
    journal = ask(dashboard_app(RunDir.open(run_path)), "contract")
    assert evomerge.project(run_path, url) == 5
    app = dashboard_app(RunDir.open(run_path), url)
    assert essence(ask(app, "contract")) == essence(journal)
    assert evomerge.project(run_path, url) == 5
    again = ask(app, "contract")  # of the same server process
    assert essence(again) == essence(journal)
    assert "- optimizer: random_search" in again["note"]["body"]  # type: ignore[index]
    assert evomerge.project(run_path, url, "another name") == 5
    names = {study["study_name"] for study in json.loads(request(app, "/api/studies")[1])["study_summaries"]}
    assert names == {"contract", "contract baselines", "another name", "another name baselines"}


def test_sqlite(run_path: Path, tmp_path: Path) -> None:
    check_storage(run_path, f"sqlite:///{tmp_path}/study.db")


def test_postgresql(run_path: Path) -> None:
    with postgresql_url() as url:
        check_storage(run_path, url)


def test_a_missing_driver_and_a_missing_server_say_so_without_the_password(run_path: Path) -> None:
    for scheme, hint in (
        ("mysql", "pip install 'mysqlclient'"),
        ("postgresql", "evomerge.postgresql|OperationalError"),
    ):
        with pytest.raises(UserError, match=hint) as caught:
            evomerge.project(run_path, f"{scheme}://me:secret@127.0.0.1:9/none")
        assert "secret" not in str(caught.value)


def test_a_dashboard_on_a_database_that_is_not_there_makes_none(run_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        dashboard_app(RunDir.open(run_path), f"sqlite:///{tmp_path}/typo.db")
    assert not (tmp_path / "typo.db").exists()


def test_the_shown_name_has_no_password() -> None:
    assert shown("postgresql+psycopg://me:se:cr/et@host/db?x=1") == "postgresql+psycopg://me:***@host/db?x=1"
    assert shown("sqlite:///a/b.db") == "sqlite:///a/b.db"
