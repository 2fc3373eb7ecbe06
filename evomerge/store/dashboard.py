"""Optuna Dashboard on a run's study: read-only, on this machine only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from evomerge.errors import UserError
from evomerge.store.run_dir import RunDir

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HOST = "127.0.0.1"
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def dashboard_app(run_dir: RunDir, storage: str | None = None) -> WsgiApp:
    """The dashboard of a run as a WSGI application.

    Args:
        run_dir: the run, which may still be going on.
        storage: the Optuna storage URL the run was projected into, None for the run's own journal.

    Raises:
        UserError: the run has no study yet.
    """
    if storage is None and not run_dir.study_path.is_file():
        raise UserError(
            f"{run_dir.study_path}: this run has no Optuna study yet. Write it from the event log first "
            f"(evomerge project {run_dir.path})."
        )
    from optuna_dashboard import wsgi

    try:
        return read_only(wsgi(storage or str(run_dir.study_path)))
    except Exception as error:
        raise UserError(
            f"{storage or run_dir.study_path}: cannot open the Optuna study ({error}). Rebuild it from the event log "
            f"(evomerge project {run_dir.path})."
        ) from error


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
    app = dashboard_app(run_dir, storage)
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise UserError(
            f"port {port}: cannot listen ({error.strerror or error}). Choose another with --port."
        ) from error
    with server:
        if ready is not None:
            ready(f"http://{HOST}:{server.server_port}/dashboard/studies/{_first_study(app)}")
        server.serve_forever()


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
    import json

    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps({"reason": reason}).encode()]


def _first_study(app: WsgiApp) -> int:
    """Id of the first study; the run's own journal holds one."""
    import io
    import json
    import sys

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/api/studies",
        "QUERY_STRING": "",
        "SERVER_NAME": HOST,
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    body = b"".join(app(environ, lambda *_: None))
    studies = json.loads(body)["study_summaries"]
    return int(studies[0]["study_id"]) if studies else 0


class _Server(ThreadingMixIn, WSGIServer):
    """Browsers hold spare connections open, which would block a server of one thread."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""
