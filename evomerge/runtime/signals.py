"""Ctrl-C and SIGTERM as a wish to stop, which the run honours between two waits."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM only sets ``stop_requested``; a second one interrupts.

    Enter it after the executor exists: Ray puts its own SIGTERM handler in place when it starts. Outside the main
    thread it does nothing, because Python delivers signals to the main thread only.

    Args:
        interrupt_at_once: raise KeyboardInterrupt at the first signal too; for the inline executor, whose evaluation
            runs in this very thread and would otherwise finish first.
    """

    def __init__(self, interrupt_at_once: bool = False) -> None:
        self._interrupt_at_once = interrupt_at_once
        self._received: list[int] = []
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has arrived."""
        return bool(self._received)

    @property
    def signal_name(self) -> str | None:
        """Name of the first signal, for example ``SIGINT``."""
        return signal.Signals(self._received[0]).name if self._received else None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None = a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if self._interrupt_at_once or len(self._received) > 1:
            raise KeyboardInterrupt
