"""Ray started in the background, while the driver still plans documents: its start takes 5 s and more."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from evomerge.runtime.resources import RuntimeSettings, usable_cores

if TYPE_CHECKING:
    from evomerge.runtime.ray_executor import RaySession


class EarlyRay:
    """A Ray session on its way. Hand it to ``build_executor``; ``close`` it when that is never reached.

    Does nothing for the inline executor and for a cluster given by address (joining one is quick).

    Args:
        settings: the runtime part of the experiment.
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        self._session: RaySession | None = None
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        if settings.executor == "ray" and settings.address is None:
            # Never fewer slots than the plan will have workers.
            num_cpus = usable_cores() if settings.workers == "auto" else settings.workers
            self._thread = threading.Thread(target=self._start, args=(num_cpus,), name="ray-start", daemon=True)
            self._thread.start()

    def take(self) -> RaySession | None:
        """The session once it is there, and from now on the caller's to close; None when none was begun.

        Raises:
            RayFailed: Ray does not start.
        """
        if self._thread is None:
            return None
        self._ready.wait()
        if self._error is not None:
            raise self._error
        session, self._session = self._session, None
        return session

    def close(self) -> None:
        """End a session that nobody took."""
        if self._thread is None:
            return
        self._ready.wait()
        if self._session is not None:
            self._session.close()
            self._session = None

    def _start(self, num_cpus: int) -> None:
        quieten_ray()
        try:
            from evomerge.runtime.ray_executor import RaySession

            session = self._session = RaySession(num_cpus=num_cpus)
        # Handed to the thread that asks for the session.
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        # Ray's processes ask the kernel to end them with the thread that started them, so it has to outlive them.
        session.ended.wait()


def quieten_ray() -> None:
    """Environment that Ray reads when it is imported and started: nothing is sent out, nothing printed.

    Raylet messages on lost workers go to stdout even with ``log_to_driver=False``; the scheduler reports those itself.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
