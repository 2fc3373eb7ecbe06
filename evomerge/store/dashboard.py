"""Optuna Dashboard on a run's study: read-only, on this machine only."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from evomerge.errors import UserError
from evomerge.store.event_fields import EventError
from evomerge.store.events import RunStarted, parse_event
from evomerge.store.run_dir import RunDir
from evomerge.store.study_names import BASELINES_SUFFIX, PROJECTED_ATTRIBUTE, RUN_ATTRIBUTE, shown

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HOST = "127.0.0.1"
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_STUDY = re.compile(r"/api/studies/(\d+)/?")


def dashboard_app(run_dir: RunDir, storage: str | None = None) -> WsgiApp:
    """The dashboard of a run as a WSGI application.

    Args:
        run_dir: the run, which may still be going on.
        storage: the Optuna storage URL the run was projected into, None for the run's own journal.

    Raises:
        UserError: the run has no study yet.
    """
    return read_only(_open_dashboard(run_dir, storage))


def serve_dashboard(
    run_dir: RunDir, port: int = 8080, storage: str | None = None, ready: Callable[[str], None] | None = None
) -> None:
    """Serve the dashboard on the loopback address until interrupted.

    Args:
        run_dir: the run.
        port: TCP port, 0 = any free one.
        storage: as in ``dashboard_app``.
        ready: called with the address once it is listening.

    Raises:
        UserError: the run has no study yet, or the port is taken.
    """
    dashboard = _open_dashboard(run_dir, storage)
    try:
        server = make_server(HOST, port, read_only(dashboard), server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise UserError(
            f"port {port}: cannot listen ({error.strerror or error}). Choose another with --port."
        ) from error
    with server:
        if ready is not None:
            ready(f"http://{HOST}:{server.server_port}/dashboard/studies/{dashboard.study_of(run_dir)}")
        server.serve_forever()


def _open_dashboard(run_dir: RunDir, storage: str | None) -> _Dashboard:
    place = storage or str(run_dir.study_path)
    if storage is None and not run_dir.study_path.is_file():
        raise UserError(
            f"{place}: this run has no Optuna study yet. Write it from the event log first "
            f"(evomerge project {run_dir.path})."
        )
    try:
        return _Dashboard(place)
    except UserError:
        raise
    except Exception as error:
        named = run_dir.path if storage is None else f"{run_dir.path} {shown(place)}"
        raise UserError(
            f"{shown(place)}: cannot open the Optuna study ({shown(str(error))[:300]}). Rebuild it from the event log "
            f"(evomerge project {named})."
        ) from error


class _Dashboard:
    """Optuna Dashboard as a WSGI application, with quick answers, and opened anew when its studies were replaced.

    Args:
        place: a journal's path, or an Optuna storage URL.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._open()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        with self._lock:
            studies = self._current_studies()
            app, answers = self._app, self._answers
        asked = _STUDY.fullmatch(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "GET" else None
        after = urllib.parse.parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[-1]
        found = [study for study in studies if asked and study._study_id == int(asked[1])]
        pieces = answers.answer(found[0], int(after)) if found and after.isdecimal() else None
        if pieces is None:
            return app(environ, start_response)
        size = sum(map(len, pieces))
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(size))])
        return [b"".join(pieces)]

    def study_of(self, run_dir: RunDir) -> int:
        """Id of the run's study, whose answer is prepared.

        Raises:
            UserError: the storage holds no study of this run.
        """
        run_id = _run_id(run_dir)
        for study in self._current_studies():
            if study.user_attrs.get(RUN_ATTRIBUTE) == run_id and not study.study_name.endswith(BASELINES_SUFFIX):
                self._answers.answer(study)
                return int(study._study_id)
        named = "" if self._place == str(run_dir.study_path) else f" {shown(self._place)}"
        raise UserError(
            f"{shown(self._place)}: holds no study of this run. Write it first "
            f"(evomerge project {run_dir.path}{named})."
        )

    def _open(self) -> None:
        from optuna_dashboard import wsgi

        from evomerge.store.dashboard_answers import StudyAnswers
        from evomerge.store.study_storage import open_to_read

        self._inode = self._find_inode()
        self._storage = open_to_read(self._place)
        self._projected = _projected(self._storage.get_all_studies())
        self._answers = StudyAnswers(self._storage)
        self._app: WsgiApp = wsgi(self._storage)

    def _current_studies(self) -> list[Any]:
        """The studies; where they were replaced (``evomerge project``), everything is opened anew."""
        if self._inode == self._find_inode():
            studies: list[Any] = self._storage.get_all_studies()
            now = _projected(studies)
            if all(now.get(number) == moment for number, moment in self._projected.items()):
                self._projected = now
                return studies
        self._open()
        return list(self._storage.get_all_studies())

    def _find_inode(self) -> int | None:
        path = Path(self._place)
        return path.stat().st_ino if "://" not in self._place and path.exists() else None


def _projected(studies: Iterable[Any]) -> dict[int, object]:
    """When each study was begun, by its id: ids are given again."""
    return {study._study_id: study.user_attrs.get(PROJECTED_ATTRIBUTE) for study in studies}


def _run_id(run_dir: RunDir) -> str:
    try:
        with run_dir.events_path.open("rb") as log:
            started = parse_event(log.readline())
    except EventError as error:
        raise UserError(f"{run_dir.events_path}: line 1 {error}") from error
    if not isinstance(started, RunStarted):
        raise UserError(f"{run_dir.events_path}: does not begin with the start of a run")
    return started.run_id


def read_only(app: WsgiApp) -> WsgiApp:
    """Let only reading requests to local host names through.

    The dashboard has no passwords and would delete a study when asked; the host check keeps web pages of other origins
    from reaching it through a name they point at this machine.
    """

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", HOST)
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in _LOCAL_NAMES:
            return _refuse(start_response, "403 Forbidden", f"host {name!r} is not this machine")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(start_response, "405 Method Not Allowed", "the study is read-only here")
        return app(environ, start_response)

    return guarded


def _refuse(start_response: Callable[..., Any], status: str, reason: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps({"reason": reason}).encode()]


class _Server(ThreadingMixIn, WSGIServer):
    """Browsers hold spare connections open, which would block a server of one thread."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""
