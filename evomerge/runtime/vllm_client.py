"""The worker's side of its vLLM process: starts it, asks it, and ends it with everything it started."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import evomerge
from evomerge.errors import MergeFailed, UserError
from evomerge.evaluation.failures import WorkerBroken
from evomerge.runtime.vllm_settings import VllmSettings
from evomerge.runtime.vllm_wire import Closed, receive, send
from evomerge.terms import FailureKind

LOG = logging.getLogger(__name__)

START_SECONDS = 1500.0
LOOK_SECONDS = 2.0
TOLD_LINES, LOGGED_LINES = 6, 60

# What belongs to this environment and would lead the other one astray.
OWN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "PYTHONSAFEPATH")
VARIABLES = {
    # One process with the engine in it: nothing to be orphaned, and requests are scheduled the same way every time.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Forked workers would hold on to the socket.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def foreign_environment() -> dict[str, str]:
    """Variables for a process of another Python environment."""
    return {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES} | VARIABLES


class VllmServer:
    """A vLLM process of our own.

    Args:
        settings: what it is started with.

    Raises:
        UserError: the interpreter cannot be started.
    """

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self._owned = tempfile.TemporaryDirectory(prefix="evomerge-vllm-", ignore_cleanup_errors=True)
        self._folder = Path(self._owned.name)
        # The other environment gets to see evomerge and nothing else of this one.
        (self._folder / "evomerge").symlink_to(Path(evomerge.__file__).resolve().parent)
        ours, theirs = socket.socketpair()
        self._connection = ours
        environment = foreign_environment() | {"PYTHONPATH": str(self._folder)}
        command = [settings.python, "-m", "evomerge.runtime.vllm_server", str(theirs.fileno())]
        try:
            with (self._folder / "log").open("wb") as log, theirs:
                self._process = subprocess.Popen(
                    command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(),), start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            ours.close()
            self._owned.cleanup()
            raise UserError(f"runtime.vllm.python: {settings.python} cannot be started ({error.strerror})") from error

    @property
    def pid(self) -> int:
        """Of the process, which leads a process group of its own."""
        return self._process.pid

    def ask(self, op: str, limit_seconds: float | None = None, **content: Any) -> Any:
        """Send a request and wait for its answer.

        Args:
            op: which method of the server.
            limit_seconds: longest time to wait, None = as long as it lives.
            **content: its arguments.

        Raises:
            WorkerBroken: the process died, hung, or its engine is in doubt.
            MergeFailed: the merge is unusable.
            UserError: the recipe does not fit the models.
        """
        try:
            send(self._connection, {"op": op, **content})
            self._wait(limit_seconds)
            answer = receive(self._connection)
        except Closed as error:
            raise self._lost(FailureKind.WORKER_DIED, f"the vLLM process died during {op!r}") from error
        if "ok" in answer:
            return answer["ok"]
        message = str(answer["message"])
        if answer["error"] == "merge":
            raise MergeFailed(message)
        if answer["error"] == "user":
            raise UserError(message)
        kind = FailureKind.OUT_OF_MEMORY if answer["error"] == "memory" else FailureKind.EXCEPTION
        raise self._lost(kind, f"vLLM failed during {op!r}: {message}")

    def close(self) -> None:
        """End the process and its children, and remove its log."""
        self._connection.close()
        self._kill()
        self._owned.cleanup()

    def _wait(self, limit_seconds: float | None) -> None:
        end = None if limit_seconds is None else time.monotonic() + limit_seconds
        while not select.select([self._connection], [], [], LOOK_SECONDS)[0]:
            # Children may keep the socket open when the process itself is gone. Looked at without reaping: until then
            # the number of its process group is not given to others.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise Closed("the process ended")
            if end is not None and time.monotonic() > end:
                raise self._lost(FailureKind.TIMEOUT, f"vLLM did not answer within {limit_seconds:.0f} s")

    def _lost(self, kind: FailureKind, message: str) -> WorkerBroken:
        """The error to raise, with what the process said last; the process is ended."""
        self._kill()
        with contextlib.suppress(OSError):
            lines = (self._folder / "log").read_text(errors="replace").splitlines()
            LOG.warning("%s; the end of its log:\n%s", message, "\n".join(lines[-LOGGED_LINES:]))
            told = " | ".join(line.strip() for line in lines[-TOLD_LINES:] if line.strip())
            message = f"{message} ({told})" if told else message
        return WorkerBroken(kind, message)

    def _kill(self) -> None:
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
