"""The report while a run goes on, written by a process of its own.

Drawing takes seconds of Python in which nothing else of a process gets on well, so the run only starts a child and ends
it. The child is nice to everything else, rests at least thirty times its processor time, and ends with the run,
however that ends. It reads the event log; what it gets wrong ends up in log.txt and nowhere else.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import evomerge
from evomerge.store.run_dir import RunDir

# A short run ends before its first report is worth writing.
FIRST_SECONDS = 30.0
REST_SECONDS = 30.0
REST_SHARE = 30.0  # rests so many times its processor time: about three percent of one core
END_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class LiveReport:
    """Keeps ``report.html`` of a run fresh; never raises and never makes the run wait.

    Args:
        run_dir: the run, which is locked by this process.
        first_seconds: after how long the child is started.
        rest_seconds: least time between two reports.
        rest_share: rest at least so many times the processor time of the last report.
    """

    def __init__(
        self,
        run_dir: RunDir,
        first_seconds: float = FIRST_SECONDS,
        rest_seconds: float = REST_SECONDS,
        rest_share: float = REST_SHARE,
    ) -> None:
        self._run_dir = run_dir
        self._rest = rest_seconds, rest_share
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._timer = threading.Timer(first_seconds, self._start)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """End the child, which may finish the report it is writing."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            child = self._child
        if child is None:
            return
        try:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            child.kill()
            child.wait()

    def _start(self) -> None:
        command = [sys.executable, "-m", __name__, str(self._run_dir.path), *(str(number) for number in self._rest)]
        found = [str(Path(evomerge.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "CUDA_VISIBLE_DEVICES": ""}
        try:
            with self._lock, self._run_dir.log_path.open("ab") as log:
                if not self._closed:
                    self._child = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, env=environment,
                        start_new_session=True,  # Ctrl-C is for the run
                    )  # fmt: skip
        except OSError:
            _logger.exception("the report is not written while the run goes on")


def main(path: str, rest_seconds: float, rest_share: float) -> None:
    """Write the report whenever the log has grown, until standard input is closed.

    Args:
        path: run directory.
        rest_seconds: least time between two reports.
        rest_share: rest at least so many times the processor time of the last report.
    """
    os.nice(10)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    events = Path(path) / "events.jsonl"
    seen = -1
    rest = 0.0
    while not _told_to_end(rest):
        rest = 1.0
        size = events.stat().st_size if events.exists() else -1
        if size == seen:
            continue
        seen, before = size, time.process_time()
        try:
            # Only now: these take seconds, and a run may end before.
            from evomerge.experiment.reporting import read_data, write_page

            write_page(read_data(path))
        except Exception:
            logging.exception("the report could not be written; the run goes on")
        rest = max(rest_seconds, rest_share * (time.process_time() - before))


def _told_to_end(seconds: float) -> bool:
    """Wait so long for the end of standard input, which also comes when the run's process dies."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
